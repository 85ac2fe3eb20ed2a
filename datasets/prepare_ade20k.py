#!/usr/bin/env python
"""From the official ADE20K downloads to COCO-panoptic files.

Reads below $DETECTRON2_DATASETS/ADEChallengeData2016

    images/{training,validation}/*.jpg                 ADEChallengeData2016.zip (923 MB), 20210 and 2000 images
    annotations/{training,validation}/*.png            the same; 0 = none, 1..150 = class
    objectInfo150.txt                                  the same; names
    annotations_instance/{training,validation}/*.png   annotations_instance.tar; red = thing class 1..100, green = instance

Both archives are on http://sceneparsing.csail.mit.edu, without registration. The first has the folder ADEChallengeData2016, and the
second is unpacked into it. Images are for non-commercial research and education; annotations are under the BSD 3-clause licence.

It writes ade20k_panoptic_{train,val}.json, ade20k_panoptic_{train,val}/*.png and annotations_detectron2/{training,validation}/*.png
(class 0..149, 255 = ignore). An interrupted run resumes.

    dearli prepare ade20k --workers 8
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, workers
from dearli_d2.data.class_names import find_class
from dearli_d2.data.images import read_image
from dearli_d2.data.panoptic_png import ids_to_rgb, segment_info
from dearli_d2.data.preparation import categories_of, fit_to_image, read_label_ids, save_png, write_semantic_dataset
from dearli_d2.data.release import Download, Release
from dearli_d2.data.sources import datasets_root
from dearli_d2.errors import DatasetError
from dearli_d2.files import read_text

# scene-parsing class (1..150) of each of the 100 instance classes, in their order (published mapping)
THING_CLASSES = (
    8, 9, 11, 13, 15, 16, 19, 20, 21, 23, 24, 25, 28, 31, 32, 33, 34, 36, 37, 38, 39, 40, 42, 43, 44, 45, 46, 48, 50, 51,
    54, 56, 57, 58, 59, 63, 65, 66, 67, 68, 70, 71, 72, 73, 74, 75, 76, 77, 79, 81, 82, 83, 84, 86, 87, 88, 89, 90, 91, 93,
    94, 96, 98, 99, 103, 104, 105, 108, 109, 111, 112, 113, 116, 117, 119, 120, 121, 122, 124, 125, 126, 127, 128, 130,
    131, 133, 134, 135, 136, 137, 138, 139, 140, 143, 144, 145, 147, 148, 149, 150,
)  # fmt: skip
CATEGORIES = categories_of("ade20k", things=[number - 1 for number in THING_CLASSES])
SPLITS = {"train": ("training", 20210), "val": ("validation", 2000)}
HINT = (
    "download ADEChallengeData2016.zip and annotations_instance.tar from http://sceneparsing.csail.mit.edu; unpack the first in "
    "$DETECTRON2_DATASETS, the second in its folder ADEChallengeData2016"
)


def check_names(path: Path) -> None:
    """The classes of objectInfo150.txt must be the 150 that are known, in their order.

    Raises:
        DatasetError: no such file, another number of classes, or another class.
    """
    if not path.is_file():
        raise DatasetError(f"no file {path}; {HINT}")
    rows = [line.split("\t") for line in read_text(path, DatasetError).splitlines() if line[:1].isdigit()]
    if len(rows) != len(CATEGORIES):
        raise DatasetError(f"{path} lists {len(rows)} classes, not {len(CATEGORIES)}")
    for category, row in zip(CATEGORIES, rows, strict=True):
        entry = find_class("ade20k", row[-1])
        if entry is None or entry.id != category["id"] or int(row[0]) != category["id"] + 1:
            raise DatasetError(
                f"{path}: class {row[0]} is {row[-1]!r}, not {category['name']!r} of the official release"
            )


def panoptic_of(semantic: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    """(H, W) segment ids and their infos.

    Args:
        semantic: (H, W), 0 = none, 1..150. instances: (H, W, 3), red = instance class, green = instance, 0 = none.

    Stuff is one segment a class; things are the instances, which lie above the stuff. Thing pixels that belong to no
    instance stay void.
    """
    ids, categories = np.zeros(semantic.shape, np.int64), {}
    for number in np.unique(semantic):
        if number and number not in THING_CLASSES:
            categories[len(categories) + 1] = int(number) - 1
            ids[semantic == number] = len(categories)
    keys = instances[..., 0].astype(np.int64) * 256 + instances[..., 1]
    for key in np.unique(keys[instances[..., :2].all(-1)]):
        categories[len(categories) + 1] = THING_CLASSES[key // 256 - 1] - 1
        ids[keys == key] = len(categories)
    visible = set(np.unique(ids).tolist())
    return ids, [segment_info(i, c, ids == i) for i, c in categories.items() if i in visible]


def convert(stem: str, root: Path, split: str) -> dict:
    """Writes both PNG files of an image; returns its record."""
    folder = SPLITS[split][0]
    semantic = read_label_ids(root / "annotations" / folder / f"{stem}.png")
    instances = read_image(root / "annotations_instance" / folder / f"{stem}.png")
    if semantic.shape != instances.shape[:2]:
        raise DatasetError(f"{stem}: annotations are {semantic.shape}, annotations_instance {instances.shape[:2]}")
    for what, highest, table in (
        ("class", semantic.max(), CATEGORIES),
        ("instance class", instances[..., 0].max(), THING_CLASSES),
    ):
        if highest > len(table):
            raise DatasetError(f"{stem}: {what} {highest} is not in 1..{len(table)}, and not 0 (none)")
    (semantic, instances), note = fit_to_image(root / "images" / folder / f"{stem}.jpg", semantic, instances)
    ids, infos = panoptic_of(semantic, instances)
    save_png(root / f"ade20k_panoptic_{split}" / f"{stem}.png", ids_to_rgb(ids))
    save_png(root / "annotations_detectron2" / folder / f"{stem}.png", semantic - np.uint8(1))  # 0 wraps to 255
    height, width = semantic.shape
    return {"stem": stem, "height": height, "width": width, "segments_info": infos, "note": note}


def stems_of(root: Path, split: str, incomplete: bool) -> tuple[Release, list[str]]:
    """A split's release and the names of its images. Raises `DatasetError` for a download that is not as the release."""
    folder, images = SPLITS[split]
    names = [f"ADE_{split}_{number:08d}" for number in range(1, images + 1)]
    release = Release(f"ade20k_panoptic_{split}", images, HINT, names, incomplete)
    download = Download(release)
    stems = download.stems(root / "images" / folder, ".jpg")
    download.count(stems, root / "images" / folder)
    for labels in ("annotations", "annotations_instance"):
        download.labelled(stems, root / labels / folder, ".png")
    download.stop()
    return release, stems


def prepare(root: Path, workers: int, incomplete: bool) -> None:
    """Both splits, once both are found complete."""
    check_names(root / "objectInfo150.txt")
    found = {split: stems_of(root, split, incomplete) for split in SPLITS}
    for split, (release, stems) in found.items():
        path, one = root / f"ade20k_panoptic_{split}.json", partial(convert, root=root, split=split)
        also = [root / "annotations_detectron2" / SPLITS[split][0]]
        write_semantic_dataset(release, path, stems, one, CATEGORIES, workers, also=also)


@command(help=__doc__)
@workers
@incomplete
def main(workers: int, incomplete: bool) -> None:
    prepare(datasets_root() / "ADEChallengeData2016", workers, incomplete)


if __name__ == "__main__":
    sys.exit(run(main))
