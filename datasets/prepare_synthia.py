#!/usr/bin/env python
"""SYNTHIA-RAND-CITYSCAPES with the classes of Cityscapes, as one segment a class.

Reads below $DETECTRON2_DATASETS/synthia (the folder RAND_CITYSCAPES of the archive)

    RGB/*.png
    GT/LABELS/*.png             16 bit, first channel = SYNTHIA's label id

and writes semantic_train.json and semantic_train/*.png. The data set `synthia_train` has the usual 16 classes: terrain, truck
and train carry no loss. Pairs whose sizes differ are left out and named. An interrupted run resumes.

    python datasets/prepare_synthia.py [--workers 4]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from dearli_d2.cli import report_errors
from dearli_d2.data.catalog import datasets_root
from dearli_d2.data.preparation import categories_of, paired_stems, street_record, write_semantic_dataset
from dearli_d2.data.streets import CLASSES, COLORS, synthia_table
from dearli_d2.errors import DatasetError

EXPECTED = 9400


def read_labels(path: Path) -> np.ndarray:
    """(H, W) uint8 label ids. Raises `DatasetError` for a picture without them."""
    channels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)  # OpenCV keeps 16 bits, with the first channel last
    if channels is None or channels.ndim != 3:
        raise DatasetError(f"{path} is no 16-bit image of label ids and instances")
    ids = channels[..., -1]
    if ids.max() > 255:
        raise DatasetError(f"{path}: label id {int(ids.max())} is not in the table of SYNTHIA")
    return ids.astype(np.uint8)


def convert(root: Path, stem: str) -> dict:
    """Writes the label image of one image; returns its record."""
    image, label = root / "RGB" / f"{stem}.png", root / "GT" / "LABELS" / f"{stem}.png"
    return street_record(root / "semantic_train", image, label, read_labels, synthia_table())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args(argv)

    def command() -> int:
        root = datasets_root() / "synthia"
        stems = paired_stems("synthia", root / "RGB", root / "GT" / "LABELS")
        categories = categories_of(CLASSES, COLORS)
        one = partial(convert, root)
        write_semantic_dataset(
            "synthia_train", root / "semantic_train.json", stems, one, categories, args.workers, EXPECTED
        )
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main())
