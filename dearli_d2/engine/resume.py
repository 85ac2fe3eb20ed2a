"""What a resumed run must have in common with the one that it continues, and what may change (docs/resume.md)."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config import all_keys
from ..config.schema import plain
from ..data.catalog import ImageFolder, class_source, dataset_dicts, dataset_records, source_of
from ..data.taxonomy import Taxonomy, named, same_classes
from ..errors import ConfigError, DatasetError, WeightsError
from ..methods import method_of, methods
from .checkpoints import RunCheckpoints
from .state import NEEDED

logger = logging.getLogger(__name__)

# what no result depends on
FREE = {
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.DEFORM_ATTN_IMPL",
    "MODEL.COMPILE",
    "MODEL.BACKBONE.CHECKPOINT_BLOCKS",
    "DATASETS.CUSTOM.ROOT",  # the images themselves are compared
    "DATALOADER.NUM_WORKERS",
    "SOLVER.EPOCH_OF",  # SOLVER.MAX_ITER has what they come to
    "SOLVER.EPOCH_PROCESSES",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.KEEP_CHECKPOINTS",
    "SOLVER.MAX_BAD_STEPS",
    "SSL.PICTURE_PERIOD",
    "SSL.MONITOR_PERIOD",
    "SSL.MONITOR_IMAGES",
    "TEST.EVAL_PERIOD",
    "TEST.PICTURES",
    "LOG.WANDB",
    "LOG.MLFLOW",
    "LOG.PROJECT",
    "RANKS.START_TIMEOUT",
    "RANKS.DEAD_TIMEOUT",
    "RANKS.HANG_TIMEOUT",
}
_LENGTH = "SOLVER.MAX_ITER"  # may change too: the learning rate then follows the new length
_UNLABELED = ("DATASETS.UNLABELED", "SSL.", "MODEL.ENSEMBLE.")  # of no effect before unlabelled images take part
_SCORING = ("DATASETS.TEST", "TEST.", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "MODEL.ENSEMBLE.AT_INFERENCE", "MODEL.ENSEMBLE.SEEN",
            "MODEL.ENSEMBLE.ALPHA_UNSEEN")  # fmt: skip
_STREAMS = ("TRAIN", "SOURCE", "UNLABELED")


def scoring_settings(cfg: CfgNode) -> dict[str, Any]:
    """The keys that the scores of an evaluation depend on beside the weights."""
    return {key: value for key, value in leaves(cfg).items() if key.startswith(_SCORING) and key not in FREE}


def check_resumed(state: dict[str, Any], cfg: CfgNode, taxonomy: Taxonomy | None, checkpoints: RunCheckpoints) -> None:
    """Checks that settings, classes and images of a run are those of the checkpoint that it continues.

    A run without unlabelled images may go on with them up to SSL.START, from which on they count; one with them needs them.

    Args:
        state: content of the checkpoint.
        taxonomy: of the run, None where it has none.
        checkpoints: where it comes from.

    Raises:
        WeightsError, ConfigError, DatasetError.
    """
    check_complete(state, checkpoints.last() or checkpoints.folder)
    folder, done, start = cfg.OUTPUT_DIR, state["iteration"], cfg.SSL.START
    had, has = bool(CfgNode.load_cfg(state["config"]).DATASETS.UNLABELED), bool(cfg.DATASETS.UNLABELED)
    if had and not has:
        raise ConfigError(
            f"OUTPUT_DIR {folder} holds a run with unlabelled images; resume it with its DATASETS.UNLABELED"
        )
    if has and not had and done > start:
        raise ConfigError(
            f"OUTPUT_DIR {folder} holds a run without unlabelled images at iteration {done}, after SSL.START {start}; "
            "resume it without DATASETS.UNLABELED, or raise SSL.START"
        )
    check_settings(state, cfg, checkpoints.evaluated().get("settings"))
    saved = Taxonomy.of_checkpoint(state, f"the checkpoint in {folder}")
    if taxonomy is not None and saved is not None:
        found = named(cfg, taxonomy)
        same_classes(saved, found, f"the run in {folder}", class_source(cfg), synonyms=True)
    check_data(state.get("data", {}), cfg)


def check_complete(state: dict[str, Any], path: Path) -> None:
    """Raises `WeightsError` if the content of a checkpoint file lacks what a run cannot go on without."""
    missing = [key for key in ("model", *NEEDED, "iteration", "config") if key not in state]
    if missing:
        raise WeightsError(
            f"{path} cannot be resumed from: it lacks {', '.join(missing)}, as exported weights do; start another run from it "
            "with MODEL.WEIGHTS"
        )


def check_settings(state: dict[str, Any], cfg: CfgNode, scored_with: dict[str, Any] | None) -> None:
    """Compares the settings of a checkpoint with those of the run that is to continue it.

    Args:
        state: content of the checkpoint.
        scored_with: `scoring_settings` of the last evaluation, None where there was none.

    Raises:
        ConfigError: settings differ that the result depends on, with each key and both values.
    """
    saved_cfg = CfgNode.load_cfg(state["config"])
    saved, here = leaves(saved_cfg), leaves(cfg)
    free = FREE | {_LENGTH, *method_of(cfg).memory_keys} | _of_other_methods(cfg)
    if not saved_cfg.DATASETS.UNLABELED and cfg.DATASETS.UNLABELED and state["iteration"] <= cfg.SSL.START:
        free |= {key for key in here if key.startswith(_UNLABELED)}
    free |= set(scoring_settings(cfg))  # compared with those of the last evaluation
    differences = _differences(saved, here, (key for key in here if key not in free and key in saved))
    if scored_with is not None:
        differences += _differences(scored_with, scoring_settings(cfg), scored_with)
    if differences:
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run with other settings: {'; '.join(differences)}. Resume it with its own "
            f"({cfg.OUTPUT_DIR}/config.yaml has them), or start another run in another OUTPUT_DIR; docs/resume.md lists the "
            "keys that may change"
        )
    if saved[_LENGTH] != here[_LENGTH]:
        logger.warning(
            "SOLVER.MAX_ITER was %d and is %d: from iteration %d on the learning rate follows the new length",
            saved[_LENGTH],
            here[_LENGTH],
            state["iteration"],
        )


def _of_other_methods(cfg: CfgNode) -> set[str]:
    """The keys that only methods other than the config's read."""
    own = method_of(cfg)
    theirs = {section for method in methods().values() for section in method.options} - set(own.options)
    return {entry.name for section in theirs for entry in section.entries()}


def describe_data(cfg: CfgNode, keys: Sequence[str] = _STREAMS) -> dict[str, dict[str, list[Any]]]:
    """{"TRAIN": {data set: [number of images, digest of their names and sizes in order]}, ...} of what is trained on."""
    return {key: {name: _digest(name) for name in cfg.DATASETS[key]} for key in keys if cfg.DATASETS[key]}


def check_data(saved: dict[str, dict[str, list[Any]]], cfg: CfgNode) -> None:
    """Raises `DatasetError` if a data set has other images than in `saved`, a `describe_data` of the run's beginning."""
    for key, found in describe_data(cfg).items():
        for name, here in found.items():
            then = saved.get(key, {}).get(name, here)
            if len(then) < len(here):  # an older version took the sizes of images in pixels
                here = _digest_of_pixels(name)
            if here != then:
                before, count = then[0], here[0]
                what = f"{before} images when the run began, {count} now" if before != count else "other images now"
                raise DatasetError(
                    f"DATASETS.{key} {name}: {what}; a run continues with the images that it began with. Start another run, "
                    "from these weights with MODEL.WEIGHTS"
                )


def _digest(name: str) -> list[Any]:
    """Number and digest; "bytes" where sizes of files, not of images, are in it."""
    records = dataset_records(name)
    mark = ["bytes"] if isinstance(source_of(name), ImageFolder) else []
    return [len(records), records.fingerprint(), *mark]


def _digest_of_pixels(name: str) -> list[Any]:
    dicts = dataset_dicts(name)
    digest = hashlib.sha256()
    for d in dicts:
        digest.update(f"{Path(d['file_name']).name} {d['width']} {d['height']}\n".encode())
    return [len(dicts), digest.hexdigest()[:16]]


def leaves(cfg: CfgNode) -> dict[str, Any]:
    """{key: value} of every key of a config, with lists in place of tuples."""
    result = {}
    for key in all_keys(cfg):
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        if not isinstance(value, CfgNode):
            result[key] = plain(value)
    return result


def _differences(saved: dict[str, Any], here: dict[str, Any], keys: Iterable[str]) -> list[str]:
    folders = (saved.get("OUTPUT_DIR"), here.get("OUTPUT_DIR"))
    return [
        f"{key} was {saved[key]!r}, is {here[key]!r}"
        for key in keys
        if key in here and saved[key] != here[key] and not _moved(saved[key], here[key], *folders)
    ]


def _moved(before: Any, now: Any, folder_before: str | None, folder: str | None) -> bool:
    """True for two paths that lie at the same place seen from the folder of the run, so that both were moved."""
    paths = [p for p in (before, now, folder_before, folder) if isinstance(p, str) and os.sep in p]
    if len(paths) < 4 or len({os.path.isabs(p) for p in paths}) > 1:
        return False
    return os.path.relpath(before, folder_before) == os.path.relpath(now, folder)
