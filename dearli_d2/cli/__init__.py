"""The command line `dearli`; `python -m dearli_d2` is the same."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .. import __version__
from ..methods import methods
from .base import Group, run
from .checkpoint import checkpoint
from .completion import completion
from .data import data
from .demo import demo
from .env import env
from .export import export
from .keys import keys
from .masks import masks
from .plan import plan
from .predict import predict
from .prepare import prepare
from .pseudo_label import pseudo_label
from .report import report
from .reproduce import reproduce
from .serve import serve
from .suggest import suggest
from .train import evaluate, train
from .video import video
from .weights import weights


@click.group(cls=Group)
@click.version_option(__version__, package_name="dearli_d2")
def dearli() -> None:
    """Trains segmentation models from very few labels, evaluates them and segments images with them.

    An experiment is a YAML file in configs/. Its values can be replaced on the command line by KEY VALUE pairs. The data sets
    whose names begin with miniworld are generated, so the first example runs without any download.

    Examples:

        dearli plan --config-file configs/miniworld/m2f_lang.yaml
        dearli train --config-file configs/miniworld/m2f_lang.yaml
        dearli train --config-file configs/miniworld/m2f_lang.yaml SOLVER.MAX_ITER 1000 OUTPUT_DIR output/longer
        dearli train --help
    """


for _command in (
    train,
    evaluate,
    predict,
    video,
    export,
    pseudo_label,
    suggest,
    report,
    serve,
    plan,
    reproduce,
    masks,
    prepare,
    data,
    weights,
    checkpoint,
    keys,
    demo,
    env,
    completion,
):
    dearli.add_command(_command)
for _method in methods().values():
    _method.add_commands(dearli)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `dearli`; returns the exit status. `argv` None: the arguments of the process."""
    return run(dearli, argv, "dearli")
