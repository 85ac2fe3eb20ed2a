#!/usr/bin/env python
"""Cityscapes with the 19 evaluation classes, as one segment a class.

Reads below $DETECTRON2_DATASETS/cityscapes

    leftImg8bit/{train,val}/CITY/*_leftImg8bit.png             leftImg8bit_trainvaltest.zip
    gtFine/{train,val}/CITY/*_gtFine_labelIds.png              gtFine_trainvaltest.zip

and writes semantic_{train,val}.json and semantic_{train,val}/*.png. An interrupted run resumes.

    dearli prepare cityscapes --workers 4
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import workers
from dearli_d2.data.catalog import datasets_root
from dearli_d2.data.preparation import (
    ids_to_rgb,
    read_label_ids,
    save_png,
    semantic_segments,
    write_semantic_dataset,
)
from dearli_d2.data.streets import CATEGORIES, label_table, to_classes
from dearli_d2.errors import DatasetError, first_few

EXPECTED = {"train": 2975, "val": 500}
IMAGE, LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def convert(root: Path, split: str, name: str) -> dict:
    """Writes the label image of one "CITY/STEM"; returns its record."""
    path = root / "gtFine" / split / f"{name}{LABEL}"
    semantic = to_classes(read_label_ids(path), label_table(), path)
    ids, segments = semantic_segments(semantic, CATEGORIES, path)
    stem = Path(name).name + IMAGE.removesuffix(".png")
    save_png(root / f"semantic_{split}" / f"{stem}.png", ids_to_rgb(ids))
    height, width = semantic.shape
    return {"stem": stem, "image": name + IMAGE, "height": height, "width": width, "segments_info": segments}


@command(help=__doc__)
@workers
def main(workers: int) -> None:
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
        path, one = root / f"semantic_{split}.json", partial(convert, root, split)
        write_semantic_dataset(f"cityscapes_{split}", path, names, one, CATEGORIES, workers, EXPECTED[split])


if __name__ == "__main__":
    sys.exit(run(main))
