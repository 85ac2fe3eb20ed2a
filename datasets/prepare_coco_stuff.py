#!/usr/bin/env python
"""COCO-Stuff with 171 classes, as one segment a class.

Reads below $DETECTRON2_DATASETS/coco

    {train,val}2017/*.jpg                    train2017.zip (18 GB), val2017.zip (1 GB); 118287 and 5000 images
    stuffthingmaps/{train,val}2017/*.png     stuffthingmaps_trainval2017.zip (659 MB); value = COCO id - 1, 255 = none

The images are on https://cocodataset.org/#download, under the terms of Flickr, and the label maps, under CC BY 4.0, on
https://github.com/nightrome/cocostuff#downloads. None needs registration. Of the 182 ids, 11 were never annotated.

It writes annotations/stuff171_{train,val}2017.json and annotations/stuff171_{train,val}2017/*.png. An interrupted run resumes.

    dearli prepare coco_stuff train val --workers 4
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, splits, workers
from dearli_d2.data.class_names import COCO_THINGS
from dearli_d2.data.panoptic_png import ids_to_rgb
from dearli_d2.data.preparation import (
    categories_of,
    fit_to_image,
    read_label_ids,
    save_png,
    semantic_segments,
    write_semantic_dataset,
)
from dearli_d2.data.release import Download, Release
from dearli_d2.data.sources import datasets_root

CATEGORIES = categories_of("coco_stuff", things=COCO_THINGS)  # 80 + 91
EXPECTED = {"train": 118287, "val": 5000}
HINT = (
    "download the 2017 images from https://cocodataset.org/#download into $DETECTRON2_DATASETS/coco, and "
    "stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff into its folder stuffthingmaps; unpack them there"
)


def label_table() -> np.ndarray:
    """(256,) uint8: class 0..170 of each value, 255 = none, 254 = not in the table."""
    table = np.full(256, 254, np.uint8)
    table[255] = 255
    table[[category["id"] - 1 for category in CATEGORIES]] = np.arange(len(CATEGORIES))
    return table


def convert(root: Path, split: str, stem: str) -> dict:
    """Writes one label image; returns its record."""
    path = root / "stuffthingmaps" / f"{split}2017" / f"{stem}.png"
    semantic = label_table()[read_label_ids(path)]
    (semantic,), note = fit_to_image(root / f"{split}2017" / f"{stem}.jpg", semantic)
    ids, segments = semantic_segments(semantic, CATEGORIES, path)
    save_png(root / "annotations" / f"stuff171_{split}2017" / f"{stem}.png", ids_to_rgb(ids))
    height, width = semantic.shape
    return {"stem": stem, "height": height, "width": width, "segments_info": segments, "note": note}


def stems_of(root: Path, split: str, incomplete: bool) -> tuple[Release, list[str]]:
    """A split's release and the names of its images. Raises `DatasetError` for a download that is not as the release."""
    release = Release(f"coco_stuff_{split}", EXPECTED[split], HINT, incomplete=incomplete)
    download, images = Download(release), root / f"{split}2017"
    stems = download.stems(images, ".jpg")
    download.count(stems, images)
    download.labelled(stems, root / "stuffthingmaps" / f"{split}2017", ".png")
    download.stop()
    return release, stems


@command(help=__doc__)
@splits
@workers
@incomplete
def main(splits: tuple[str, ...], workers: int, incomplete: bool) -> None:
    root = datasets_root() / "coco"
    found = {split: stems_of(root, split, incomplete) for split in splits}
    for split, (release, stems) in found.items():
        path, one = root / "annotations" / f"stuff171_{split}2017.json", partial(convert, root, split)
        write_semantic_dataset(release, path, stems, one, CATEGORIES, workers)


if __name__ == "__main__":
    sys.exit(run(main))
