"""Preparation of rendered street scenes (GTA5, SYNTHIA) with the classes of Cityscapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from .images import opened
from .panoptic_png import ids_to_rgb
from .preparation import save_png, semantic_segments, write_semantic_dataset
from .release import Download, Release
from .sources import datasets_root
from .streets import CATEGORIES, to_classes


def prepare(
    release: Release,
    folder: str,
    parts: tuple[str, str],
    read_labels: Callable[[Path], np.ndarray],
    table: np.ndarray,
    workers: int,
    known_misfits: int = 0,
) -> None:
    """Writes the data set of a release.

    Args:
        release: what must be there.
        folder: below the data-set root.
        parts: folders of images and labels, below it.
        read_labels: (H, W) label ids of a file.
        table: (256,) class of each id.
        workers: processes.
        known_misfits: images of the release whose label has another size.

    Raises:
        DatasetError: a download that is not as the release, damaged files, or an id outside the table.
    """
    root = datasets_root() / folder
    images, labels = (root / part for part in parts)
    download = Download(release)
    stems = download.stems(images, ".png")
    download.count(stems, images)
    download.labelled(stems, labels, ".png")
    download.stop()
    out = root / "semantic_train.json"
    convert = partial(street_record, out.with_suffix(""), images, labels, read_labels, table)
    write_semantic_dataset(release, out, stems, convert, CATEGORIES, workers, known_misfits)


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
