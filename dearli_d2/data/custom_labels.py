"""Own data in the format of a labelling tool (DATASETS.CUSTOM.LABELS), converted to COCO-panoptic files in the cache."""

from __future__ import annotations

import logging
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..errors import ConfigError, DatasetError, first_few
from ..files import remove_leftovers, same_writing
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
    """The classes of the training data.

    They are those of the class list where there is one, else those of the labels. DATASETS.CUSTOM.BACKGROUND comes last.

    Raises:
        ConfigError: a class of the labels that the class list has not, with all of them.
    """
    labels = labels_of(custom)
    if custom.CLASSES:
        classes = parse_classes(custom.CLASSES, -1)
        known = {name for c in classes for name in _writings(c)}
        strangers = [c.name for c in labels.classes if _plain(c.name) not in known]
        if strangers:
            raise ConfigError(
                f"DATASETS.CUSTOM.CLASSES lacks {len(strangers)} of {len(labels.classes)} classes of {labels.path}: "
                f"{first_few(strangers, 8)}; add a line, or the name as a synonym of another class"
            )
    else:
        classes = unlisted_classes(labels)
    if custom.BACKGROUND and not any(_plain(custom.BACKGROUND) in _writings(c) for c in classes):
        free = next(i for i in range(2**16) if i not in {c.id for c in classes})
        classes.append(CustomClass(free, False, (custom.BACKGROUND,)))
    if len(classes) > VOID:
        raise ConfigError(f"{labels.path} has {len(classes)} classes; training data can have {VOID}")
    return classes


def unlisted_classes(labels: LabelSet) -> list[CustomClass]:
    """The classes of labels for which the user gives no list: in the ids of the file if these can be pixel values."""
    ids = [c.id for c in labels.classes]
    numbers = [i for i in ids if i is not None]
    own = len(set(numbers)) == len(ids) and all(0 <= i < 2**16 for i in numbers)
    return [
        CustomClass(
            numbers[place] if own else place + 1, labels.instances if c.isthing is None else c.isthing, (c.name,)
        )
        for place, c in enumerate(labels.classes)
    ]


def _plain(name: str) -> str:
    return same_writing(name).strip().lower()


def _writings(cls: CustomClass) -> list[str]:
    return [_plain(name) for name in cls.names]


def _targets(labels: LabelSet, classes: list[CustomClass]) -> dict[str, TargetClass]:
    by_name = {name: TargetClass(c.id, c.isthing) for c in reversed(classes) for name in _writings(c)}
    return {c.name: by_name[_plain(c.name)] for c in labels.classes}


# ------------------------------------------------------------------------------------------ conversion


def from_labels(custom: CfgNode, root: Path) -> tuple[Path, Path]:
    """Converts the labels unless the cache has them; returns the folder of the JSON files and that of the panoptic PNG files.

    Images of the split "val" are held back for validation unless DATASETS.CUSTOM.VAL names others. Those of the split "test" are
    left out.

    Raises:
        DatasetError, ConfigError: faulty labels, or classes that the class list has not.
    """
    labels, classes = labels_of(custom), label_classes(custom)
    images = {relative_name(i.file, root): i for i in labels.images if i.split != "test"}
    left_out = len(labels.images) - len(images)
    logger.info(
        "%s: %s, %s images%s", labels.path, labels.format, len(images),
        f"; {left_out} of the split test are left out" if left_out else "",
    )  # fmt: skip
    names = sorted(images)
    held_back = {name for name in names if images[name].split == "val"}
    if custom.VAL or not held_back:
        held_back = held_back_of(custom, root, names)
    elif custom.VAL_FRACTION == 0:
        held_back = set()
    folder = cache_folder(
        "labels", labels.fingerprint, labels.format, [[n, *images[n].size] for n in names],
        [c.category for c in classes], custom.BACKGROUND, custom.IGNORE_VALUE, custom.MASK_NAME, custom.MIN_THING_AREA,
        sorted(held_back),
    )  # fmt: skip
    panoptic = folder / "panoptic"
    if (folder / "val.json").is_file():
        return folder, panoptic
    for place in (folder, panoptic, folder / "semantic"):
        remove_leftovers(place)
    if labels.check is not None:
        labels.check()
    convert = partial(
        _convert, folder, images, _targets(labels, classes), _background(custom, classes), custom.MIN_THING_AREA,
        {c.id: index for index, c in enumerate(classes)},
    )  # fmt: skip
    records = convert_all(names, convert, folder / "journal.jsonl", 1, "labels")
    _warn(labels, names, records)
    content = {
        "images": [{"id": n, "file_name": n, "height": images[n].size[0], "width": images[n].size[1]} for n in names],
        "annotations": [
            {"image_id": n, "file_name": f"{n}.png", "segments_info": r["segments_info"]}
            for n, r in zip(names, records, strict=True)
        ],
        "categories": [c.category for c in classes],
    }
    write_splits(folder, content, held_back)
    return folder, panoptic


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


def _warn(labels: LabelSet, names: list[str], records: list[dict[str, Any]]) -> None:
    hidden = [f"{r['hidden']} in {n}" for n, r in zip(names, records, strict=True) if r["hidden"]]
    if hidden:
        logger.warning(
            "own data: %s: in %s of %s images regions are left out, since others cover them wholly: %s",
            labels.path, len(hidden), len(names), first_few(hidden),
        )  # fmt: skip
    empty = [n for n, r in zip(names, records, strict=True) if not r["segments_info"]]
    if empty:
        logger.warning(
            "own data: %s: %s of %s images have no labelled pixel and teach nothing: %s. If they show background, name its class "
            "in DATASETS.CUSTOM.BACKGROUND; if they are not labelled yet, take them out of the label file",
            labels.path, len(empty), len(names), first_few(empty),
        )  # fmt: skip
