#!/usr/bin/env python
"""COCO-Stuff with 171 classes, as one segment a class.

Reads below $DETECTRON2_DATASETS/coco

    {train,val}2017/*.jpg                               the COCO images
    stuffthingmaps/{train,val}2017/*.png                stuffthingmaps_trainval2017.zip; value = COCO id - 1, 255 = none

and writes annotations/stuff171_{train,val}2017.json and annotations/stuff171_{train,val}2017/*.png. An interrupted run resumes.

    dearli prepare coco_stuff train val --workers 4
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import splits, workers
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


@command(help=__doc__)
@splits
@workers
def main(splits: tuple[str, ...], workers: int) -> None:
    root = datasets_root() / "coco"
    for split in splits:
        source = root / "stuffthingmaps" / f"{split}2017"
        stems = check_pairs(root / f"{split}2017", [source], split, None, HINT)
        path = root / "annotations" / f"stuff171_{split}2017.json"
        one = partial(convert, source, path.with_suffix(""))
        write_semantic_dataset(f"coco_stuff_{split}", path, stems, one, CATEGORIES, workers, EXPECTED[split])


if __name__ == "__main__":
    sys.exit(run(main))
