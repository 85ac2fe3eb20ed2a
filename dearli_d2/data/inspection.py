"""A look at own data before training: checks of every label, counts, class frequencies, pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from tabulate import tabulate

from ..errors import DatasetError, DearliError, first_few
from ..files import write_atomically
from ..visualization import annotation_sheet
from .catalog import dataset_dicts, dataset_records, taxonomy_of
from .custom import TRAIN, UNLABELED, VAL, holds_back
from .images import measure, opened, orientation
from .validation import Label, check_files, check_labels, examined

logger = logging.getLogger(__name__)


def inspect_custom(custom: CfgNode) -> str:
    """Checks all labelled images of the registered own data; returns counts, sizes and class frequencies.

    Raises:
        DatasetError: what `validation` finds; classes that no image shows; images of which nearly every pixel is ignored.
    """
    names = [TRAIN, VAL] if holds_back(custom) else [TRAIN]
    found: dict[str, list[tuple[dict, Label]]] = {}
    for name in names:
        dicts = dataset_dicts(name)
        check_files(name, dicts)
        found[name] = list(zip(dicts, check_labels(name, dicts), strict=True))
    labelled = [pair for pairs in found.values() for pair in pairs]
    taxonomy = taxonomy_of(TRAIN)
    rows = _frequencies(labelled, len(taxonomy))
    absent = [c for c in range(len(taxonomy)) if not rows[c, 1]]
    notes = []
    if absent:
        notes.append(_absent(custom, [f"{taxonomy.main_names[c]} (id {taxonomy.dataset_ids[c]})" for c in absent]))
    if VAL in found:
        missed = _frequencies(found[TRAIN], len(taxonomy))
        only = [name for c, name in enumerate(taxonomy.main_names) if rows[c, 1] and not missed[c, 1]]
        if only:
            notes.append(f"only images that are held back for validation show {first_few(only)}: nothing teaches it")
    notes += _mostly_ignored(custom, labelled) + turned_note([d["file_name"] for d, _ in labelled])
    for note in notes:
        logger.warning("own data: %s", note)
    pixels = sum(sum(label.areas.values()) for _, label in labelled)
    table = [
        [name, "thing" if i in taxonomy.thing_ids else "stuff", *rows[i, :2].tolist(), 100 * rows[i, 2] / pixels]
        for i, name in enumerate(taxonomy.main_names)
    ]
    ignored = sum(label.areas.get(0, 0) for _, label in labelled)
    table.append(["(ignored)", "", "", "", 100 * ignored / pixels])
    lines = [_size_line(name) for name in names] + [_unlabelled(custom)] + [f"warning: {note}" for note in notes]
    headers = ["class", "kind", "images", "segments", "% of pixels"]
    return "\n".join(lines) + "\n" + tabulate(table, headers, floatfmt=".2f")


def known_sizes(dicts: Sequence[dict]) -> np.ndarray:
    """(N, 2) height and width of images. Of images without annotations some are measured, evenly spread, and N is less."""
    if dicts and "height" in dicts[0]:
        return np.array([(d["height"], d["width"]) for d in dicts])
    found = measure(examined(dicts))
    return np.array([size for size in found if not isinstance(size, str)]).reshape(-1, 2)


def size_range(dicts: Sequence[dict]) -> str:
    """Smallest and largest width and height of images."""
    sizes = known_sizes(dicts)
    if not len(sizes):
        raise DatasetError("no image can be read")
    (least_height, least_width), (height, width) = sizes.min(0).tolist(), sizes.max(0).tolist()
    note = "" if len(sizes) == len(dicts) else f", as far as measured: {len(sizes)} images"
    return f"{least_width} x {least_height} to {width} x {height} pixels (w x h){note}"


def _size_line(name: str) -> str:
    dicts = dataset_records(name)
    return f"{name}: {len(dicts)} images, {size_range(dicts)}"


def _unlabelled(custom: CfgNode) -> str:
    try:
        return _size_line(UNLABELED)
    except DearliError as error:  # a run without unlabelled images needs none
        return f"{UNLABELED}: {error}"


def _frequencies(labelled: list[tuple[dict, Label]], classes: int) -> np.ndarray:
    """(K, 3): images that show a class, its segments, its pixels."""
    rows = np.zeros((classes, 3), dtype=np.int64)
    for d, label in labelled:
        visible = [s for s in d["segments_info"] if label.areas.get(s["id"]) and not s["iscrowd"]]
        for c in {s["category_id"] for s in visible}:
            rows[c, 0] += 1
        for s in visible:
            rows[s["category_id"], 1:] += 1, label.areas[s["id"]]
    return rows


def _absent(custom: CfgNode, classes: list[str]) -> str:
    problem = f"no labelled image shows {first_few(classes)}"
    if custom.ALLOW_ABSENT_CLASSES:
        return problem
    raise DatasetError(
        f"{problem}: check the ids in DATASETS.CUSTOM.CLASSES and the masks (objects below DATASETS.CUSTOM.MIN_THING_AREA "
        f"{custom.MIN_THING_AREA} pixels are left out); if it is meant so set DATASETS.CUSTOM.ALLOW_ABSENT_CLASSES True"
    )


def _mostly_ignored(custom: CfgNode, labelled: list[tuple[dict, Label]]) -> list[str]:
    few = [
        d["pan_seg_file_name"] if custom.PANOPTIC_JSON else d["file_name"]
        for d, label in labelled
        if 1 - label.areas.get(0, 0) / sum(label.areas.values()) < custom.MIN_LABELED
    ]
    if not few:
        return []
    problem = (
        f"of {len(few)} of {len(labelled)} labelled images less than {custom.MIN_LABELED:.0%} of the pixels have a label: "
        f"{first_few(few)}"
    )
    if 2 * len(few) > len(labelled):
        raise DatasetError(
            f"{problem}; the others are ignored. "
            + ("If they show background, name its class in DATASETS.CUSTOM.BACKGROUND. " if custom.LABELS else "")
            + "If labels are meant to be that sparse (points, scribbles, small objects alone) set DATASETS.CUSTOM.MIN_LABELED 0"
        )
    return [problem]


def turned_note(files: Sequence[str | Path]) -> list[str]:
    """A note about labelled images whose EXIF tag turns them without a change of the size, which would show a mismatch."""
    turned = []
    for file in files:
        with opened(file) as image:
            if orientation(image) in (2, 3, 4) or (orientation(image) >= 5 and image.width == image.height):
                turned.append(str(file))
    if not turned:
        return []
    return [
        f"an EXIF tag turns or mirrors {len(turned)} of {len(files)} labelled images, and their labels are taken to fit the image "
        f"as it is seen: {first_few(turned)}; look at their picture, and remove the tag (exiftool -Orientation= FILE) if they do not"
    ]


def write_contact_sheet(path: Path, rows: int = 6) -> None:
    """Labelled images beside their segments."""
    dicts = dataset_dicts(TRAIN)
    chosen = [dicts[i] for i in np.linspace(0, len(dicts) - 1, min(rows, len(dicts))).astype(int)]
    sheet = annotation_sheet(chosen, taxonomy_of(TRAIN))
    write_atomically(path, lambda temporary: sheet.save(temporary))
