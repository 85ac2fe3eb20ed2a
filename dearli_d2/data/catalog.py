"""Data sets by name: one registration for every COCO-panoptic data set, and partitions as views of them.

`NAME` is a whole data set. `NAME@PART` is its labelled part and `NAME@PART:unlabeled` the rest, without annotations.
PART is

* the name of a folder below the data set's partition folder (`1_128`), with `labeled.txt` and perhaps `unlabeled.txt`,
* the path of a list file (`lists/mine.txt`), or
* a fraction, `0.05`, or a number of images, `n100`, or with a seed, `0.05~3`, `n100~3`; smaller parts of one seed are subsets
  of larger ones.

A list file names one image a line, see `lists`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..errors import DatasetError
from .builtin import BUILT_IN
from .images import usable_images
from .panoptic_records import read_dicts, read_taxonomy
from .partitions import choose
from .sources import ImageFolder, PanopticSource, Source, datasets_root
from .taxonomy import Taxonomy

__all__ = [
    "ImageFolder",
    "PanopticSource",
    "annotated_dicts",
    "class_areas",
    "class_source",
    "dataset_dicts",
    "datasets_root",
    "ensure_registered",
    "register",
    "source_of",
    "split_name",
    "taxonomy_of",
]

_SOURCES: dict[str, Callable[[], Source]] = {}


def register(name: str, source: Source | Callable[[], Source]) -> None:
    """Makes `name` and all its views known; files are first touched when the data set is used.

    Args:
        source: or a function that gives it, called at use (generated data, environment variables).
    """
    _SOURCES[name] = source if callable(source) else lambda: source
    _register_view(name)


def _register_view(name: str) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: dataset_dicts(name))


def split_name(name: str) -> tuple[str, str | None, bool]:
    """`"a@1_8:unlabeled"` to ("a", "1_8", True).

    Raises:
        DatasetError: an unknown data set or a malformed name.
    """
    base, _, view = name.partition("@")
    part, colon, kind = view.partition(":")
    if (colon and kind != "unlabeled") or ("@" in name and not part):
        raise DatasetError(f"{name!r} is no data set name; write NAME, NAME@PART or NAME@PART:unlabeled")
    if base not in _SOURCES:
        raise DatasetError(f"there is no data set {base!r}; known: {', '.join(sorted(_SOURCES))}")
    return base, part or None, bool(kind)


def source_of(name: str) -> Source:
    """The place on disk of a data set, or of the data set that `name` is a view of."""
    return _SOURCES[split_name(name)[0]]()


def taxonomy_of(name: str) -> Taxonomy:
    """Classes of a data set, in the order of its JSON file's categories. Raises `DatasetError` for a folder of images."""
    source = source_of(name)
    if isinstance(source, ImageFolder):
        raise DatasetError(f"{name} is a folder of images without annotations; it can be a DATASETS.UNLABELED")
    return read_taxonomy(source, name)


def class_source(cfg: CfgNode) -> str:
    """The data set whose classes a config's model has.

    It is the first one of DATASETS.TRAIN, else of DATASETS.SOURCE, else of DATASETS.TEST; "" where all are empty.
    """
    return next(iter((*cfg.DATASETS.TRAIN, *cfg.DATASETS.SOURCE, *cfg.DATASETS.TEST)), "")


def ensure_registered(name: str) -> None:
    """Makes a view's name known to detectron2's catalogs."""
    split_name(name)
    if name not in DatasetCatalog:
        _register_view(name)


def dataset_dicts(name: str) -> list[dict[str, Any]]:
    """The images of a data set or view, as detectron2 dicts.

    Each has "file_name", "image_id", "height", "width" and, unless unlabelled, "pan_seg_file_name", "segments_info"
    ("id", contiguous "category_id", "iscrowd", "area" in pixels or None) and perhaps "sem_seg_file_name".

    Raises:
        DatasetError: see `validation` for what is checked beyond the JSON file.
    """
    base, part, unlabeled = split_name(name)
    source = source_of(base)
    dicts = _scan(source) if isinstance(source, ImageFolder) else read_dicts(source, base, name)
    if part is not None:
        dicts = choose(name, dicts, part, unlabeled, source)
    if unlabeled:
        dicts = [{k: d[k] for k in ("file_name", "image_id", "height", "width")} for d in dicts]
    if not dicts:
        if isinstance(source, PanopticSource):
            raise DatasetError(f"{name}: no image in {source.panoptic_json}")
        labelled = f" but {len(source.without)} that have labels" if source.without else ""
        raise DatasetError(f"{name}: no image in {source.image_root}{labelled}; {source.hint}")
    return dicts


def annotated_dicts(name: str) -> list[dict[str, Any]]:
    """The images of an unlabelled view *with* the annotations that are held back from training, for diagnosis.

    The list is empty for a data set without annotations.
    """
    base = split_name(name)[0]
    if isinstance(source_of(base), ImageFolder):
        return []
    chosen = {d["image_id"] for d in dataset_dicts(name)}
    return [d for d in dataset_dicts(base) if d["image_id"] in chosen]


def class_areas(dicts: Sequence[dict[str, Any]], num_classes: int, needed_by: str) -> np.ndarray:
    """(N, K) annotated pixels of each class in each image, crowds left out.

    Raises:
        DatasetError: segments without an area, which the key `needed_by` needs.
    """
    areas = np.zeros((len(dicts), num_classes))
    for row, d in zip(areas, dicts, strict=True):
        for segment in d["segments_info"]:
            if segment["area"] is None:
                raise DatasetError(
                    f"{d['pan_seg_file_name']}: its segments have no 'area' in the JSON file, which {needed_by} needs"
                )
            if not segment["iscrowd"]:
                row[segment["category_id"]] += segment["area"]
    return areas


@lru_cache(maxsize=8)
def _scan_once(folder: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(file), height, width) for file, height, width in usable_images(folder))


def _scan(source: ImageFolder) -> list[dict[str, Any]]:
    folder = source.image_root
    if not folder.is_dir():
        raise DatasetError(f"no image folder {folder}; {source.hint}")
    return [
        {"file_name": f, "image_id": str(Path(f).relative_to(folder)), "height": height, "width": width}
        for f, height, width in _scan_once(folder)
        if not source.without or os.path.realpath(f) not in source.without
    ]


for _name, _source in BUILT_IN.items():
    register(_name, _source)
