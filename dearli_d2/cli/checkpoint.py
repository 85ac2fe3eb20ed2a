"""`dearli checkpoint`."""

from __future__ import annotations

import click

from ..methods import methods
from .base import Group, config_file, overrides

PARTS = {part: text for method in methods().values() for part, text in method.exports.items()}


@click.group(cls=Group)
def checkpoint() -> None:
    """Compares weight files with models, and makes small files of checkpoints.

    Examples:

        dearli checkpoint verify --config-file configs/miniworld/m2f_lang.yaml \\
            --weights output/miniworld/m2f_lang/model_final.pth
        dearli checkpoint export --weights output/miniworld/dear/model_final.pth --out model.pth --which teacher
    """


@checkpoint.command(one_of=("weights", "names"))
@config_file
@click.option("--weights", metavar="FILE", help="Weight file: .pth, .pt, .bin, .safetensors, .pkl.")
@click.option("--names", metavar="FILE", help="Instead of weights a JSON file {name: shape}.")
@overrides
def verify(config_file: str, weights: str | None, names: str | None, overrides: tuple[str, ...]) -> int:
    """Compares a weight file with the model of a config.

    The exit status is 1 unless all names and shapes of the file fit.

    Example:

        dearli checkpoint verify --config-file configs/miniworld/m2f_lang.yaml \\
            --weights output/miniworld/m2f_lang/model_final.pth
    """
    from ..checkpoint import verify

    report = verify(config_file, weights, names, overrides)
    print(report)
    return 0 if report.complete else 1


@checkpoint.command()
@click.option("--weights", metavar="FILE", required=True, help="Checkpoint of a run.")
@click.option("--out", metavar="FILE", required=True, help="File to write, .pth.")
@click.option(
    "--which",
    type=click.Choice(("student", "teacher", *PARTS)),
    default="student",
    show_default=True,
    help="Whose weights. " + " ".join(f"{part}: {text}." for part, text in PARTS.items()),
)
def export(weights: str, out: str, which: str) -> None:
    """Writes what prediction needs of a checkpoint, without optimiser and teacher.

    Example:

        dearli checkpoint export --weights output/miniworld/dear/model_final.pth --out model.pth --which teacher
    """
    from ..checkpoint import export

    print(f"{out}: {export(weights, out, which)} tensors of the {which}")
