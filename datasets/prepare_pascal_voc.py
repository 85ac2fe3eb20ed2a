#!/usr/bin/env python
"""Pascal VOC 2012 with the extra labels of SBD, as one segment a class.

Reads below $DETECTRON2_DATASETS

    VOCdevkit/VOC2012/JPEGImages/*.jpg                           VOCtrainval_11-May-2012.tar
    VOCdevkit/VOC2012/SegmentationClass/*.png
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt
    benchmark_RELEASE/dataset/cls/*.mat, {train,val}.txt         SBD, "benchmark.tgz"

and writes VOCdevkit/VOC2012/semantic_{train,val}.json and semantic_{train,val}/*.png. The training set is that of VOC and
SBD without VOC's validation images: 10 582 images, VOC's own labels where there are two. An interrupted run resumes.

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
from dearli_d2.cli.prepare import workers
from dearli_d2.data.catalog import datasets_root
from dearli_d2.data.preparation import (
    categories_of,
    check_names,
    ids_to_rgb,
    read_label_ids,
    save_png,
    semantic_segments,
    write_semantic_dataset,
)
from dearli_d2.errors import DatasetError, first_few
from dearli_d2.files import read_text

CATEGORIES = categories_of("pascal_voc")
EXPECTED = {"train": 10582, "val": 1449}


def read_stems(path: Path) -> list[str]:
    """Names of a list file."""
    if not path.is_file():
        raise DatasetError(f"no list file {path}; see --help for what to download")
    stems = read_text(path, DatasetError).split()
    check_names(stems, path)
    return stems


def splits(voc: Path, sbd: Path) -> dict[str, dict[str, Path]]:
    """Label file of every image, by split."""
    lists = voc / "ImageSets" / "Segmentation"
    val = read_stems(lists / "val.txt")
    train = {stem: sbd / "cls" / f"{stem}.mat" for name in ("train", "val") for stem in read_stems(sbd / f"{name}.txt")}
    train |= {stem: voc / "SegmentationClass" / f"{stem}.png" for stem in read_stems(lists / "train.txt")}
    held_back = set(val)
    return {
        "train": {stem: train[stem] for stem in sorted(train) if stem not in held_back},
        "val": {stem: voc / "SegmentationClass" / f"{stem}.png" for stem in sorted(val)},
    }


def read_label(path: Path) -> np.ndarray:
    """(H, W) uint8 class ids, 255 = ignore, of a PNG of VOC or a .mat file of SBD."""
    if path.suffix != ".mat":
        return read_label_ids(path)
    try:
        return loadmat(path, simplify_cells=True)["GTcls"]["Segmentation"].astype(np.uint8)
    except (OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, MatReadError) as error:
        raise DatasetError(f"{path} is no label file of SBD: {error}") from error


def convert(labels: dict[str, Path], target: Path, stem: str) -> dict:
    """Writes one label image; returns its record."""
    semantic = read_label(labels[stem])
    ids, segments = semantic_segments(semantic, CATEGORIES, labels[stem])
    save_png(target / f"{stem}.png", ids_to_rgb(ids))
    return {"stem": stem, "height": semantic.shape[0], "width": semantic.shape[1], "segments_info": segments}


@command(help=__doc__)
@workers
def main(workers: int) -> None:
    voc, sbd = datasets_root() / "VOCdevkit" / "VOC2012", datasets_root() / "benchmark_RELEASE" / "dataset"
    for split, labels in splits(voc, sbd).items():
        files = [*labels.values(), *(voc / "JPEGImages" / f"{stem}.jpg" for stem in labels)]
        absent = [str(f) for f in files if not f.is_file()]
        if absent:
            raise DatasetError(f"{split}: {len(absent)} of {len(files)} files are missing: {first_few(absent)}")
        path = voc / f"semantic_{split}.json"
        one = partial(convert, labels, path.with_suffix(""))
        write_semantic_dataset(f"pascal_voc_{split}", path, list(labels), one, CATEGORIES, workers, EXPECTED[split])


if __name__ == "__main__":
    sys.exit(run(main))
