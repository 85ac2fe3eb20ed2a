#!/usr/bin/env python
"""COCO-Stuff with 171 classes, as one segment a class.

Reads below $DETECTRON2_DATASETS/coco

    {train,val}2017/*.jpg                               the COCO images
    stuffthingmaps/{train,val}2017/*.png                stuffthingmaps_trainval2017.zip; value = COCO id - 1, 255 = none

and writes annotations/stuff171_{train,val}2017.json and annotations/stuff171_{train,val}2017/*.png. An interrupted run resumes.

    python datasets/prepare_coco_stuff.py --workers 4 --splits train val
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from dearli_d2.data.catalog import datasets_root
from dearli_d2.data.class_names import COCO_THINGS
from dearli_d2.data.preparation import (
    categories_of,
    check_pairs,
    ids_to_rgb,
    read_label_ids,
    save_png,
    semantic_segments,
    write_semantic_dataset,
)
from dearli_d2.reporting import report_errors

CATEGORIES = categories_of("coco_stuff", things=COCO_THINGS)  # 80 + 91
EXPECTED = {"train": 118287, "val": 5000}
HINT = "see --help for what to download"


def label_table() -> np.ndarray:
    """(256,) uint8: class 0..170 of each value, 255 = none, 254 = not in the table."""
    table = np.full(256, 254, np.uint8)
    table[255] = 255
    table[[category["id"] - 1 for category in CATEGORIES]] = np.arange(len(CATEGORIES))
    return table


def convert(source: Path, target: Path, stem: str) -> dict:
    """Writes one label image; returns its record."""
    path = source / f"{stem}.png"
    semantic = label_table()[read_label_ids(path)]
    ids, segments = semantic_segments(semantic, CATEGORIES, path)
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
            path = root / "annotations" / f"stuff171_{split}2017.json"
            one = partial(convert, source, path.with_suffix(""))
            write_semantic_dataset(f"coco_stuff_{split}", path, stems, one, CATEGORIES, args.workers, EXPECTED[split])
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main())
