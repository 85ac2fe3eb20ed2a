#!/usr/bin/env python
"""GTA5 (Playing for Data) with the 19 classes of Cityscapes, as one segment a class.

Reads below $DETECTRON2_DATASETS/gta5

    images/*.png                the ten archives of images
    labels/*.png                the ten archives of labels; palette index = Cityscapes label id

and writes semantic_train.json and semantic_train/*.png. Pairs whose sizes differ (the release has a few) are left out and
named. An interrupted run resumes.

    python datasets/prepare_gta5.py [--workers 4]
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
from dearli_d2.data.preparation import categories_of, paired_stems, street_record, write_semantic_dataset
from dearli_d2.data.streets import CLASSES, COLORS, label_table
from dearli_d2.errors import DatasetError

EXPECTED = 24966


def read_labels(path: Path) -> np.ndarray:
    """(H, W) uint8 label ids. Raises `DatasetError` for a picture that is no index image."""
    labels = np.array(Image.open(path))
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DatasetError(f"{path} is no image of label ids (a palette PNG), but {labels.dtype} {labels.shape}")
    return labels


def convert(root: Path, stem: str) -> dict:
    """Writes the label image of one image; returns its record."""
    image, label = root / "images" / f"{stem}.png", root / "labels" / f"{stem}.png"
    return street_record(root / "semantic_train", image, label, read_labels, label_table())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args(argv)

    def command() -> int:
        root = datasets_root() / "gta5"
        stems = paired_stems("gta5", root / "images", root / "labels")
        categories = categories_of(CLASSES, COLORS)
        one = partial(convert, root)
        write_semantic_dataset(
            "gta5_train", root / "semantic_train.json", stems, one, categories, args.workers, EXPECTED
        )
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main())
