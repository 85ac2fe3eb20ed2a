#!/usr/bin/env python
"""Cityscapes with the 19 evaluation classes, as one segment a class.

Reads below $DETECTRON2_DATASETS/cityscapes

    leftImg8bit/{train,val}/CITY/*_leftImg8bit.png             leftImg8bit_trainvaltest.zip
    gtFine/{train,val}/CITY/*_gtFine_labelIds.png              gtFine_trainvaltest.zip

and writes semantic_{train,val}.json and semantic_{train,val}/*.png. An interrupted run resumes.

    python datasets/prepare_cityscapes.py [--workers 4]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dearli_d2.cli import report_errors
from dearli_d2.data.catalog import datasets_root
from dearli_d2.data.preparation import (
    categories_of,
    ids_to_rgb,
    save_png,
    semantic_segments,
    write_semantic_dataset,
)
from dearli_d2.errors import DatasetError, first_few

# published names, colours, and the label id of each class; all other ids 0..33 carry no loss
CLASSES = (
    "road, street", "sidewalk, pavement", "building, house", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation, tree, bush", "terrain, grass, soil", "sky", "person, pedestrian", "rider, cyclist, motorcyclist", "car",
    "truck", "bus", "train, tram", "motorcycle, motorbike", "bicycle, bike",
)  # fmt: skip
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
COLORS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
HIGHEST_ID = 33
EXPECTED = {"train": 2975, "val": 500}
IMAGE, LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def label_table() -> np.ndarray:
    """(256,) uint8: class 0..18 of each label id, 255 = ignore, 254 = not in the table."""
    table = np.full(256, 254, np.uint8)
    table[: HIGHEST_ID + 1] = 255
    table[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))
    return table


def convert(root: Path, split: str, name: str) -> dict:
    """Writes the label image of one "CITY/STEM"; returns its record."""
    path = root / "gtFine" / split / f"{name}{LABEL}"
    semantic = label_table()[np.array(Image.open(path))]
    ids, segments = semantic_segments(semantic, len(CLASSES), path)
    stem = Path(name).name + IMAGE.removesuffix(".png")
    save_png(root / f"semantic_{split}" / f"{stem}.png", ids_to_rgb(ids))
    height, width = semantic.shape
    return {"stem": stem, "image": name + IMAGE, "height": height, "width": width, "segments_info": segments}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args(argv)

    def command() -> int:
        root = datasets_root() / "cityscapes"
        for split in ("train", "val"):
            images = root / "leftImg8bit" / split
            names = sorted(str(p.relative_to(images)).removesuffix(IMAGE) for p in images.glob(f"*/*{IMAGE}"))
            if not names:
                raise DatasetError(f"{split}: no image in {images}/CITY; see --help for what to download")
            absent = [n for n in names if not (root / "gtFine" / split / f"{n}{LABEL}").is_file()]
            if absent:
                raise DatasetError(
                    f"{split}: {len(absent)} of {len(names)} images have no label in {root / 'gtFine' / split}: "
                    f"{first_few(absent)}"
                )
            path, one, categories = (
                root / f"semantic_{split}.json",
                partial(convert, root, split),
                categories_of(CLASSES, COLORS),
            )
            write_semantic_dataset(f"cityscapes_{split}", path, names, one, categories, args.workers, EXPECTED[split])
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main())
