#!/usr/bin/env python
"""SYNTHIA-RAND-CITYSCAPES with the classes of Cityscapes, as one segment a class.

Reads below $DETECTRON2_DATASETS/synthia (the folder RAND_CITYSCAPES of the archive)

    RGB/*.png
    GT/LABELS/*.png             16 bit, first channel = SYNTHIA's label id

and writes semantic_train.json and semantic_train/*.png. The data set `synthia_train` has the usual 16 classes: terrain, truck
and train carry no loss. Pairs whose sizes differ are left out and named. An interrupted run resumes.

    dearli prepare synthia --workers 4
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import workers
from dearli_d2.data.rendered_streets import prepare
from dearli_d2.data.streets import synthia_table
from dearli_d2.errors import DatasetError

EXPECTED = 9400
_PNG = b"\x89PNG\r\n\x1a\n"


def read_labels(path: Path) -> np.ndarray:
    """(H, W) uint8 label ids. Raises `DatasetError` for a picture without them."""
    content = path.read_bytes()
    if not content.startswith(_PNG):  # OpenCV would decode a JPEG of that name, with a decoder that has a known hole
        raise DatasetError(f"{path} is no PNG file")
    channels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)  # Pillow keeps 8 of 16 bits
    if channels is None or channels.ndim != 3:
        raise DatasetError(f"{path} is no 16-bit image of label ids and instances")
    ids = channels[..., -1]  # OpenCV's last channel is the file's first
    if ids.max() > 255:
        raise DatasetError(f"{path}: label id {int(ids.max())} is not in the table of SYNTHIA")
    return ids.astype(np.uint8)


@command(help=__doc__)
@workers
def main(workers: int) -> None:
    prepare("synthia", ("RGB", "GT/LABELS"), read_labels, synthia_table(), EXPECTED, workers)


if __name__ == "__main__":
    sys.exit(run(main))
