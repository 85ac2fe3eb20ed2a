"""Own data in the format of a labelling tool (DATASETS.CUSTOM.LABELS), converted to COCO-panoptic files in the cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..errors import ConfigError, DatasetError, first_few
from ..files import remove_leftovers, same_writing, write_json
from ..labels.panoptic import TargetClass, draw
from ..labels.recognition import read_labels
from ..labels.structures import LabeledImage, LabelSet, Request
from .custom_classes import VOID, CustomClass, parse_classes
from .custom_split import cache_folder, held_back_of, write_splits
from .images import relative_name
from .panoptic_png import ids_to_rgb
from .preparation import convert_all, save_png

logger = logging.getLogger(__name__)


def labels_of(custom: CfgNode) -> LabelSet:
    """The labels of DATASETS.CUSTOM.LABELS. They are read once in a process, unless their files change.

    Raises:
        DatasetError, ConfigError: see `read_labels`.
    """
    root = Path(custom.ROOT)
    path = root / custom.LABELS
    request = Request(path, root, custom.IGNORE_VALUE, custom.MASK_NAME, tuple(custom.CLASSES))
    return _read(request, custom.FORMAT, _stamp(path))


def _stamp(path: Path) -> tuple[int, ...]:
    if not path.exists():
        return ()
    files = [path] if path.is_file() else [path, *path.iterdir()]
    return tuple(file.stat().st_mtime_ns for file in files)


@lru_cache(maxsize=4)
def _read(request: Request, name: str, stamp: tuple[int, ...]) -> LabelSet:
    labels = read_labels(request, name)
    for note in labels.notes:
        logger.warning("own data: %s", note)
    if not labels.images:
        raise DatasetError(f"{labels.path}: {labels.format} labels of no image")
    return labels


# ------------------------------------------------------------------------------------------ classes


def label_classes(custom: CfgNode) -> list[CustomClass]:
    """The classes of the training data: those of `classes_of`, with DATASETS.CUSTOM.BACKGROUND as the last one.

    Raises:
        ConfigError: see `classes_of`; or too many classes.
    """
    labels = labels_of(custom)
    classes = classes_of(labels, custom.CLASSES)
    if custom.BACKGROUND and not any(_plain(custom.BACKGROUND) in _writings(c) for c in classes):
        free = next(i for i in range(2**16) if i not in {c.id for c in classes})
        classes.append(CustomClass(free, False, (custom.BACKGROUND,)))
    if len(classes) > VOID:
        raise ConfigError(f"{labels.path} has {len(classes)} classes; training data can have {VOID}")
    return classes


def classes_of(labels: LabelSet, lines: Sequence[str]) -> list[CustomClass]:
    """The classes of a class list, or of the labels where the list is empty.

    Raises:
        ConfigError: a class of the labels that the class list has not, with all of them.
    """
    if not lines:
        return unlisted_classes(labels)
    classes = parse_classes(lines, -1)
    known = {name for c in classes for name in _writings(c)}
    strangers = [c.name for c in labels.classes if _plain(c.name) not in known]
    if strangers:
        raise ConfigError(
            f"DATASETS.CUSTOM.CLASSES lacks {len(strangers)} of {len(labels.classes)} classes of {labels.path}: "
            f"{first_few(strangers, 8)}; add a line, or the name as a synonym of another class"
        )
    return classes


def unlisted_classes(labels: LabelSet) -> list[CustomClass]:
    """The classes of labels for which the user gives no list: in the ids of the file if these can be pixel values.

    Names that differ in capital letters alone are one class, as in a class list.
    """
    ids = [c.id for c in labels.classes]
    numbers = [i for i in ids if i is not None]
    own = len(set(numbers)) == len(ids) and all(0 <= i < 2**16 for i in numbers)
    found: dict[str, CustomClass] = {}
    for place, c in enumerate(labels.classes):
        isthing = labels.instances if c.isthing is None else c.isthing
        found.setdefault(_plain(c.name), CustomClass(numbers[place] if own else place + 1, isthing, (c.name,)))
    return list(found.values())


def _plain(name: str) -> str:
    return same_writing(name).strip().lower()


def _writings(cls: CustomClass) -> list[str]:
    return [_plain(name) for name in cls.names]


def targets_of(labels: LabelSet, classes: Sequence[CustomClass]) -> dict[str, TargetClass]:
    """The class of the training data for each class of the labels."""
    by_name = {name: TargetClass(c.id, c.isthing) for c in reversed(classes) for name in _writings(c)}
    return {c.name: by_name[_plain(c.name)] for c in labels.classes}


# ------------------------------------------------------------------------------------------ conversion


def from_labels(custom: CfgNode, root: Path) -> tuple[Path, Path]:
    """Converts the labels unless the cache has them; returns the folder of the JSON files and that of the panoptic PNG files.

    Images of the split "val" are held back for validation unless DATASETS.CUSTOM.VAL names others. Those of the split "test" are a
    part of their own, `test.json`.

    Raises:
        DatasetError, ConfigError: faulty labels, or classes that the class list has not.
    """
    labels, classes = labels_of(custom), label_classes(custom)
    images = {relative_name(i.file, root): i for i in labels.images}
    names = sorted(images)
    test = {name for name in names if images[name].split == "test"}
    logger.info(
        "%s: %s, %s images%s", labels.path, labels.format, len(images),
        f"; {len(test)} of the split test train nothing; DATASETS.TEST \"('custom_test',)\" evaluates on them" if test else "",
    )  # fmt: skip
    held_back = {name for name in names if images[name].split == "val"}
    if custom.VAL or not held_back:
        held_back = held_back_of(custom, root, [name for name in names if name not in test])
    elif custom.VAL_FRACTION == 0:
        held_back = set()
    folder = cache_folder(
        "labels", labels.fingerprint, labels.format, [[n, *images[n].size] for n in names],
        [c.category for c in classes], custom.BACKGROUND, custom.IGNORE_VALUE, custom.MASK_NAME, custom.MIN_THING_AREA,
        sorted(held_back), sorted(test),
    )  # fmt: skip
    panoptic = folder / "panoptic"
    notes = folder / "notes.json"
    if (folder / "val.json").is_file():
        _warn(json.loads(notes.read_text()) if notes.is_file() else [])
        return folder, panoptic
    for place in (folder, panoptic, folder / "semantic"):
        remove_leftovers(place)
    if labels.check is not None:
        labels.check()
    convert = partial(
        _convert, folder, images, targets_of(labels, classes), _background(custom, classes), custom.MIN_THING_AREA,
        {c.id: index for index, c in enumerate(classes)},
    )  # fmt: skip
    records = convert_all(names, convert, folder / "journal.jsonl", 1, "labels")
    write_json(notes, _notes(labels, names, records, bool(custom.BACKGROUND)))
    _warn(json.loads(notes.read_text()))
    content = {
        "images": [{"id": n, "file_name": n, "height": images[n].size[0], "width": images[n].size[1]} for n in names],
        "annotations": [
            {"image_id": n, "file_name": f"{n}.png", "segments_info": r["segments_info"]}
            for n, r in zip(names, records, strict=True)
        ],
        "categories": [c.category for c in classes],
    }
    write_splits(folder, content, held_back, test)
    return folder, panoptic


def _warn(notes: list[str]) -> None:
    for note in notes:
        logger.warning("own data: %s", note)


def _background(custom: CfgNode, classes: list[CustomClass]) -> TargetClass | None:
    if not custom.BACKGROUND:
        return None
    cls = next(c for c in classes if _plain(custom.BACKGROUND) in _writings(c))
    return TargetClass(cls.id, False)


def _convert(
    folder: Path,
    images: dict[str, LabeledImage],
    targets: dict[str, TargetClass],
    background: TargetClass | None,
    min_area: int,
    indices: dict[int, int],
    name: str,
) -> dict[str, Any]:
    """Writes the panoptic and the semantic PNG of one image; returns its segments."""
    drawn = draw(images[name], targets, background, min_area)
    semantic = np.full(drawn.ids.shape, VOID, np.uint8)
    for identifier, index in indices.items():
        semantic[drawn.classes == identifier] = index
    save_png(folder / "panoptic" / f"{name}.png", ids_to_rgb(drawn.ids))
    save_png(folder / "semantic" / f"{name}.png", semantic)
    return {"segments_info": drawn.segments, "hidden": drawn.hidden}


def _notes(labels: LabelSet, names: list[str], records: list[dict[str, Any]], background: bool) -> list[str]:
    """Remarks for the user about the converted labels."""
    notes = []
    hidden = [f"{r['hidden']} in {n}" for n, r in zip(names, records, strict=True) if r["hidden"]]
    if hidden:
        notes.append(
            f"in {len(hidden)} of {len(names)} images regions are left out, since others cover them wholly: {first_few(hidden)}"
        )
    empty = [n for n, r in zip(names, records, strict=True) if not r["segments_info"]]
    if empty and not background:
        notes.append(without_regions(len(names), empty))
    return [f"{labels.path}: {note}" for note in notes]


def without_regions(images: int, empty: Sequence[str]) -> str:
    """The note on images whose labels hold no region: what training makes of them, and what changes it.

    Args:
        images: number of all images.
        empty: names of those.
    """
    return (
        f"{len(empty)} of {images} images have labels without any region: {first_few(list(empty))}. Training keeps them: models that "
        "predict masks learn that no object is there, models that predict a class for each pixel learn nothing from them. To make their "
        "pixels a class name it in DATASETS.CUSTOM.BACKGROUND; take images that are not labelled yet out of the label file"
    )
