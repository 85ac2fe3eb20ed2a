"""The checks before training starts."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..data.build import labeled_dicts
from ..data.overlap import check_overlap, check_roles
from ..data.sharing import look_once
from ..data.validation import validate_dataset
from ..errors import ConfigError, DatasetError
from ..masks.storage import MaskFolder
from ..weight_list import in_place_of_file
from .checkpoints import RunCheckpoints
from .trackers import check_trackers

logger = logging.getLogger(__name__)


def check_run(cfg: CfgNode, resume: bool) -> None:
    """Checks everything that can be known to fail before training starts.

    Raises:
        ConfigError, DatasetError.
    """
    check_batches(cfg, comm.get_world_size())
    if not (cfg.DATASETS.TRAIN or cfg.DATASETS.SOURCE):
        raise DatasetError("DATASETS.TRAIN names no data set, nor does DATASETS.SOURCE")
    check_fresh(cfg, resume)
    check_trackers(cfg)
    if cfg.SSL.TEACHER_WEIGHTS and not Path(cfg.SSL.TEACHER_WEIGHTS).is_file():
        advice = in_place_of_file(cfg.SSL.TEACHER_WEIGHTS)
        raise ConfigError(f"SSL.TEACHER_WEIGHTS: no file {cfg.SSL.TEACHER_WEIGHTS}{advice}")
    if cfg.DATASETS.UNLABELED and cfg.SSL.START >= cfg.SOLVER.MAX_ITER:
        logger.warning(
            "SSL.START %d is not below SOLVER.MAX_ITER %d: unlabelled images take no part",
            cfg.SSL.START,
            cfg.SOLVER.MAX_ITER,
        )
    check_datasets(cfg)


def check_batches(cfg: CfgNode, processes: int) -> None:
    """Checks that batches can be shared out, and that partners of mixed images come from the same process.

    Raises:
        ConfigError: a batch is no multiple of the processes, or each has only one unlabelled image and mixes it.
    """
    for key, batch, used in (
        ("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.TRAIN),
        ("SSL.IMS_PER_BATCH", cfg.SSL.IMS_PER_BATCH, cfg.DATASETS.UNLABELED),
        ("SSL.SOURCE_IMS_PER_BATCH", cfg.SSL.SOURCE_IMS_PER_BATCH, cfg.DATASETS.SOURCE),
    ):
        if used and batch % processes:
            raise ConfigError(f"{key} {batch} is no multiple of the {processes} processes")
    images = cfg.SSL.IMS_PER_BATCH // processes
    if cfg.DATASETS.UNLABELED and cfg.SSL.CUTMIX and images < 2:
        on = f" on {processes} processes" if processes > 1 else ""
        raise ConfigError(
            f"SSL.MIX {cfg.SSL.MIX} needs two unlabelled images a process, but SSL.IMS_PER_BATCH {cfg.SSL.IMS_PER_BATCH}{on} "
            "gives one, which has no partner; raise SSL.IMS_PER_BATCH, use fewer processes, or set SSL.CUTMIX 0.0 to leave "
            "mixing out"
        )


def check_fresh(cfg: CfgNode, resume: bool) -> None:
    """Raises `ConfigError` if OUTPUT_DIR holds a run that is not to be resumed; touches nothing."""
    if not resume and RunCheckpoints(cfg.OUTPUT_DIR, 1).last() is not None:
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} already holds a run; --resume continues it, or choose another folder"
        )


def check_datasets(cfg: CfgNode) -> None:
    """Validates every data set that the config names and logs what is in it.

    Raises:
        ConfigError, DatasetError.
    """
    check_roles(cfg)
    look_once([*cfg.DATASETS.TRAIN, *cfg.DATASETS.SOURCE, *cfg.DATASETS.UNLABELED])
    classes = None if cfg.MODEL.CLASSIFIER == "none" else cfg.MODEL.NUM_CLASSES
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.SOURCE, *cfg.DATASETS.TEST)):
        logger.info("checking the files of %s ...", name)
        logger.info("%s", validate_dataset(name, classes))
    for name in cfg.DATASETS.UNLABELED:
        logger.info("checking the files of %s ...", name)
        logger.info("%s", validate_dataset(name))
    check_overlap(cfg)
    if cfg.DATASETS.MASKS:
        logger.info("%s", MaskFolder(cfg.DATASETS.MASKS).check(labeled_dicts(cfg)))
