#!/usr/bin/env python
"""COCO-Stuff with 171 classes, as one segment a class.

Reads below $DETECTRON2_DATASETS/coco

    {train,val}2017/*.jpg                               the COCO images
    stuffthingmaps/{train,val}2017/*.png                stuffthingmaps_trainval2017.zip; value = COCO id - 1, 255 = none

and writes annotations/stuff171_{train,val}2017.json and annotations/stuff171_{train,val}2017/*.png. An interrupted run resumes.

    python datasets/prepare_coco_stuff.py [--workers 4] [--splits train val]
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
    check_pairs,
    ids_to_rgb,
    save_png,
    semantic_segments,
    write_semantic_dataset,
)

THINGS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra",
    "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
    "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
STUFF = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet",
    "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt",
    "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog",
    "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves", "light", "mat",
    "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement", "pillow", "plant-other",
    "plastic", "platform", "playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad", "sand",
    "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw", "structural-other",
    "table", "tent", "textile-other", "towel", "tree", "vegetable", "wall-brick", "wall-concrete", "wall-other",
    "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind", "window-other",
    "wood",
)  # fmt: skip
CLASSES = THINGS + STUFF
# COCO ids that no thing has; things are 1..91, stuff 92..182
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
EXPECTED = {"train": 118287, "val": 5000}
HINT = "see --help for what to download"


def label_table() -> np.ndarray:
    """(256,) uint8: class 0..170 of each value, 255 = none, 254 = not in the table."""
    table = np.full(256, 254, np.uint8)
    table[255] = 255
    used = [value for value in range(182) if value + 1 not in UNUSED_IDS]
    table[used] = np.arange(len(used))
    return table


def convert(source: Path, target: Path, stem: str) -> dict:
    """Writes one label image; returns its record."""
    path = source / f"{stem}.png"
    semantic = label_table()[np.array(Image.open(path))]
    ids, segments = semantic_segments(semantic, len(CLASSES), path)
    save_png(target / f"{stem}.png", ids_to_rgb(ids))
    return {"stem": stem, "height": semantic.shape[0], "width": semantic.shape[1], "segments_info": segments}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", nargs="+", choices=("train", "val"), default=["train", "val"])
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args(argv)

    def command() -> int:
        root = datasets_root() / "coco"
        for split in args.splits:
            source = root / "stuffthingmaps" / f"{split}2017"
            stems = check_pairs(root / f"{split}2017", [source], split, None, HINT)
            # "wall-brick" is read by a text tower as two words
            names = [name.removesuffix("-other").removesuffix("-stuff").replace("-", " ") for name in CLASSES]
            categories = [
                {**c, "synonyms": []} | ({"name": published, "synonyms": [c["name"]]} if c["name"] != published else {})
                for c, published in zip(categories_of(names), CLASSES, strict=True)
            ]
            path = root / "annotations" / f"stuff171_{split}2017.json"
            one = partial(convert, source, path.with_suffix(""))
            write_semantic_dataset(f"coco_stuff_{split}", path, stems, one, categories, args.workers, EXPECTED[split])
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main())
