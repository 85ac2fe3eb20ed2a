"""`dearli train`, `dearli eval`, and `train_net.py`, which is both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click

from .base import command, config_file, overrides


def _run_options(function: Callable) -> Callable:
    """The options of whatever runs in one process for each GPU, as detectron2 names them."""
    url = "Where machine 0 waits for the others, such as tcp://10.0.0.1:29500; only for several machines."
    for option in (
        overrides,
        click.option("--dist-url", metavar="URL", default="auto", help=url),
        click.option("--machine-rank", type=int, metavar="I", default=0, help="Number of this machine, from 0 on."),
        click.option(
            "--num-machines", type=int, metavar="N", default=1, help="Machines that work together; default: 1."
        ),
        click.option(
            "--num-gpus",
            type=int,
            metavar="N",
            help="GPUs of this machine; default: 1, or the CPU. Not with torchrun or srun.",
        ),
        config_file,
    ):
        function = option(function)
    return function


_resume = click.option("--resume", is_flag=True, help="Continue the run in OUTPUT_DIR; without one, start it.")


@command()
@_run_options
@_resume
def train(resume: bool, **options: Any) -> int:
    """Trains the model of a config file.

    The run writes its log, checkpoints, scores and pictures to the folder OUTPUT_DIR of the config. A folder that holds a run
    already is refused. With --resume the same command continues that run exactly.

    Examples:

        dearli train --config-file configs/miniworld/m2f_lang.yaml
        dearli train --config-file configs/miniworld/m2f_lang.yaml --resume
        dearli train --config-file configs/miniworld/m2f_lang.yaml SOLVER.MAX_ITER 1000 OUTPUT_DIR output/longer
        dearli train --config-file configs/ade20k/m2f_lang_convnext_b.yaml --num-gpus 2 DATASETS.PARTITION 1_128
    """
    return _start(**options, resume=resume)


@command("eval")
@_run_options
@click.option("--weights", metavar="FILE", help="Weights to evaluate; default: MODEL.WEIGHTS of the config.")
def evaluate(weights: str | None, overrides: tuple[str, ...], **options: Any) -> int:
    """Evaluates trained weights on the data sets DATASETS.TEST of a config file.

    Scores and pictures are written to the folder evaluation/ in OUTPUT_DIR. TEST.WEIGHTS teacher evaluates the teacher of a
    semi-supervised run, TEST.WEIGHTS both the teacher and the student.

    Example:

        dearli eval --config-file configs/miniworld/m2f_lang.yaml --weights output/miniworld/m2f_lang/model_final.pth
    """
    of_option = () if weights is None else ("MODEL.WEIGHTS", weights)
    return _start(**options, overrides=(*overrides, *of_option), evaluate_only=True)


@command()
@_run_options
@click.option(
    "--eval-only", is_flag=True, help="Evaluate MODEL.WEIGHTS on DATASETS.TEST, train nothing: as dearli eval."
)
@_resume
def train_net(resume: bool, eval_only: bool, **options: Any) -> int:
    """Trains the model of a config file as `dearli train` does, or evaluates it as `dearli eval` does.

    The options are those of detectron2's own train_net.py. `dearli train --help` explains what a run writes.

    Examples:

        python train_net.py --config-file configs/miniworld/m2f_lang.yaml
        python train_net.py --config-file configs/miniworld/m2f_lang.yaml --resume
        python train_net.py --config-file configs/miniworld/m2f_lang.yaml --eval-only \\
            MODEL.WEIGHTS output/miniworld/m2f_lang/model_final.pth
    """
    return _start(**options, resume=resume, evaluate_only=eval_only)


def _start(
    config_file: str,
    overrides: tuple[str, ...],
    num_gpus: int | None,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    resume: bool = False,
    evaluate_only: bool = False,
) -> int:
    import os

    from .. import runs
    from ..config import get_config

    cfg = get_config(config_file, overrides)
    processes = runs.Processes.of(os.environ, num_gpus, num_machines, machine_rank, dist_url)
    processes.check(cfg.MODEL.DEVICE, cpu_is_chosen="MODEL.DEVICE" in overrides)
    job = runs.evaluate if evaluate_only else partial(runs.train, resume=resume)
    return runs.start(job, cfg, processes)
