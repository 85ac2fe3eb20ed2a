"""Checks of a data set before training: every problem a run would meet hours later, with the first offenders."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DatasetError, first_few
from .catalog import ImageFolder, dataset_dicts, source_of, taxonomy_of
from .images import depth_problem
from .mappers import read_image, read_panoptic, segment_ids

logger = logging.getLogger(__name__)

_SIZE_CHECKS = 2000  # files whose header is read; all of a small data set, evenly spread over a large one
_PIXEL_CHECKS = 100  # images and labels whose pixels are read


@dataclass(frozen=True)
class Summary:
    """What was found: number of images, and how many of them show each class (empty for unlabelled data)."""

    name: str
    images: int
    class_counts: dict[str, int]

    def __str__(self) -> str:
        if not self.class_counts:
            return f"{self.name}: {self.images} images, unlabelled"
        absent = [name for name, count in self.class_counts.items() if not count]
        note = f"; no image shows {first_few(absent)}" if absent else ""
        return f"{self.name}: {self.images} images, {len(self.class_counts) - len(absent)} of {len(self.class_counts)} classes{note}"


def validate_dataset(name: str, num_classes: int | None = None) -> Summary:
    """Checks files, sizes, ids and labels of a data set or view.

    Args:
        num_classes: what the config says; None = not checked.

    Raises:
        DatasetError: the first kind of problem found, with the count and the first offenders.
    """
    dicts, source = dataset_dicts(name), source_of(name)
    if isinstance(source, ImageFolder):  # listing it has read every header
        return Summary(name, len(dicts), {})
    taxonomy, hint = taxonomy_of(name), source.hint
    if num_classes is not None and num_classes != len(taxonomy):
        raise DatasetError(
            f"{name} has {len(taxonomy)} classes but MODEL.NUM_CLASSES is {num_classes}; set MODEL.NUM_CLASSES {len(taxonomy)}"
        )
    for key, kind in (("file_name", "image"), ("pan_seg_file_name", "label"), ("sem_seg_file_name", "semantic label")):
        _check_present(name, [d[key] for d in dicts if key in d], kind, hint)

    labelled = [d for d in dicts if "pan_seg_file_name" in d]
    _check_sizes(name, _spread(dicts, _SIZE_CHECKS))
    _check_pixels(name, _spread(labelled, _PIXEL_CHECKS))
    shown = Counter(c for d in labelled for c in {s["category_id"] for s in d["segments_info"] if not s["iscrowd"]})
    if labelled and not shown:
        raise DatasetError(f"{name}: {len(labelled)} labelled images but not one segment in them")
    counts = {class_name: shown[i] for i, class_name in enumerate(taxonomy.main_names)} if labelled else {}
    return Summary(name, len(dicts), counts)


def _spread(items: list[dict], limit: int) -> list[dict]:
    if len(items) <= limit:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).astype(int)]


def _check_present(name: str, files: list[str], kind: str, hint: str) -> None:
    """One directory listing per folder instead of one system call per file."""
    listings = {
        folder: {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        for folder in {Path(f).parent for f in files}
    }
    missing = [f for f in files if Path(f).name not in listings[Path(f).parent]]
    if missing:
        raise DatasetError(
            f"{name}: {len(missing)} of {len(files)} {kind} files are missing, first: {missing[0]}; {hint}"
        )


def _check_sizes(name: str, dicts: list[dict]) -> None:
    def problem(d: dict) -> str | None:
        expected = (d["width"], d["height"])
        for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
            if key not in d:
                continue
            try:
                with Image.open(d[key]) as image:
                    if key == "file_name" and (depth := depth_problem(image)):
                        return f"{d[key]} {depth}"
                    size, turned = image.size, image.getexif().get(0x0112, 1) >= 5
            except OSError as error:
                return f"{d[key]} is damaged ({error})"
            if (size[::-1] if turned else size) != expected:
                return f"{d[key]} is {size[0]} x {size[1]}, the JSON file says {expected[0]} x {expected[1]}"
        return None

    with ThreadPoolExecutor(8) as pool:
        problems = [p for p in pool.map(problem, dicts) if p]
    if problems:
        raise DatasetError(
            f"{name}: {len(problems)} files have a wrong size or depth or are damaged: {first_few(problems)}"
        )


def _check_pixels(name: str, dicts: list[dict]) -> None:
    """Images can be read to their end; segment ids in the PNG and in the JSON file agree."""

    def segments(d: dict) -> set[int]:
        read_image(d["file_name"])
        return set(np.unique(segment_ids(read_panoptic(d["pan_seg_file_name"]))).tolist()) - {0}

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(segments, dicts))
    strangers, empty = [], []
    for d, present in zip(dicts, found, strict=True):
        known = {s["id"] for s in d["segments_info"]}
        if present - known:
            strangers.append(f"{d['pan_seg_file_name']} (ids {first_few(sorted(present - known))})")
        if not present & known:
            empty.append(d["pan_seg_file_name"])
    if strangers:
        raise DatasetError(
            f"{name}: {len(strangers)} of {len(dicts)} examined label files hold segment ids that the JSON file does not list: {first_few(strangers)}"
        )
    if dicts and len(empty) == len(dicts):
        raise DatasetError(
            f"{name}: no examined label file shows any listed segment (all pixels are ignored), first: {empty[0]}"
        )
