#!/usr/bin/env python
"""Pascal VOC 2012 with the extra labels of SBD, as one segment a class.

Reads below $DETECTRON2_DATASETS

    VOCdevkit/VOC2012/JPEGImages/*.jpg                           VOCtrainval_11-May-2012.tar (2 GB)
    VOCdevkit/VOC2012/SegmentationClass/*.png                    the same
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt     the same; 1464 and 1449 images
    benchmark_RELEASE/dataset/cls/*.mat, {train,val}.txt         SBD, benchmark.tgz (1.4 GB); 8498 and 2857 images

VOC is on http://host.robots.ox.ac.uk/pascal/VOC/voc2012, SBD on http://home.bharathh.info/pubs/codes/SBD, both without registration.
The photographs are under the terms of Flickr. Both archives are unpacked in $DETECTRON2_DATASETS.

Instead of SBD, its labels as PNG files can be in VOCdevkit/VOC2012/SegmentationClassAug, or in SegmentationClass among those of VOC, as
UniMatch and SemiVL distribute them: 12031 files.

It writes VOCdevkit/VOC2012/semantic_{train,val}.json and semantic_{train,val}/*.png. The training set is that of VOC and SBD without
VOC's validation images: 10582 images, VOC's own labels where there are two. An interrupted run resumes.

    dearli prepare pascal_voc --workers 4
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, workers
from dearli_d2.data.panoptic_png import ids_to_rgb
from dearli_d2.data.preparation import (
    categories_of,
    check_names,
    fit_to_image,
    read_label_ids,
    save_png,
    semantic_segments,
    write_semantic_dataset,
)
from dearli_d2.data.release import Download, Release
from dearli_d2.data.sources import datasets_root
from dearli_d2.errors import DatasetError
from dearli_d2.files import read_text

CATEGORIES = categories_of("pascal_voc")
EXPECTED = {"train": 10582, "val": 1449}
VOC_LISTS = {"train": 1464, "val": 1449}
SBD_LISTS = {"train": 8498, "val": 2857}
HINT = (
    "download VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012 and benchmark.tgz from "
    "http://home.bharathh.info/pubs/codes/SBD, and unpack both in $DETECTRON2_DATASETS"
)


def read_stems(path: Path, images: int, download: Download) -> list[str]:
    """Names of a list file, which has to have as many as in the release."""
    if not path.is_file():
        download.refuse(f"there is no list file {path}")
        return []
    stems = read_text(path, DatasetError).split()
    check_names(stems, path)
    if len(stems) != images and not download.release.incomplete:
        download.refuse(f"{path} lists {len(stems)} images, that of the official release {images}")
    return stems


def sbd_labels(voc: Path, sbd: Path, download: Download) -> dict[str, Path]:
    """Label files of SBD: its own, or the PNG files that others made of them."""
    if sbd.is_dir():
        lists = [read_stems(sbd / f"{name}.txt", images, download) for name, images in SBD_LISTS.items()]
        return {stem: sbd / "cls" / f"{stem}.mat" for stems in lists for stem in stems}
    folder = next((f for f in (voc / "SegmentationClassAug", voc / "SegmentationClass") if f.is_dir()), sbd)
    return {stem: folder / f"{stem}.png" for stem in download.stems(folder, ".png")}


def labels_of(voc: Path, sbd: Path, split: str, incomplete: bool) -> tuple[Release, dict[str, Path]]:
    """A split's release, and the label file of each of its images.

    Raises:
        DatasetError: a download that is not as the release.
    """
    release = Release(f"pascal_voc_{split}", EXPECTED[split], HINT, incomplete=incomplete)
    download, lists = Download(release), voc / "ImageSets" / "Segmentation"
    stems = {name: read_stems(lists / f"{name}.txt", images, download) for name, images in VOC_LISTS.items()}
    labels = {} if split == "val" else sbd_labels(voc, sbd, download)
    labels |= {stem: voc / "SegmentationClass" / f"{stem}.png" for stem in stems[split]}
    if split == "train":
        labels = {stem: labels[stem] for stem in set(labels) - set(stems["val"])}
    download.count(labels, "VOC with SBD" if split == "train" else lists / "val.txt")
    download.labelled(labels, voc / "JPEGImages", ".jpg", "photograph")
    absent = [str(path) for path in labels.values() if not path.is_file()]
    if absent:
        download.refuse(f"{len(absent)} of {len(labels)} label files are missing", absent)
    download.stop()
    return release, dict(sorted(labels.items()))


def read_label(path: Path) -> np.ndarray:
    """(H, W) uint8 class ids, 255 = ignore, of a PNG of VOC or a .mat file of SBD."""
    if path.suffix != ".mat":
        return read_label_ids(path)
    try:
        return loadmat(path, simplify_cells=True)["GTcls"]["Segmentation"].astype(np.uint8)
    except (OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, MatReadError) as error:
        raise DatasetError(f"{path} is no label file of SBD: {error}") from error


def convert(voc: Path, split: str, labels: dict[str, Path], stem: str) -> dict:
    """Writes one label image; returns its record."""
    (semantic,), note = fit_to_image(voc / "JPEGImages" / f"{stem}.jpg", read_label(labels[stem]))
    ids, segments = semantic_segments(semantic, CATEGORIES, labels[stem])
    save_png(voc / f"semantic_{split}" / f"{stem}.png", ids_to_rgb(ids))
    height, width = semantic.shape
    return {"stem": stem, "height": height, "width": width, "segments_info": segments, "note": note}


@command(help=__doc__)
@workers
@incomplete
def main(workers: int, incomplete: bool) -> None:
    voc, sbd = datasets_root() / "VOCdevkit" / "VOC2012", datasets_root() / "benchmark_RELEASE" / "dataset"
    found = {split: labels_of(voc, sbd, split, incomplete) for split in EXPECTED}
    for split, (release, labels) in found.items():
        one = partial(convert, voc, split, labels)
        write_semantic_dataset(release, voc / f"semantic_{split}.json", list(labels), one, CATEGORIES, workers)


if __name__ == "__main__":
    sys.exit(run(main))
