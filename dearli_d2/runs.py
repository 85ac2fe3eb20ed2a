"""A training or an evaluation as a whole: its folder, its log, its checks, its processes."""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from .checkpoint import load_content
from .config.run_sections import Ranks
from .data.catalog import class_source, taxonomy_of
from .data.custom import register_custom
from .data.inspection import inspect_custom, write_contact_sheet
from .data.listing import forget
from .data.overlap import check_roles
from .data.taxonomy import Taxonomy
from .data.validation import validate_dataset
from .engine import evaluation
from .engine.agreement import check_data_alike, check_settings_alike
from .engine.checks import check_fresh
from .engine.launch import gpu_of, launch, run_started
from .engine.run_folder import FolderLock, check_writable
from .engine.trainer import DualStreamTrainer
from .env import report as environment_report
from .environment import Started, started_by, waiting_tasks
from .errors import ConfigError
from .files import write_atomically
from .modeling import build_model
from .reporting import log_thread_error, report_dead_rank
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
    if comm.get_world_size() > 1:
        own = comm.get_rank(), comm.get_world_size(), os.getpid(), socket.gethostname()
        logger.info("rank %d of %d: process %d on %s", *own)
    if comm.is_main_process():
        logger.info("environment:\n%s", environment_report())
        logger.info("command: %s", _command(sys.argv))


def _command(argv: Sequence[str]) -> str:
    """The command line of the process, as it can be typed."""
    program = Path(argv[0]).name
    return shlex.join([*(("python", "-m", "dearli_d2") if program == "__main__.py" else (program,)), *argv[1:]])


def _forget_logs() -> None:
    """Forgets the log files of an earlier run in this process."""
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


def train(cfg: CfgNode, resume: bool = False) -> Path:
    """Trains the model of a config, in this process; `dearli train` calls it in each of its processes.

    A start that is refused leaves what a run has written in OUTPUT_DIR.

    Args:
        cfg: from `get_config`.
        resume: continue the run in OUTPUT_DIR; without a run there, start one.

    Returns:
        OUTPUT_DIR, which holds `config.yaml`, `model_final.pth`, scores, pictures and the log.

    Raises:
        DearliError: OUTPUT_DIR is in use or holds a run, the data are faulty, weights do not fit, the losses are not finite.
    """
    with run_folder(cfg, resume=resume):
        trainer = DualStreamTrainer(cfg, resume=resume)
        if cfg.DATASETS.CUSTOM.ROOT and comm.is_main_process():
            sheet = Path(cfg.OUTPUT_DIR) / "data.png"
            write_contact_sheet(sheet)
            logger.info("pictures of own data: %s", sheet)
        trainer.train()
    return Path(cfg.OUTPUT_DIR)


def evaluate(cfg: CfgNode) -> dict[str, float]:
    """Evaluates MODEL.WEIGHTS on DATASETS.TEST, in this process; `dearli eval` calls it in each of its processes.

    Args:
        cfg: from `get_config`.

    Returns:
        Scores in percent, such as "panoptic/PQ" and "semantic/mIoU". The name of the data set stands before them where there
        are several, "teacher/" before those of the teacher with TEST.WEIGHTS both. In processes other than the first {}.

    Raises:
        ConfigError: MODEL.WEIGHTS or DATASETS.TEST is empty.
        DearliError: OUTPUT_DIR is in use, the data are faulty, weights do not fit, or the data sets have other classes than
            the weights were made for.
    """
    with run_folder(cfg):
        return evaluate_weights(cfg)


@contextmanager
def run_folder(cfg: CfgNode, resume: bool | None = None) -> Iterator[None]:
    """OUTPUT_DIR, locked and checked, with the log files open. `resume` is for a training, None for an evaluation."""
    _forget_logs()
    started = started_by(os.environ)
    if started is not None and comm.get_world_size() == 1:
        raise ConfigError(
            f"{started.by} has started {started.world} processes that are not joined; let it start `dearli train`, `dearli eval` or "
            "train_net.py, or call torch.distributed.init_process_group first"
        )
    check_settings_alike(cfg)
    with FolderLock(cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext():
        if resume is not None:
            check_fresh(cfg, resume)
        comm.synchronize()
        set_up(cfg)
        forget()  # files may have changed since an earlier run of this process
        _register_custom(cfg)
        yield


def evaluate_weights(cfg: CfgNode) -> dict[str, float]:
    """`evaluate` in a folder that is ready."""
    path = cfg.MODEL.WEIGHTS
    if not path:
        raise ConfigError("evaluation needs weights: --weights FILE, or MODEL.WEIGHTS FILE")
    if not cfg.DATASETS.TEST:
        raise ConfigError("evaluation needs DATASETS.TEST, for example DATASETS.TEST \"('miniworld_val',)\"")
    check_roles(cfg)
    check_test_data(cfg)
    check_data_alike(cfg, ("TEST",))
    content = read_file(path)
    taxonomy, source = Taxonomy.of_checkpoint(content, path), path
    if taxonomy is None:
        taxonomy, source = taxonomy_of(class_source(cfg)), class_source(cfg)
    evaluation.check_test_classes(cfg, taxonomy, source)
    if comm.is_main_process():
        note = Path(cfg.OUTPUT_DIR) / "evaluation" / "config.yaml"  # the run's own stays
        write_atomically(note, lambda temporary: temporary.write_text(cfg.dump()))
    logger.info("building the model ...")
    model = build_model(cfg, taxonomy, load_backbone=False)
    first, *rest = ("student", "teacher") if cfg.TEST.WEIGHTS == "both" else (cfg.TEST.WEIGHTS,)
    load_content(model, content, path, which=first)
    scores = evaluation.evaluate(cfg, model)
    for which in rest:
        load_content(model, content, path, which=which)
        scores |= evaluation.evaluate(cfg, model, label=which)
    return scores


def check_test_data(cfg: CfgNode) -> None:
    """Checks the files of DATASETS.TEST. Raises `DatasetError`."""
    for name in cfg.DATASETS.TEST:
        logger.info("checking the files of %s ...", name)
        logger.info("%s", validate_dataset(name, cfg.MODEL.NUM_CLASSES))


@dataclass(frozen=True)
class Processes:
    """The processes that take part in a run.

    Attributes:
        local: processes of this machine: one a GPU, or of the CPU.
        machines, machine: number of machines, and which of them this is, from 0 on.
        url: where machine 0 waits for the others; only for several machines.
        started: the place of this process, where torchrun or srun has started all of them; None = this one starts them.
    """

    local: int = 1
    machines: int = 1
    machine: int = 0
    url: str = "auto"
    started: Started | None = None

    @classmethod
    def of(cls, env: Mapping[str, str], local: int | None, machines: int, machine: int, url: str) -> Processes:
        """The processes that the options of a command and the environment ask for.

        Args:
            env: the environment of the process.
            local: None = not given.
            machines, machine, url: see `Processes`.

        Raises:
            ConfigError: they contradict each other.
        """
        started, own = started_by(env), cls(1 if local is None else local, machines, machine, url)
        if started is None or (started.by == "srun" and machines > 1):  # srun starts the command once on each machine
            tasks = waiting_tasks(env)
            if tasks > 1 and local is None and machines == 1:
                logger.warning(
                    "this is one process in the shell of a SLURM job of %d tasks: put srun before the command to start all of "
                    "them, or say --num-gpus N",
                    tasks,
                )
            return own
        given = {"--num-gpus": own.local, "--num-machines": machines, "--machine-rank": machine, "--dist-url": url}
        unlike = [
            f"{name} {given[name]}"
            for name, usual in zip(given, (1, 1, 0, "auto"), strict=True)
            if given[name] != usual
        ]
        if unlike:
            raise ConfigError(
                f"{started.by} has started {started.world} processes, one for each GPU; leave out {' '.join(unlike)}, or start "
                f"the command without {started.by}"
            )
        return replace(own, started=started)

    def check(self, device: str, cpu_is_chosen: bool) -> None:
        """Raises `ConfigError` for what this machine cannot do.

        Args:
            device: MODEL.DEVICE.
            cpu_is_chosen: the user has named the device, so that several processes of the CPU are meant.
        """
        if self.started is not None:
            if device == "cuda":
                gpu_of(self.started)
            elif self.started.rank == 0 and not cpu_is_chosen:
                logger.warning("there is no GPU: %d processes share the CPU", self.started.world)
            return
        local, machines, machine, url = self.local, self.machines, self.machine, self.url
        if local < 1:
            raise ConfigError(f"--num-gpus {local} must be 1 or more; without a GPU, MODEL.DEVICE cpu")
        if machines < 1:
            raise ConfigError(f"--num-machines {machines} must be 1 or more")
        if not 0 <= machine < machines:
            raise ConfigError(f"--machine-rank {machine} must be in 0..{machines - 1} for --num-machines {machines}")
        if machines > 1 and not re.fullmatch(r"tcp://.+:\d+|file:///.+", url):
            raise ConfigError(
                f"--num-machines {machines} needs --dist-url, for example tcp://10.0.0.1:29500, not {url}"
            )
        if local > 1 and device == "cpu" and not cpu_is_chosen:
            raise ConfigError(
                f"--num-gpus {local} but there is no GPU (MODEL.DEVICE cpu asks for that many CPU processes)"
            )
        if device == "cuda" and local > torch.cuda.device_count():
            raise ConfigError(f"--num-gpus {local} but this machine has {torch.cuda.device_count()}")


def start(job: Callable[[CfgNode], Any], cfg: CfgNode, processes: Processes) -> int:
    """Runs a job in every process, and waits for its end. A process that torchrun or srun started ends here.

    Args:
        job: such as `train`; it can be pickled.

    Returns:
        The exit status.
    """
    device, limits, started = cfg.MODEL.DEVICE, Ranks.of(cfg), processes.started
    if started is not None:
        run_started(started, job, (cfg,), device, limits)
    of_machine = processes.local, processes.machines, processes.machine, processes.url
    try:
        launch(job, *of_machine, (cfg,), device, limits)
    except ProcessExitedException as error:
        return report_dead_rank(error, processes.machine * processes.local + error.error_index, cfg.OUTPUT_DIR)
    return 0
