"""Trains the model of a config file, or evaluates a trained one.

A run writes its log, checkpoints, scores and pictures to OUTPUT_DIR. A folder that holds a run already is refused;
--resume continues that run exactly. KEY VALUE pairs at the end replace values of the config.

Examples:

    python train_net.py --config-file configs/miniworld/m2f_lang.yaml
    python train_net.py --config-file configs/miniworld/m2f_lang.yaml --resume
    python train_net.py --config-file configs/miniworld/m2f_lang.yaml SOLVER.MAX_ITER 1000 OUTPUT_DIR output/longer
    python train_net.py --config-file configs/miniworld/m2f_lang.yaml --eval-only \\
        MODEL.WEIGHTS output/miniworld/m2f_lang/model_final.pth
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from .arguments import add_config_file, add_overrides, command_parser
from .checkpoint import load_weights
from .config import get_config
from .data.custom import register_custom
from .data.inspection import inspect_custom, write_contact_sheet
from .data.validation import validate_dataset
from .engine.evaluation import evaluate
from .engine.trainer import DualStreamTrainer, check_writable
from .env import report as environment_report
from .errors import ConfigError, DearliError
from .files import write_atomically
from .modeling import build_model

logger = logging.getLogger(__name__)


def report_errors(command: Callable[[], int]) -> int:
    """Runs a command; errors meant for users end it with status 2 and one line."""
    try:
        return command()
    except DearliError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def set_up(cfg: CfgNode) -> None:
    """Output folder, log files, the resolved config in it."""
    check_writable(cfg.OUTPUT_DIR)
    setup_logger.cache_clear()
    for name in ("dearli_d2", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()  # of an earlier run in this process
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    if comm.is_main_process():
        logger.info("environment:\n%s", environment_report())
        path = Path(cfg.OUTPUT_DIR) / "config.yaml"
        write_atomically(path, lambda temporary: temporary.write_text(cfg.dump()))


def _set_up_custom(cfg: CfgNode) -> None:
    """Registers own data and shows what was found."""
    custom = cfg.DATASETS.CUSTOM
    if not custom.ROOT:
        return
    # the others of this machine find the converted masks in the cache
    for turn in (comm.get_local_rank() == 0, comm.get_local_rank() != 0):
        if turn:
            register_custom(custom)
        comm.synchronize()
    if comm.is_main_process():
        found, sheet = inspect_custom(custom), Path(cfg.OUTPUT_DIR) / "data.png"
        logger.info("own data in %s (pictures: %s)\n%s", custom.ROOT, sheet, found)
        write_contact_sheet(sheet)


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """One process of a training or an evaluation."""
    set_up(cfg)
    _set_up_custom(cfg)
    if not args.eval_only:
        DualStreamTrainer(cfg, resume=args.resume).train()
        return
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("--eval-only needs MODEL.WEIGHTS, for example MODEL.WEIGHTS output/.../model_final.pth")
    for name in cfg.DATASETS.TEST:
        validate_dataset(name, cfg.MODEL.NUM_CLASSES)
    model = build_model(cfg, load_backbone=False)
    first, *rest = ("student", "teacher") if cfg.TEST.WEIGHTS == "both" else (cfg.TEST.WEIGHTS,)
    load_weights(model, cfg.MODEL.WEIGHTS, which=first)
    evaluate(cfg, model)
    for which in rest:
        load_weights(model, cfg.MODEL.WEIGHTS, which=which)
        evaluate(cfg, model, label=which)


def _run_rank(cfg: CfgNode, args: argparse.Namespace) -> None:
    if comm.get_world_size() == 1:
        run(cfg, args)
        return
    # the launcher would show a worker's exception as a stack trace of its own
    status = report_errors(lambda: run(cfg, args) or 0)
    if status:
        os._exit(status)


def parser() -> argparse.ArgumentParser:
    """The options of `train_net.py`."""
    parser = command_parser("python train_net.py", __doc__)
    add_config_file(parser, required=False)
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR; without one, start it")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST, train nothing"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs of this machine; default: 1, or the CPU"
    )
    parser.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="machines that train together; default: 1"
    )
    parser.add_argument("--machine-rank", type=int, default=0, metavar="I", help="number of this machine, from 0 on")
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where machine 0 waits for the others, such as tcp://10.0.0.1:29500; only for several machines",
    )
    add_overrides(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)

    def command() -> int:
        if not args.config_file:
            raise ConfigError("--config-file is missing, for example --config-file configs/miniworld/m2f_lang.yaml")
        cfg = get_config(args.config_file, [o for o in args.opts if o != "--"])
        processes = max(args.num_gpus, 1)
        if args.num_machines > 1 and args.dist_url == "auto":
            raise ConfigError(
                f"--num-machines {args.num_machines} needs --dist-url, for example --dist-url tcp://10.0.0.1:29500"
            )
        if processes > 1 and cfg.MODEL.DEVICE == "cpu" and "MODEL.DEVICE" not in args.opts:
            raise ConfigError(
                f"--num-gpus {processes} but there is no GPU (MODEL.DEVICE cpu asks for that many CPU processes)"
            )
        if cfg.MODEL.DEVICE == "cuda" and processes > torch.cuda.device_count():
            raise ConfigError(f"--num-gpus {processes} but this machine has {torch.cuda.device_count()}")
        try:
            launch(_run_rank, processes, args.num_machines, args.machine_rank, args.dist_url, (cfg, args))
        except ProcessExitedException as error:
            return error.exit_code  # the worker has said why
        return 0

    return report_errors(command)


if __name__ == "__main__":  # `python -m dearli_d2.cli`: train_net.py for an installed package
    sys.exit(main())
