"""Trees of folders as Pascal VOC has them for segmentation, and CVAT's export "Segmentation mask".

JPEGImages/day/a.jpg                images; CVAT leaves them out, then they are looked for elsewhere
SegmentationClass/day/a.png         classes, by colour or value
SegmentationObject/day/a.png        objects, by colour or value; perhaps missing
ImageSets/Segmentation/train.txt    names of images of a split
labelmap.txt                        CVAT: name:r,g,b:: of each class
class_names.txt                     Labelme's labelme2voc: a name for each value, from 0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..data.images import opened, upright
from ..errors import DatasetError, first_few
from ..files import read_text
from .colors import Coding, void_pixels
from .geometry import encode
from .mask_files import check_size, masked_images, masks_below, stamps_of, unlabeled_note
from .reading import split_of
from .structures import LabeledImage, LabelSet, Problems, Request, Shape

CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
LABEL_MAP = "labelmap.txt"


def tree_of(path: Path) -> Path | None:
    """The folder that holds SegmentationClass: `path`, or the only one below it."""
    if path.name.startswith(CLASSES):
        return path.parent if path.is_dir() else None
    found = [f for f in (path, *sorted(path.glob("*/")), *sorted(path.glob("*/*/"))) if _folder(f, CLASSES) is not None]
    return found[0] if len(found) == 1 else None


def _folder(tree: Path, name: str) -> Path | None:
    """A folder of masks; labelme2voc appends PNG to its name."""
    return next((tree / n for n in (f"{name}PNG", name) if (tree / n).is_dir() and masks_below(tree / n)), None)


def read_tree(request: Request, name: str, coding_of: Callable[[Path], Coding]) -> LabelSet:
    """Reads a tree.

    Args:
        name: of the format.
        coding_of: finds the meaning of colours in a tree.

    Raises:
        DatasetError: see `Format.read`.
    """
    tree = tree_of(request.path)
    classes = _folder(tree, CLASSES) if tree is not None else None
    if tree is None or classes is None:
        raise DatasetError(f"{request.path} holds no folder {CLASSES} with masks, or several")
    coding, objects = coding_of(tree), _folder(tree, OBJECTS)
    problems = Problems(request.path)
    others = masks_below(objects) if objects is not None else []
    asked = replace(request, path=tree, mask_name=request.mask_name or "{stem}")
    images, notes = masked_images(asked, problems, folder=classes, others=others)
    problems.check()
    splits, listed = _lists(tree)
    labeled, masks = [], []
    for image in images:
        mask = image.masks[0].path
        own = objects / mask.relative_to(classes) if objects is not None else None
        if own is not None and own.is_file():
            check_size(own, image.file, image.size, problems)
        else:
            own = None
        masks.append(mask)
        split = splits.get(mask.relative_to(classes).with_suffix("").as_posix(), "")
        labeled.append(
            LabeledImage(
                image.file, image.size, partial(_shapes, mask, own, coding), split, partial(void_pixels, mask, coding)
            )
        )
    problems.check()
    there = {m.relative_to(classes).with_suffix("").as_posix() for m in masks}
    without = sorted(listed - there)
    if not listed:
        notes += unlabeled_note(asked, images)
    if without:
        notes += [f"{tree}: {len(without)} of {len(listed)} images of ImageSets have no mask: {first_few(without)}"]
    return LabelSet(
        request.path, name, coding.classes(), labeled, objects is not None,
        stamps_of([*masks, *others], coding.names, coding.by_color, coding.by_value),
        notes, partial(coding.check, masks),
    )  # fmt: skip


def _lists(tree: Path) -> tuple[dict[str, str], set[str]]:
    """The split of each image, and all images of training and validation."""
    splits: dict[str, str] = {}
    listed: set[str] = set()
    for path in sorted((tree / "ImageSets" / "Segmentation").glob("*.txt")):
        names = {line.strip() for line in read_text(path, DatasetError).splitlines() if line.strip()}
        split = split_of(path.stem)
        if split:
            splits |= dict.fromkeys(names, split)
        if split != "test":
            listed |= names
    return splits, listed


def _shapes(mask: Path, objects: Path | None, coding: Coding) -> list[Shape]:
    numbers = coding.known(mask)
    ids = _object_ids(objects) if objects is not None else np.zeros(numbers.shape, np.int64)
    pairs = np.where(numbers >= 0, numbers.astype(np.int64) << 24 | ids, -1)
    return [
        Shape(coding.names[pair >> 24], encode(pairs == pair), semantic=not pair & 2**24 - 1)
        for pair in np.unique(pairs).tolist()
        if pair >= 0
    ]


def _object_ids(path: Path) -> np.ndarray:
    """(H, W) int64 numbers of objects, 0 = none."""
    with opened(path, "a mask of objects") as image:
        if image.mode in ("L", "P", "I", "I;16", "1"):
            return np.asarray(upright(image)).astype(np.int64)
        rgb = np.asarray(upright(image).convert("RGB")).astype(np.int64)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
