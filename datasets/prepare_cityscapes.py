#!/usr/bin/env python
"""Cityscapes with the 19 evaluation classes, as one segment a class.

Reads below $DETECTRON2_DATASETS/cityscapes

    leftImg8bit/{train,val}/CITY/*_leftImg8bit.png             leftImg8bit_trainvaltest.zip (11 GB); 2975 and 500 images
    gtFine/{train,val}/CITY/*_gtFine_labelIds.png              gtFine_trainvaltest.zip (241 MB)

Both archives are on https://www.cityscapes-dataset.com for those who have registered; they are for non-commercial use. Where there is no
labelIds file, *_gtFine_labelTrainIds.png is read. The official scripts make it, and UniMatch and SemiVL distribute it.

It writes semantic_{train,val}.json and semantic_{train,val}/*.png. An interrupted run resumes.

    dearli prepare cityscapes --workers 4
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, workers
from dearli_d2.data.images import files_below
from dearli_d2.data.panoptic_png import ids_to_rgb
from dearli_d2.data.preparation import fit_to_image, read_label_ids, save_png, semantic_segments, write_semantic_dataset
from dearli_d2.data.release import Download, Release
from dearli_d2.data.sources import datasets_root
from dearli_d2.data.streets import CATEGORIES, label_table, to_classes
from dearli_d2.errors import DatasetError

EXPECTED = {"train": 2975, "val": 500}
IMAGE, LABEL, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
HINT = (
    "download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com and unpack both in "
    "$DETECTRON2_DATASETS/cityscapes"
)


def read_classes(path: Path) -> np.ndarray:
    """(H, W) uint8 classes 0..18, 255 = ignore, of a file of either kind."""
    ids = read_label_ids(path)
    if path.name.endswith(TRAIN_IDS):
        return ids
    try:
        return to_classes(ids, label_table(), path)
    except DatasetError as error:
        if (ids == 255).any():  # no value of labelIds: the official script leaves out the licence plate, whose id is -1
            raise DatasetError(f"{error}; are these train ids? they belong in a file *{TRAIN_IDS}") from error
        raise


def convert(root: Path, split: str, name: str) -> dict:
    """Writes the label image of one "CITY/STEM"; returns its record."""
    path = root / "gtFine" / split / f"{name}{LABEL}"
    path = path if path.is_file() else path.with_name(Path(name).name + TRAIN_IDS)
    (semantic,), note = fit_to_image(root / "leftImg8bit" / split / (name + IMAGE), read_classes(path))
    ids, segments = semantic_segments(semantic, CATEGORIES, path)
    stem = Path(name).name + IMAGE.removesuffix(".png")
    save_png(root / f"semantic_{split}" / f"{stem}.png", ids_to_rgb(ids))
    height, width = semantic.shape
    return {
        "stem": stem, "image": name + IMAGE, "height": height, "width": width, "segments_info": segments, "note": note
    }  # fmt: skip


def names_of(root: Path, split: str, incomplete: bool) -> tuple[Release, list[str]]:
    """A split's release, and "CITY/STEM" of its images. Raises `DatasetError` for a download that is not as the release."""
    release = Release(f"cityscapes_{split}", EXPECTED[split], HINT, incomplete=incomplete)
    download, images, labels = Download(release), root / "leftImg8bit" / split, root / "gtFine" / split
    names = [
        p.relative_to(images).as_posix().removesuffix(IMAGE) for p in files_below(images) if p.name.endswith(IMAGE)
    ]
    download.count(names, images)
    present = {p.relative_to(labels).as_posix() for p in files_below(labels)} if labels.is_dir() else set()
    absent = [name for name in names if not {name + LABEL, name + TRAIN_IDS} & present]
    if absent:
        download.refuse(f"{len(absent)} of {len(names)} images have no label in {labels}", absent)
    download.stop()
    return release, names


@command(help=__doc__)
@workers
@incomplete
def main(workers: int, incomplete: bool) -> None:
    root = datasets_root() / "cityscapes"
    found = {split: names_of(root, split, incomplete) for split in EXPECTED}
    for split, (release, names) in found.items():
        path, one = root / f"semantic_{split}.json", partial(convert, root, split)
        write_semantic_dataset(release, path, names, one, CATEGORIES, workers)


if __name__ == "__main__":
    sys.exit(run(main))
