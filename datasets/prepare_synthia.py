#!/usr/bin/env python
"""SYNTHIA-RAND-CITYSCAPES with the classes of Cityscapes, as one segment a class.

Reads below $DETECTRON2_DATASETS/synthia

    RGB/*.png                   SYNTHIA_RAND_CITYSCAPES.rar; 9400 images, 0000000.png .. 0009399.png
    GT/LABELS/*.png             the same; 16 bits a channel, the first = SYNTHIA's label id

The archive is on https://synthia-dataset.net/downloads, under CC BY-NC-SA 3.0. Its folder RAND_CITYSCAPES gets the name synthia. Some
versions of unrar damage a few of its files; unpack it again with another program (7z) then.

It writes semantic_train.json and semantic_train/*.png. The data set `synthia_train` has the usual 16 classes: terrain, truck and
train carry no loss. An interrupted run resumes.

    dearli prepare synthia --workers 4
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, workers
from dearli_d2.data.images import opened
from dearli_d2.data.release import Release
from dearli_d2.data.rendered_streets import prepare
from dearli_d2.data.streets import synthia_table
from dearli_d2.errors import DatasetError

IMAGES = 9400
HINT = (
    "download SYNTHIA_RAND_CITYSCAPES.rar from https://synthia-dataset.net/downloads, unpack it (some versions of unrar damage a few "
    "files or leave names with backslashes; 7z does not) and name its folder $DETECTRON2_DATASETS/synthia"
)
_PNG = b"\x89PNG\r\n\x1a\n"


def read_labels(path: Path) -> np.ndarray:
    """(H, W) uint8 label ids. Raises `DatasetError` for a picture without them, or one that is damaged."""
    content = path.read_bytes()
    if not content.startswith(_PNG):  # OpenCV would decode a JPEG of that name, with a decoder that has a known hole
        raise DatasetError(f"{path} is no PNG file")
    with opened(path) as image:  # OpenCV returns what it could read of a damaged file
        image.verify()
    channels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)  # Pillow keeps 8 of 16 bits
    if channels is None or channels.ndim != 3:
        raise DatasetError(f"{path} is no 16-bit image of label ids and instances")
    ids = channels[..., -1]  # OpenCV's last channel is the file's first
    if ids.max() > 255:
        raise DatasetError(f"{path}: label id {int(ids.max())} is not in the table of SYNTHIA")
    return ids.astype(np.uint8)


@command(help=__doc__)
@workers
@incomplete
def main(workers: int, incomplete: bool) -> None:
    release = Release("synthia_train", IMAGES, HINT, [f"{number:07d}" for number in range(IMAGES)], incomplete)
    prepare(release, "synthia", ("RGB", "GT/LABELS"), read_labels, synthia_table(), workers)


if __name__ == "__main__":
    sys.exit(run(main))
