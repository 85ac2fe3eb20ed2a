"""Partition, training length and output folder: what follows from the line that starts an experiment.

`config.get_config` resolves them. Its result holds the full names of the data sets, SOLVER.MAX_ITER and OUTPUT_DIR. There
DATASETS.PARTITION is "" and SOLVER.EPOCHS is 0, so each fact has one place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..data.catalog import dataset_records, source_of, split_name
from ..data.partitions import NONE, PLACEHOLDER, PUBLISHED, WHOLE, describe, drawn, list_file, published_size
from ..errors import ConfigError, DatasetError

_KEYS = ("TRAIN", "SOURCE", "UNLABELED")
_FORMS = (
    f'a fraction (0.05), a number of images (n100), one of these with a seed (n100~3), a list file (.txt) or "{WHOLE}"'
)


def fill_partition(cfg: CfgNode, layers: Sequence[Collection[str]]) -> str:
    """Replaces the word PARTITION in the names of data sets by DATASETS.PARTITION, in place.

    Returns the partition, "" where no name has the word.

    Args:
        cfg: not frozen.
        layers: keys that each file and the command line give, in their order.

    Raises:
        ConfigError: a partition that is missing, unknown to one of the data sets, or of no effect.
    """
    datasets = cfg.DATASETS
    part: str = datasets.PARTITION
    wanting = {key: [name for name in datasets[key] if _wants(name)] for key in _KEYS}
    names = [name for key in _KEYS for name in wanting[key]]
    if not names:
        if part and _last(layers, "PARTITION") >= max(_last(layers, key) for key in _KEYS):
            raise ConfigError(
                f"DATASETS.PARTITION is {part!r}, but no name in DATASETS.TRAIN, SOURCE or UNLABELED has @{PLACEHOLDER}; write "
                f'NAME@{PLACEHOLDER} there, as configs/ade20k/dear_convnext_b.yaml does, or set it to ""'
            )
        datasets.PARTITION = ""
        return ""
    if not part:
        key = next(key for key in _KEYS if wanting[key])
        base = wanting[key][0].partition("@")[0]
        raise ConfigError(
            f"DATASETS.PARTITION is missing; DATASETS.{key} {wanting[key][0]} needs it; {describe(base)}; also allowed: {_FORMS}"
        )
    for name in names:
        _check(name.partition("@")[0], part)
    if part == NONE and not datasets.SOURCE:
        raise ConfigError(
            f"DATASETS.PARTITION {NONE} leaves no labelled image; without DATASETS.SOURCE nothing is learned"
        )
    for key in _KEYS:
        datasets[key] = type(datasets[key])(_filled(datasets[key], part))
    datasets.PARTITION = ""
    return part


def _last(layers: Sequence[Collection[str]], key: str) -> int:
    """Index of the last layer that gives DATASETS.`key`. Data of a later layer do not use the partition of an earlier one."""
    return max((i for i, keys in enumerate(layers) if f"DATASETS.{key}" in keys), default=-1)


def _wants(name: str) -> bool:
    return name.partition("@")[2].partition(":")[0] == PLACEHOLDER


def _filled(names: Iterable[str], part: str) -> Iterable[str]:
    for name in names:
        base, _, view = name.partition("@")
        unlabeled = view.endswith(":unlabeled")
        if not _wants(name):
            yield name
        elif part == WHOLE or (part == NONE and unlabeled):
            yield base  # also as unlabelled: nothing would be left
        elif part != NONE:
            yield f"{base}@{part}:unlabeled" if unlabeled else f"{base}@{part}"


def _check(base: str, part: str) -> None:
    """Raises `ConfigError` for a part that a data set has neither published nor in its partition folder."""
    published = PUBLISHED.get(base)
    if part in (WHOLE, NONE) or part.endswith(".txt") or (published and part in published.labeled):
        return
    try:
        if drawn(part, published.images if published else math.inf, f"{base}@{part}") is not None:
            return
    except DatasetError as error:
        raise ConfigError(f"DATASETS.PARTITION: {error}") from error
    try:
        list_file(f"{base}@{part}", part, source_of(base))
    except DatasetError as error:
        raise ConfigError(f"DATASETS.PARTITION is {part!r}; {describe(base)}; also allowed: {_FORMS}") from error


def choose_length(cfg: CfgNode, given: Collection[str], where: str) -> None:
    """Lets the one of SOLVER.EPOCHS and SOLVER.MAX_ITER count that is given last.

    It is called after every file and after the command line.

    Args:
        given: keys of this file.
        where: it, for the error.

    Raises:
        ConfigError: it gives both.
    """
    if "SOLVER.MAX_ITER" not in given:
        return
    if "SOLVER.EPOCHS" in given and cfg.SOLVER.EPOCHS:
        raise ConfigError(
            f"{where}SOLVER.EPOCHS {cfg.SOLVER.EPOCHS:g} and SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} both say how long to train; "
            "give one of them"
        )
    cfg.SOLVER.EPOCHS = 0.0


def resolve_epochs(cfg: CfgNode) -> None:
    """Turns SOLVER.EPOCHS into SOLVER.MAX_ITER, in place. Sizes of published partitions are known without the data.

    Raises:
        ConfigError: a data set whose size cannot be found out, or no image to count.
    """
    solver = cfg.SOLVER
    if not solver.EPOCHS:
        return
    names, batch = _counted(cfg)
    try:
        images = sum(_images(name) for name in names)
    except DatasetError as error:
        raise ConfigError(
            f"SOLVER.EPOCHS needs the number of images, give SOLVER.MAX_ITER in its place; {error}"
        ) from error
    batch *= solver.ACCUMULATION_STEPS
    processes = solver.EPOCH_PROCESSES
    if not processes:
        steps = solver.EPOCHS * images / batch
    elif batch % processes == 0:
        steps = solver.EPOCHS * (-(-images // processes) // (batch // processes))
    else:
        raise ConfigError(f"SOLVER.EPOCH_PROCESSES {processes} does not divide the {batch} images of a step")
    if not steps:
        raise ConfigError(
            f"SOLVER.EPOCHS {solver.EPOCHS:g} are no step: {', '.join(names)} has {images} images, and a step takes {batch}; "
            "give SOLVER.MAX_ITER"
        )
    solver.MAX_ITER = max(1, math.ceil(steps - 1e-6))
    solver.EPOCHS = 0.0


def _counted(cfg: CfgNode) -> tuple[list[str], int]:
    """The data sets that an epoch passes over, and their images in a forward pass."""
    train, unlabeled, kind = cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED, cfg.SOLVER.EPOCH_OF
    if kind == "labeled":
        names, batch = train, cfg.SOLVER.IMS_PER_BATCH
    elif kind == "unlabeled":  # a run with labels alone is as long as its semi-supervised counterpart
        names, batch = unlabeled or [f"{name}:unlabeled" for name in train if "@" in name], cfg.SSL.IMS_PER_BATCH
    else:
        names = dict.fromkeys(name.partition("@")[0] for name in (*train, *unlabeled))
        batch = cfg.SSL.IMS_PER_BATCH if unlabeled else cfg.SOLVER.IMS_PER_BATCH
    if not names:
        raise ConfigError(
            f"SOLVER.EPOCHS is {cfg.SOLVER.EPOCHS:g} with SOLVER.EPOCH_OF {kind!r}, but there is no such image; name data sets, "
            "or give SOLVER.MAX_ITER"
        )
    return list(names), batch


def _images(name: str) -> int:
    base, part, unlabeled = split_name(name)
    known = published_size(base, part, unlabeled)
    return len(dataset_records(name)) if known is None else known


def output_folder(config_file: str | Path, part: str) -> str:
    """The default of OUTPUT_DIR: `output/`, the config's path below `configs/`, and its partition.

    Args:
        part: DATASETS.PARTITION; of a list file its name counts; "" = none.
    """
    *folders, name = Path(config_file).absolute().with_suffix("").parts
    last = len(folders) - 1 - folders[::-1].index("configs") if "configs" in folders else len(folders) - 1
    partition = Path(part).stem if part.endswith(".txt") else part
    return Path("output", *folders[last + 1 :], name, partition).as_posix()
