"""Parts of data sets: the published ones, with their sizes in one table, and which images a part has.

`DATASETS.PARTITION` names one of them. It fills the word PARTITION in the names of data sets: with `1_8`,
`ade20k_panoptic_train@PARTITION` is `ade20k_panoptic_train@1_8`, see `catalog` for such names.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import DatasetError, first_few
from .lists import read_list
from .miniworld import SPLITS
from .records import Records
from .sources import ImageFolder, Source

logger = logging.getLogger(__name__)

PLACEHOLDER = "PARTITION"  # stands for DATASETS.PARTITION in the name of a view
WHOLE, NONE = "all", "n0"  # every image is labelled; none is
_GET = "dearli prepare partitions FOLDER copies it from a checkout of its authors; "


@dataclass(frozen=True)
class Published:
    """`images` of the whole set, and the labelled ones of each published partition.

    `elsewhere`: labelled images of a partition in the lists of other authors.
    """

    images: int
    labeled: dict[str, int] = field(default_factory=dict)
    elsewhere: dict[str, int] = field(default_factory=dict)


# the counts are those of the published lists
_ADE20K = Published(
    20210,
    {"1_128": 158, "1_64": 316, "1_32": 631, "1_16": 1263, "1_8": 2526, "1_4": 5052, "1_2": 10105},
    {"1_32": 632},  # SemiVL and DEARLi; UniMatch V2 has another list with 631
)
_COCO = Published(118287, {"1_512": 232, "1_256": 463, "1_128": 925, "1_64": 1849, "1_32": 3697})
_PASCAL_VOC = Published(
    10582,
    {
        **{str(n): n for n in (92, 183, 366, 732, 1464)},
        **{f"{kind}_{n}": n for kind in ("aug", "u2pl") for n in (662, 1323, 2645)},
    },
    {"aug_2645": 2646, "u2pl_2645": 2646},  # the lists of UniMatch, which papers count as 2645 or 2646
)
_CITYSCAPES = Published(2975, {"1_30": 100, "1_16": 186, "1_8": 372, "1_4": 744, "1_2": 1488})

PUBLISHED: dict[str, Published] = {
    "ade20k_panoptic_train": _ADE20K,
    "camvid_train": Published(367, {"1_32": 11, "1_16": 23, "1_8": 46, "1_4": 92, "1_2": 184}),
    "cityscapes_train": _CITYSCAPES,
    "cityscapes_16_train": _CITYSCAPES,
    "coco_objects_train": _COCO,
    "coco_panoptic_train": _COCO,
    "coco_stuff_train": _COCO,
    **{f"miniworld_{split}": Published(scenes) for split, scenes in SPLITS.items()},
    **{f"miniworld_night_{split}": Published(scenes) for split, scenes in SPLITS.items()},
    "pascal_voc_train": _PASCAL_VOC,
    "pascal_voc_objects_train": _PASCAL_VOC,
}


def describe(dataset: str) -> str:
    """The published partitions of a data set, in words."""
    labeled = PUBLISHED[dataset].labeled if dataset in PUBLISHED else {}
    if not labeled:
        return f"{dataset} has no published partition"
    (first, count), *others = labeled.items()
    listed = [f"{first} ({count} labelled images)", *(f"{part} ({n})" for part, n in others)]
    return f"the partitions of {dataset} are {', '.join(listed)}"


def drawn(part: str, images: float, name: str) -> tuple[int, int] | None:
    """Number of images and seed of a part that is drawn; None for one that has a list.

    Args:
        part: a fraction `0.05` or a number `n100`, perhaps with a seed, `n100~3`.
        images: of the whole data set, to which a fraction refers; infinite where it is not known.
        name: of the view, for the error.

    Raises:
        DatasetError: more images than there are, or none.
    """
    # a point is what tells a fraction from a folder: `1464` and `1_8` are folders (and float("1_8") is 18)
    found = re.fullmatch(r"(?:(\d*\.\d+)|n(\d+))(?:~(\d+))?", part)
    if found is None:
        return None
    if found[1] is not None and not 0 < float(found[1]) <= 1:
        raise DatasetError(f"{name}: the fraction {float(found[1])} is not in (0, 1]")
    if found[1] is not None:
        count = max(1, round(float(found[1]) * images)) if math.isfinite(images) else 1
    else:
        count = int(found[2])
    if not 0 < count <= images:
        raise DatasetError(f"{name}: {count} images of a data set that has {images}")
    return count, int(found[3] or 0)


def published_size(dataset: str, part: str | None, unlabeled: bool) -> int | None:
    """Images of a view, without reading data; None where only the data can tell."""
    published = PUBLISHED.get(dataset)
    if published is None:
        return None
    if part is None:
        return published.images
    labeled = published.labeled.get(part)
    if labeled is None:
        found = drawn(part, published.images, f"{dataset}@{part}")
        if found is None:
            return None
        labeled = found[0]
    return published.images - labeled if unlabeled else labeled


def choose(name: str, records: Records, part: str, unlabeled: bool, source: Source) -> np.ndarray:
    """(n,) int64 rows of the images of a part of a data set, or, if `unlabeled`, of the others.

    Args:
        name: of the view.
        records: of the whole data set.
        part: a fraction, a partition folder or a list file.
        unlabeled: choose the other images.
        source: of the data set.
    """
    by_chance = drawn(part, len(records), name)
    if by_chance is not None:
        count, seed = by_chance
        order = np.random.default_rng(seed).permutation(len(records))
        return np.sort(order[count:] if unlabeled else order[:count])

    labeled_file = list_file(name, part, source)
    names = records.names()
    chosen = read_list(labeled_file, names, name)
    _compare_with_published(name.partition("@")[0], part, labeled_file, len(chosen))
    if not unlabeled:
        return np.array(chosen, np.int64)
    unlabeled_file = labeled_file.with_name("unlabeled.txt")
    if labeled_file.name == "labeled.txt" and unlabeled_file.is_file():
        rest = read_list(unlabeled_file, names, name)
        if both := sorted(set(rest) & set(chosen)):
            raise DatasetError(
                f"{name}: {len(both)} images stand in {labeled_file} and in {unlabeled_file}: "
                f"{first_few([names[i] for i in both])}"
            )
        return np.array(rest, np.int64)
    return np.delete(np.arange(len(records)), chosen)


@lru_cache
def _compare_with_published(dataset: str, part: str, labeled_file: Path, count: int) -> None:
    published = published_size(dataset, part, False)
    elsewhere = PUBLISHED[dataset].elsewhere.get(part) if dataset in PUBLISHED else None
    if published is not None and count not in (published, elsewhere):
        logger.warning(
            "%s@%s: %s labels %d images, the published partition %d, by which SOLVER.EPOCHS counts",
            dataset, part, labeled_file, count, published,
        )  # fmt: skip


def list_file(name: str, part: str, source: Source) -> Path:
    """The list of a part's labelled images. Raises `DatasetError` where there is none."""
    if part.endswith(".txt"):
        path = Path(part).expanduser()
    elif isinstance(source, ImageFolder) or source.partition_root is None:
        raise DatasetError(f"{name}: this data set has no partition folder; use a fraction or the path of a list file")
    else:
        path = source.partition_root / part / "labeled.txt"
    if not path.is_file():
        dataset = name.partition("@")[0]
        get = _GET if dataset in PUBLISHED and part in PUBLISHED[dataset].labeled else ""
        raise DatasetError(
            f"{name}: no list file {path}; {get}PART is a folder there, a list file (.txt) or a fraction; {describe(dataset)}"
        )
    return path
