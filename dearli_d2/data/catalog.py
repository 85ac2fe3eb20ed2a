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
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..errors import DatasetError
from .builtin import BUILT_IN
from .listing import Listing, listed
from .panoptic_records import read_records, read_taxonomy
from .partitions import choose
from .records import Chosen, ImageRecords, Records, without_labels
from .sources import ImageFolder, PanopticSource, Source, datasets_root
from .taxonomy import Taxonomy

__all__ = [
    "ImageFolder",
    "PanopticSource",
    "annotated_dicts",
    "class_areas",
    "class_source",
    "dataset_dicts",
    "dataset_records",
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

    Images of a folder without annotations are opened once to find their sizes. Those that cannot be read are left out, and the
    log names them. Training needs neither the sizes nor a list, see `dataset_records`.

    Raises:
        DatasetError: see `validation` for what is checked beyond the JSON file.
    """
    source, records = source_of(name), dataset_records(name)
    if not isinstance(source, ImageFolder):
        return list(records)
    sizes = _listing(source).sizes()
    rows = records.rows if isinstance(records, Chosen) else slice(None)
    dicts = [
        {**record, "height": height, "width": width}
        for record, (height, width) in zip(records, sizes[rows].tolist(), strict=True)
        if height
    ]
    if not dicts:
        raise DatasetError(f"{name}: none of {len(records)} files can be used as an image")
    return dicts


def dataset_records(name: str, annotated: bool = False) -> Records:
    """The images of `dataset_dicts`, as a sequence that makes each dict when it is asked for.

    Images of a folder without annotations have no "height" and "width", and those that cannot be read are among them.

    Args:
        annotated: an unlabelled view has the annotations that are held back from training, in the order of the data set.

    Raises:
        DatasetError: see `validation` for what is checked beyond the JSON file.
    """
    base, part, unlabeled = split_name(name)
    source = source_of(base)
    records: Records = _images(source) if isinstance(source, ImageFolder) else read_records(source, base, name)
    if part is not None:
        rows = choose(name, records, part, unlabeled, source)
        records = records.take(np.sort(rows) if annotated else rows)
    if not len(records):
        if isinstance(source, PanopticSource):
            raise DatasetError(f"{name}: no image in {source.panoptic_json}")
        labelled = f" but {len(source.without)} that have labels" if source.without else ""
        raise DatasetError(f"{name}: no image in {source.image_root}{labelled}; {source.hint}")
    return without_labels(records) if unlabeled and not annotated and isinstance(source, PanopticSource) else records


def annotated_dicts(name: str) -> list[dict[str, Any]]:
    """The images of an unlabelled view *with* the annotations that are held back from training, for diagnosis.

    The list is empty for a data set without annotations.
    """
    return [] if isinstance(source_of(name), ImageFolder) else list(dataset_records(name, annotated=True))


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


def _listing(source: ImageFolder) -> Listing:
    if not source.what and not source.image_root.is_dir():
        raise DatasetError(f"no image folder {source.image_root}; {source.hint}")
    return listed(source.image_root, source.what)


def _images(source: ImageFolder) -> Records:
    """The images of a folder that have no labels."""
    listing = _listing(source)
    records = ImageRecords(listing)
    if not source.without:
        return records
    labelled = [os.stat(file).st_size for file in source.without if os.path.isfile(file)]
    # a link leads to a file of the same size
    alike = np.isin(listing.bytes, labelled)
    drop = [i for i in np.flatnonzero(alike).tolist() if os.path.realpath(records.file_name(i)) in source.without]
    return records.take(np.delete(np.arange(len(records)), drop)) if drop else records


for _name, _source in BUILT_IN.items():
    register(_name, _source)
