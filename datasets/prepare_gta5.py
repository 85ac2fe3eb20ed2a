#!/usr/bin/env python
"""GTA5 (Playing for Data) with the 19 classes of Cityscapes, as one segment a class.

Reads below $DETECTRON2_DATASETS/gta5

    images/*.png                the ten archives of images
    labels/*.png                the ten archives of labels; palette index = Cityscapes label id

and writes semantic_train.json and semantic_train/*.png. Pairs whose sizes differ (the release has a few) are left out and
named. An interrupted run resumes.

    python datasets/prepare_gta5.py --workers 4
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dearli_d2.data.rendered_streets import prepare
from dearli_d2.data.streets import label_table
from dearli_d2.errors import DatasetError

EXPECTED = 24966


def read_labels(path: Path) -> np.ndarray:
    """(H, W) uint8 label ids. Raises `DatasetError` for a picture that is no index image."""
    labels = np.array(Image.open(path))
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DatasetError(f"{path} is no image of label ids (a palette PNG), but {labels.dtype} {labels.shape}")
    return labels


def main(argv: list[str] | None = None) -> int:
    return prepare(argv, __doc__, "gta5", ("images", "labels"), read_labels, label_table(), EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
