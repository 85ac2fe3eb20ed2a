"""Preparation of rendered street scenes (GTA5, SYNTHIA) with the classes of Cityscapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DatasetError, first_few
from .images import opened
from .preparation import ids_to_rgb, save_png, semantic_segments, write_semantic_dataset
from .sources import datasets_root
from .streets import CATEGORIES, to_classes


def prepare(
    name: str,
    folders: tuple[str, str],
    read_labels: Callable[[Path], np.ndarray],
    table: np.ndarray,
    expected: int,
    workers: int,
) -> None:
    """Writes the data set NAME_train.

    Args:
        name: folder below the data-set root.
        folders: of images and labels, below it.
        read_labels: (H, W) label ids of a file.
        table: (256,) class of each id.
        expected: images of the release.
        workers: processes.

    Raises:
        DatasetError: no images, images without a label, or an id outside the table.
    """
    root = datasets_root() / name
    images, labels = (root / folder for folder in folders)
    stems = paired_stems(name, images, labels)
    out = root / "semantic_train.json"
    convert = partial(street_record, out.with_suffix(""), images, labels, read_labels, table)
    write_semantic_dataset(f"{name}_train", out, stems, convert, CATEGORIES, workers, expected)


def paired_stems(name: str, images: Path, labels: Path) -> list[str]:
    """Stems of the PNG images of a folder, sorted, after a check that each has a label.

    Raises:
        DatasetError: no image, or images without a label, with the first ones.
    """
    stems = sorted(p.stem for p in images.glob("*.png"))
    if not stems:
        raise DatasetError(f"{name}: no image in {images}; see --help for what to download")
    present = {p.stem for p in labels.glob("*.png")}
    absent = [s for s in stems if s not in present]
    if absent:
        raise DatasetError(
            f"{name}: {len(absent)} of {len(stems)} images have no label in {labels}: {first_few(absent)}"
        )
    return stems


def street_record(
    out: Path, images: Path, labels: Path, read_labels: Callable[[Path], np.ndarray], table: np.ndarray, stem: str
) -> dict:
    """Writes the classes of one scene below `out`; returns its record, or why it is skipped.

    Raises:
        DatasetError: an id outside the table.
    """
    image, label = images / f"{stem}.png", labels / f"{stem}.png"
    semantic = to_classes(read_labels(label), table, label)
    height, width = semantic.shape
    with opened(image) as file:
        size = file.size
    if size != (width, height):
        return {"stem": image.stem, "skipped": f"image {size[0]} x {size[1]}, label {width} x {height} pixels"}
    ids, segments = semantic_segments(semantic, CATEGORIES, label)
    save_png(out / f"{image.stem}.png", ids_to_rgb(ids))
    return {"stem": image.stem, "image": image.name, "height": height, "width": width, "segments_info": segments}
