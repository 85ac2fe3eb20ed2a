"""Finds images that are used twice: in training and in evaluation, or two times in one data set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from detectron2.config import CfgNode

from ..errors import DatasetError, first_few
from ..progress import progress
from .catalog import ImageFolder, dataset_dicts, source_of, split_name

logger = logging.getLogger(__name__)

_TRAINING = ("TRAIN", "SOURCE", "UNLABELED")


def check_roles(cfg: CfgNode) -> None:
    """Checks that every data set suits the key that names it. No file is read.

    Raises:
        DatasetError: an unlabelled view or a folder of images where labels are needed, a data set twice.
    """
    for key in (*_TRAINING, "TEST"):
        names = list(cfg.DATASETS[key])
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DatasetError(f"DATASETS.{key} names {first_few(twice)} twice")
        if key == "UNLABELED" or (key == "TRAIN" and cfg.MODEL.CLASSIFIER == "none"):
            continue
        without = [name for name in names if split_name(name)[2] or isinstance(source_of(name), ImageFolder)]
        if without:
            raise DatasetError(f"DATASETS.{key}: {first_few(without)} has no labels; it can be a DATASETS.UNLABELED")


def check_overlap(cfg: CfgNode) -> None:
    """Checks that no image of DATASETS.TEST is trained on, and that no key holds an image twice.

    Two paths are the same image if they lead to one file. Where own data take part, files with equal content are the same too.
    The log warns of labelled images among the unlabelled ones. It also warns of a data set that is named both for training and
    for evaluation, since that is on purpose.

    Raises:
        DatasetError: with the number of images and the first ones. DATASETS.ALLOW_OVERLAP permits them in the evaluation.
    """
    files = {
        key: [d["file_name"] for name in cfg.DATASETS[key] for d in dataset_dicts(name)] for key in (*_TRAINING, "TEST")
    }
    for key, found in files.items():
        twice = [f for f, count in Counter(_resolved(found)).items() if count > 1]
        if twice:
            raise DatasetError(
                f"DATASETS.{key} {tuple(cfg.DATASETS[key])}: {len(twice)} images are in it twice: {first_few(twice)}"
            )
    own = any(_is_own(name) for key in files for name in cfg.DATASETS[key])
    for key in _TRAINING:
        asked = [name for name in cfg.DATASETS.TEST if name in cfg.DATASETS[key]]
        if asked:
            logger.warning(
                "DATASETS.TEST and DATASETS.%s both name %s: scores are those of training images", key, first_few(asked)
            )
        if not cfg.DATASETS.ALLOW_OVERLAP:
            tested = [d["file_name"] for name in cfg.DATASETS.TEST if name not in asked for d in dataset_dicts(name)]
            both = _same(tested, files[key], own)
            if both:
                raise DatasetError(
                    f"{len(both)} of {len(tested)} images of DATASETS.TEST {tuple(cfg.DATASETS.TEST)} are also in "
                    f"DATASETS.{key} {tuple(cfg.DATASETS[key])}: {_pairs(both)}; take them out of one of the two, or set "
                    "DATASETS.ALLOW_OVERLAP True if the evaluation shall see them"
                )
    both = _same(files["TRAIN"], files["UNLABELED"], own)
    if both:
        # a whole data set as DATASETS.UNLABELED holds the labelled part by design, as some published runs have it
        level = logging.WARNING if any("@" in n or _is_own(n) for n in cfg.DATASETS.UNLABELED) else logging.INFO
        logger.log(
            level,
            "%s of %s labelled images (DATASETS.TRAIN %s) are also among the unlabelled ones (DATASETS.UNLABELED %s): %s",
            len(both), len(files["TRAIN"]), tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.UNLABELED), _pairs(both),
        )  # fmt: skip


def _is_own(name: str) -> bool:
    return split_name(name)[0].startswith("custom_") or isinstance(source_of(name), ImageFolder)


def _resolved(files: Iterable[str]) -> list[str]:
    """The files with their folders' links resolved."""
    real = lru_cache(maxsize=None)(os.path.realpath)
    return [os.path.join(real(os.path.dirname(f)), os.path.basename(f)) for f in files]


def _same(some: Sequence[str], others: Sequence[str], content: bool) -> list[tuple[str, str]]:
    """Pairs of paths, one of each list, that are the same image."""
    known = dict(zip(_resolved(others), others, strict=True))
    pairs = [(a, known[real]) for a, real in zip(some, _resolved(some), strict=True) if real in known]
    if content and not pairs and some and others:
        pairs = _same_content(some, others)
    return pairs


def _same_content(some: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of files with the same bytes; only files of the same length are read."""
    by_size = defaultdict(list)
    for file in progress(others, "looking for copies", len(others)):
        by_size[_size(file)].append(file)
    digest = lru_cache(maxsize=None)(lambda file: hashlib.sha256(Path(file).read_bytes()).digest())
    pairs = []
    for a in some:
        same = [b for b in by_size.get(_size(a), ()) if _size(a) >= 0 and digest(a) == digest(b)]
        pairs += [(a, b) for b in same[:1]]
    return pairs


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return -1


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return first_few([a if a == b else f"{a} = {b}" for a, b in pairs])
