"""Checks of a data set before training: every problem a run would meet hours later, with the first offenders."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import DatasetError, UnreadableImageError, first_few
from ..progress import progress
from .catalog import ImageFolder, dataset_records, source_of, taxonomy_of
from .images import is_plain, measure, opened, orientation, read_image, reading_problem, seen_size
from .panoptic_png import PANOPTIC_PNG, read_panoptic, segment_ids
from .partitions import published_size

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

_SIZE_CHECKS = 2000  # files whose header is read; all of a small data set, evenly spread over a large one
_FAR_CHECKS = 64  # of these, where they are in shards or behind a URL
_PIXEL_CHECKS = 100  # images and labels whose pixels are read
_WRONG_SHARE, _WRONG_PIXELS = 0.25, 50  # the larger is how far the area of a segment may differ from its pixels
_CONTRADICTION = 0.5  # share of an image's pixels whose class may differ between semantic and panoptic label,
_CONTRADICTION_IN_ALL = 0.05  # and of all examined pixels: borders and crowds may differ


@dataclass(frozen=True)
class Summary:
    """Result of the checks: number of images, and how many of them show each class (empty for unlabelled data)."""

    name: str
    images: int
    class_counts: dict[str, int]

    def __str__(self) -> str:
        if not self.class_counts:
            return f"{self.name}: {self.images} images, unlabelled"
        absent = [name for name, count in self.class_counts.items() if not count]
        note = f"; no image shows {first_few(absent)}" if absent else ""
        return f"{self.name}: {self.images} images, {len(self.class_counts) - len(absent)} of {len(self.class_counts)} classes{note}"


@dataclass(frozen=True)
class Label:
    """The label files of one image.

    `areas` has the pixels of each segment id (0 = ignored). `compared` counts the pixels that have a class in both the
    panoptic and the semantic file, and `contradicting` those with two different classes.
    """

    areas: dict[int, int]
    compared: int = 0
    contradicting: int = 0


def validate_dataset(name: str, num_classes: int | None = None) -> Summary:
    """Checks files, sizes, ids and labels of a data set or view.

    Args:
        num_classes: what the config says; None = not checked.

    Raises:
        DatasetError: the first kind of problem found, with the count and the first offenders.
    """
    dicts, source = dataset_records(name), source_of(name)
    if isinstance(source, ImageFolder):
        _check_readable(name, examined(dicts))
        return Summary(name, len(dicts), {})
    _compare_with_release(name, len(dicts))
    taxonomy = taxonomy_of(name)
    if num_classes is not None and num_classes != len(taxonomy):
        raise DatasetError(
            f"{name} has {len(taxonomy)} classes but MODEL.NUM_CLASSES is {num_classes}; set MODEL.NUM_CLASSES {len(taxonomy)}"
        )
    check_files(name, dicts)
    labelled: Sequence[dict] = dicts if "pan_seg_file_name" in dicts[0] else []
    check_labels(name, spread(labelled, _PIXEL_CHECKS))
    shown = Counter(c for d in labelled for c in {s["category_id"] for s in d["segments_info"] if not s["iscrowd"]})
    if labelled and not shown:
        raise DatasetError(f"{name}: {len(labelled)} labelled images but not one segment in them")
    counts = {class_name: shown[i] for i, class_name in enumerate(taxonomy.main_names)} if labelled else {}
    return Summary(name, len(dicts), counts)


def _compare_with_release(name: str, images: int) -> None:
    """Warns if a whole data set was prepared from another number of images than the official release has."""
    official = published_size(name, None, False)
    if official not in (None, images):
        logger.warning("%s has %d images, the official release %d: results do not compare", name, images, official)


def _check_readable(name: str, files: list[str]) -> None:
    """Warns of images without labels that cannot be read; training puts others in their place."""
    problems = [found for found in measure(files) if isinstance(found, str)]
    if len(problems) == len(files):
        raise DatasetError(f"{name}: none of {len(files)} files can be used as an image: {first_few(problems)}")
    if problems:
        logger.warning(
            "%s: %s of %s examined files cannot be read, others will take their place: %s",
            name, len(problems), len(files), first_few(problems, 20),
        )  # fmt: skip


def check_files(name: str, dicts: Sequence[dict]) -> None:
    """Images and labels of a data set are there and have the sizes that they should have.

    Raises:
        DatasetError: with the count and the first offenders.
    """
    hint = source_of(name).hint
    kinds = {"file_name": "image", "pan_seg_file_name": "label", "sem_seg_file_name": "semantic label"}
    files: dict[str, list[str]] = {key: [] for key in kinds}
    for d in dicts:
        for key, found in files.items():
            if key in d:
                found.append(d[key])
    for key, kind in kinds.items():
        _check_present(name, files[key], kind, hint)
    _check_sizes(name, spread(dicts, _SIZE_CHECKS))


def examined(dicts: Sequence[dict]) -> list[str]:
    """Files of which the header is read, evenly spread: fewer where each costs more."""
    files = [d["file_name"] for d in spread(dicts, _SIZE_CHECKS)]
    return files if all(map(is_plain, files)) else spread(files, _FAR_CHECKS)


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most so many of the items, evenly spread."""
    if len(items) <= limit:
        return list(items)
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


def _check_sizes(name: str, dicts: Sequence[dict]) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(progress(pool.map(_size_problem, dicts), f"{name}: sizes", len(dicts)))
    problems = [p for p in found if p]
    if problems:
        raise DatasetError(
            f"{name}: {len(problems)} files have a wrong size or depth or are damaged: {first_few(problems)}"
        )


def _size_problem(d: dict) -> str | None:
    expected, turned_image = (d["height"], d["width"]), False
    for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
        if key not in d:
            continue
        try:
            with opened(d[key]) as image:
                if key == "file_name" and (depth := reading_problem(image)):
                    return f"{d[key]} {depth}"
                size, turned = seen_size(image), orientation(image) >= 5
        except UnreadableImageError as error:
            return f"{d[key]} is damaged ({error})"
        if key == "file_name" and turned and size[::-1] == expected:
            return (
                f"{d[key]} is turned by its EXIF tag, and seen it is {size[1]} x {size[0]}, but its label has the size of the "
                f"stored pixels, {expected[1]} x {expected[0]}; if the label fits the stored pixels remove the tag "
                f"(exiftool -Orientation= FILE)"
            )
        turned_image |= key == "file_name" and turned
        if size != expected:
            also = "; its image is turned by an EXIF tag" if turned_image and size[::-1] == expected else ""
            return f"{d[key]} is {size[1]} x {size[0]}, the JSON file says {expected[1]} x {expected[0]}{also}"
    return None


def check_labels(name: str, dicts: Sequence[dict]) -> list[Label]:
    """Checks that images can be read to their end, and that label files, JSON file and semantic labels agree.

    Returns:
        The `Label` of each of `dicts`.

    Raises:
        DatasetError: with the count and the first offenders.
    """
    if not dicts:
        return []
    source = source_of(name)
    classes, whole = len(taxonomy_of(name)), isinstance(source, ImageFolder) or not source.without

    def look(d: dict) -> Label:
        read_image(d["file_name"])
        return _read_label(d, classes)

    with ThreadPoolExecutor(8) as pool:
        labels = list(progress(pool.map(look, dicts), f"{name}: labels", len(dicts)))
    strangers, empty, areas, semantic = [], [], [], []
    for d, label in zip(dicts, labels, strict=True):
        file, known, present = d["pan_seg_file_name"], {s["id"] for s in d["segments_info"]}, set(label.areas) - {0}
        if present - known and whole:  # segments of classes that the data set leaves out are in the files
            strangers.append(f"{file} (ids {first_few(sorted(present - known))})")
        if not present & known:
            empty.append(file)
        elif difference := _area_difference(d, label):
            areas.append(f"{file} ({difference})")
        if label.contradicting > _CONTRADICTION * label.compared:
            semantic.append(f"{d['sem_seg_file_name']} ({label.contradicting / label.compared:.0%} of the pixels)")
    _refuse(
        name, dicts, strangers, "label files hold segment ids that the JSON file does not list", f" ({PANOPTIC_PNG})"
    )
    _refuse(
        name, dicts, areas,
        "label files have other areas than the JSON file says (labels exchanged? if only the areas are wrong, leave 'area' out)",
    )  # fmt: skip
    compared = sum(x.compared for x in labels)
    if not semantic and sum(x.contradicting for x in labels) > _CONTRADICTION_IN_ALL * compared:
        semantic = [d["sem_seg_file_name"] for d, x in zip(dicts, labels, strict=True) if x.contradicting]
    _refuse(name, dicts, semantic, "semantic labels contradict the panoptic ones")
    if len(empty) == len(dicts):
        raise DatasetError(
            f"{name}: no examined label file shows any listed segment (all pixels are ignored), first: {empty[0]}"
        )
    return labels


def _refuse(name: str, dicts: Sequence[dict], offenders: list[str], problem: str, note: str = "") -> None:
    if offenders:
        raise DatasetError(f"{name}: {len(offenders)} of {len(dicts)} examined {problem}: {first_few(offenders)}{note}")


def _read_label(d: dict, classes: int) -> Label:
    ids = segment_ids(read_panoptic(d["pan_seg_file_name"]))
    values, counts = _count(ids)
    areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
    if "sem_seg_file_name" not in d:
        return Label(areas)
    semantic = read_panoptic(d["sem_seg_file_name"])[..., 0]  # as the evaluation reads it
    strange = np.setdiff1d(semantic, [*range(classes), 255])
    if semantic.shape != ids.shape or len(strange):
        raise DatasetError(
            f"{d['sem_seg_file_name']}: a semantic label is a greyscale PNG of its image's size with values 0..{classes - 1}, "
            f"255 = ignore; this one is {' x '.join(map(str, semantic.shape[::-1]))} and holds {first_few(strange.tolist())}"
        )
    class_of = {s["id"]: s["category_id"] for s in d["segments_info"] if not s["iscrowd"]}
    panoptic = np.array([class_of.get(v, -1) for v in values.tolist()])[np.searchsorted(values, ids)]
    both = (panoptic >= 0) & (semantic != 255)
    return Label(areas, int(both.sum()), int((both & (panoptic != semantic)).sum()))


def _count(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values of an array of numbers from 0 on, and how often each occurs; fast where they are small."""
    if ids.size and ids.max() > 2**20:
        return np.unique(ids, return_counts=True)
    counts = np.bincount(ids.ravel())
    values = counts.nonzero()[0]
    return values, counts[values]


def _area_difference(d: dict, label: Label) -> str:
    """Describes wrong areas in the JSON file, or "". Areas of polygons differ a little from those of their pixels."""
    for s in d["segments_info"]:
        area, pixels = s["area"], label.areas.get(s["id"], 0)
        if area is not None and abs(area - pixels) > max(_WRONG_PIXELS, _WRONG_SHARE * max(area, pixels)):
            return f"segment {s['id']}: {area:g} in the JSON file, {pixels} pixels"
    return ""
