"""Behind `train_net.py`: arguments, logging, launch, and errors without a stack trace."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from .checkpoint import load_weights
from .config import get_config
from .data.custom import describe, register_custom, write_contact_sheet
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
        sheet = Path(cfg.OUTPUT_DIR) / "data.png"
        write_contact_sheet(sheet)
        logger.info("own data in %s (pictures: %s)\n%s", custom.ROOT, sheet, describe(custom))


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


def main(argv: list[str] | None = None) -> int:
    parser = default_argument_parser()
    parser.description = "Train, or with --eval-only evaluate, the model of a config file."
    args = parser.parse_args(argv)

    def command() -> int:
        if not args.config_file:
            raise ConfigError("--config-file is missing, for example --config-file configs/miniworld/m2f_lang.yaml")
        cfg = get_config(args.config_file, [o for o in args.opts if o != "--"])
        processes = max(args.num_gpus, 1)
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
