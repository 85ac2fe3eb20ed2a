"""Finds images that are used twice: in training and in evaluation, or two times in one data set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from detectron2.config import CfgNode

from ..errors import DatasetError, first_few
from ..progress import progress
from .catalog import ImageFolder, dataset_records, source_of, split_name
from .images import opened_file
from .records import Joined, Records

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
    roles = {key: _Role(cfg.DATASETS[key]) for key in (*_TRAINING, "TEST")}
    for key, role in roles.items():
        if twice := role.twice():
            raise DatasetError(
                f"DATASETS.{key} {tuple(cfg.DATASETS[key])}: {len(twice)} images are in it twice: {first_few(twice)}"
            )
    own = any(_is_own(name) for key in roles for name in cfg.DATASETS[key])
    for key in _TRAINING:
        asked = [name for name in cfg.DATASETS.TEST if name in cfg.DATASETS[key]]
        if asked:
            logger.warning(
                "DATASETS.TEST and DATASETS.%s both name %s: scores are those of training images", key, first_few(asked)
            )
        if not cfg.DATASETS.ALLOW_OVERLAP:
            tested = _Role([name for name in cfg.DATASETS.TEST if name not in asked]) if asked else roles["TEST"]
            both = _same(tested, roles[key], own)
            if both:
                raise DatasetError(
                    f"{len(both)} of {len(tested)} images of DATASETS.TEST {tuple(cfg.DATASETS.TEST)} are also in "
                    f"DATASETS.{key} {tuple(cfg.DATASETS[key])}: {_pairs(both)}; take them out of one of the two, or set "
                    "DATASETS.ALLOW_OVERLAP True if the evaluation shall see them"
                )
    both = _same(roles["TRAIN"], roles["UNLABELED"], own)
    if both:
        # a whole data set as DATASETS.UNLABELED holds the labelled part by design, as some published runs have it
        level = logging.WARNING if any("@" in n or _is_own(n) for n in cfg.DATASETS.UNLABELED) else logging.INFO
        logger.log(
            level,
            "%s of %s labelled images (DATASETS.TRAIN %s) are also among the unlabelled ones (DATASETS.UNLABELED %s): %s",
            len(both), len(roles["TRAIN"]), tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.UNLABELED), _pairs(both),
        )  # fmt: skip


class _Role:
    """The images that a key names, and a hash of the place of each, with links resolved."""

    def __init__(self, names: Sequence[str]) -> None:
        self.records = Joined([dataset_records(name) for name in names])
        self.keys = np.fromiter(map(_hash, _resolved(self.records.files())), np.uint64, len(self.records))

    def __len__(self) -> int:
        return len(self.records)

    def twice(self) -> list[str]:
        """Places of images that are there more than once."""
        order = np.sort(self.keys)
        if not (order[1:] == order[:-1]).any():
            return []
        double = order[1:][order[1:] == order[:-1]]
        rows = np.flatnonzero(np.isin(self.keys, double))
        counts = Counter(_resolved(self.records.file_name(int(i)) for i in rows))
        return [file for file, count in counts.items() if count > 1]


def _hash(place: str) -> int:
    return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little")


def _is_own(name: str) -> bool:
    return split_name(name)[0].startswith("custom_") or isinstance(source_of(name), ImageFolder)


def _resolved(files: Iterable[str]) -> Iterator[str]:
    """The files with their folders' links resolved."""
    real = lru_cache(maxsize=None)(os.path.realpath)
    return (f"{real(folder)}/{name}" for folder, _, name in (f.rpartition("/") for f in files))


def _same(some: _Role, others: _Role, content: bool) -> list[tuple[str, str]]:
    """Pairs of paths, one of each role, that are the same image."""
    rows = np.flatnonzero(np.isin(some.keys, others.keys))
    known = {}
    if len(rows):
        found = [others.records.file_name(int(i)) for i in np.flatnonzero(np.isin(others.keys, some.keys))]
        known = dict(zip(_resolved(found), found, strict=True))
    files = [some.records.file_name(int(i)) for i in rows]
    pairs = [(a, known[real]) for a, real in zip(files, _resolved(files), strict=True) if real in known]
    if content and not pairs and len(some) and len(others):
        pairs = _same_content(some.records, others.records)
    return pairs


def _same_content(some: Records, others: Records) -> list[tuple[str, str]]:
    """Pairs of files with the same bytes; only files of the same length are read."""
    length = np.array([some.length(i) for i in range(len(some))])
    rows = progress(range(len(others)), "looking for copies", len(others))
    other_length = np.fromiter(map(others.length, rows), np.int64, len(others))
    by_size = defaultdict(list)
    for i in np.flatnonzero(np.isin(other_length, length[length >= 0])).tolist():
        by_size[int(other_length[i])].append(others.file_name(i))
    digest = lru_cache(maxsize=None)(_digest)
    pairs = []
    for i in np.flatnonzero(np.isin(length, list(by_size))).tolist():
        file = some.file_name(i)
        same = [b for b in by_size[int(length[i])] if digest(file) == digest(b)]
        pairs += [(file, b) for b in same[:1]]
    return pairs


def _digest(file: str) -> bytes:
    with opened_file(file) as stream:
        return hashlib.sha256(stream.read()).digest()


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return first_few([a if a == b else f"{a} = {b}" for a, b in pairs])
