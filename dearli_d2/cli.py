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
import re
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from .arguments import add_config_file, add_overrides, command_parser
from .checkpoint import load_content
from .config import get_config
from .data.catalog import class_source, taxonomy_of
from .data.custom import register_custom
from .data.inspection import inspect_custom, write_contact_sheet
from .data.overlap import check_roles
from .data.taxonomy import Taxonomy
from .data.validation import validate_dataset
from .engine.evaluation import check_test_classes, evaluate
from .engine.launch import launch
from .engine.run_folder import FolderLock, check_writable
from .engine.trainer import DualStreamTrainer, check_fresh
from .env import report as environment_report
from .errors import ConfigError
from .files import write_atomically
from .modeling import build_model
from .reporting import log_thread_error, report_dead_rank, report_errors
from .weights import read_file

logger = logging.getLogger(__name__)

_LOGGERS = "dearli_d2", "detectron2", "fvcore"


def set_up(cfg: CfgNode) -> None:
    """Output folder and log files."""
    check_writable(cfg.OUTPUT_DIR)
    # a full disk would print stack traces, for every line and of TensorBoard's thread
    logging.raiseExceptions, threading.excepthook = False, log_thread_error
    _forget_logs()
    for name in _LOGGERS:
        # the file itself: detectron2 would take a folder "run.txt" for it
        setup_logger(os.path.join(cfg.OUTPUT_DIR, "log.txt"), distributed_rank=comm.get_rank(), name=name)
    if comm.is_main_process():
        logger.info("environment:\n%s", environment_report())


def _forget_logs() -> None:
    """Of an earlier run in this process."""
    setup_logger.cache_clear()
    for name in _LOGGERS:
        logging.getLogger(name).handlers.clear()


def _register_custom(cfg: CfgNode) -> None:
    custom = cfg.DATASETS.CUSTOM
    if not custom.ROOT:
        return
    logger.info("reading own data in %s ...", custom.ROOT)
    # the others of this machine find the converted masks in the cache
    for turn in (comm.get_local_rank() == 0, comm.get_local_rank() != 0):
        if turn:
            register_custom(custom)
        comm.synchronize()
    if comm.is_main_process():
        logger.info("own data in %s\n%s", custom.ROOT, inspect_custom(custom))


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """One process of a training or an evaluation. A start that is refused leaves what a run has written in OUTPUT_DIR."""
    _forget_logs()
    with FolderLock(cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext():
        if not args.eval_only:
            check_fresh(cfg, args.resume)
        comm.synchronize()
        set_up(cfg)
        _register_custom(cfg)
        if args.eval_only:
            evaluate_weights(cfg)
        else:
            trainer = DualStreamTrainer(cfg, resume=args.resume)
            if cfg.DATASETS.CUSTOM.ROOT and comm.is_main_process():
                sheet = Path(cfg.OUTPUT_DIR) / "data.png"
                write_contact_sheet(sheet)
                logger.info("pictures of own data: %s", sheet)
            trainer.train()


def evaluate_weights(cfg: CfgNode) -> None:
    """Evaluates MODEL.WEIGHTS on DATASETS.TEST.

    Raises:
        ConfigError: one of them is empty. DatasetError: the data sets have other classes than the weights were made for.
    """
    path = cfg.MODEL.WEIGHTS
    if not path:
        raise ConfigError("--eval-only needs MODEL.WEIGHTS, for example MODEL.WEIGHTS output/.../model_final.pth")
    if not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only needs DATASETS.TEST, for example DATASETS.TEST \"('miniworld_val',)\"")
    check_roles(cfg)
    for name in cfg.DATASETS.TEST:
        logger.info("checking the files of %s ...", name)
        logger.info("%s", validate_dataset(name, cfg.MODEL.NUM_CLASSES))
    content = read_file(path)
    taxonomy, source = Taxonomy.of_checkpoint(content, path), path
    if taxonomy is None:
        taxonomy, source = taxonomy_of(class_source(cfg)), class_source(cfg)
    check_test_classes(cfg, taxonomy, source)
    if comm.is_main_process():
        note = Path(cfg.OUTPUT_DIR) / "evaluation" / "config.yaml"  # the run's own stays
        write_atomically(note, lambda temporary: temporary.write_text(cfg.dump()))
    logger.info("building the model ...")
    model = build_model(cfg, taxonomy, load_backbone=False)
    first, *rest = ("student", "teacher") if cfg.TEST.WEIGHTS == "both" else (cfg.TEST.WEIGHTS,)
    load_content(model, content, path, which=first)
    evaluate(cfg, model)
    for which in rest:
        load_content(model, content, path, which=which)
        evaluate(cfg, model, label=which)


def _run_rank(cfg: CfgNode, args: argparse.Namespace) -> None:
    if comm.get_world_size() == 1:
        run(cfg, args)
        return
    # the launcher would show a worker's exception as a stack trace of its own
    status = report_errors(lambda: run(cfg, args) or 0)
    if status:
        sys.stdout.flush()
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
        processes = args.num_gpus
        if processes < 1:
            raise ConfigError(f"--num-gpus {processes} must be 1 or more; without a GPU, MODEL.DEVICE cpu")
        if args.num_machines < 1:
            raise ConfigError(f"--num-machines {args.num_machines} must be 1 or more")
        if not 0 <= args.machine_rank < args.num_machines:
            raise ConfigError(
                f"--machine-rank {args.machine_rank} must be in 0..{args.num_machines - 1} for --num-machines {args.num_machines}"
            )
        if args.num_machines > 1 and not re.fullmatch(r"tcp://.+:\d+|file:///.+", args.dist_url):
            raise ConfigError(
                f"--num-machines {args.num_machines} needs --dist-url, for example tcp://10.0.0.1:29500, not "
                f"{args.dist_url}"
            )
        if processes > 1 and cfg.MODEL.DEVICE == "cpu" and "MODEL.DEVICE" not in args.opts:
            raise ConfigError(
                f"--num-gpus {processes} but there is no GPU (MODEL.DEVICE cpu asks for that many CPU processes)"
            )
        if cfg.MODEL.DEVICE == "cuda" and processes > torch.cuda.device_count():
            raise ConfigError(f"--num-gpus {processes} but this machine has {torch.cuda.device_count()}")
        if cfg.MODEL.DEVICE == "cpu" and processes * args.num_machines > 1:
            # where it sees a GPU, detectron2 joins processes by NCCL, which takes no tensor on the CPU
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        try:
            launch(_run_rank, processes, args.num_machines, args.machine_rank, args.dist_url, (cfg, args))
        except ProcessExitedException as error:
            return report_dead_rank(error, cfg.OUTPUT_DIR)
        return 0

    return report_errors(command)


if __name__ == "__main__":  # `python -m dearli_d2.cli`: train_net.py for an installed package
    sys.exit(main())
