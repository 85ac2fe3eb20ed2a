#!/usr/bin/env python
"""GTA5 (Playing for Data) with the 19 classes of Cityscapes, as one segment a class.

Reads below $DETECTRON2_DATASETS/gta5

    images/*.png                01_images.zip .. 10_images.zip (56 GB); 24966 frames, 00001.png .. 24966.png
    labels/*.png                01_labels.zip .. 10_labels.zip (704 MB); palette index = Cityscapes label id

All archives are on https://download.visinf.tu-darmstadt.de/data/from_games, without registration, for research and education only.
They are unpacked in $DETECTRON2_DATASETS/gta5.

It writes semantic_train.json and semantic_train/*.png. Frames whose label has another size are left out and named. The release has
60 of them, says its page. Papers on domain adaptation train on all frames, so the official split is not used. An interrupted run
resumes.

    dearli prepare gta5 --workers 4
"""

from __future__ import annotations

import sys

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, workers
from dearli_d2.data.preparation import read_label_ids
from dearli_d2.data.release import Release
from dearli_d2.data.rendered_streets import prepare
from dearli_d2.data.streets import label_table

IMAGES = 24966
MISFITS = 60  # frames whose label has another resolution, as the release's page says
HINT = (
    "download 01_images.zip .. 10_images.zip and 01_labels.zip .. 10_labels.zip from "
    "https://download.visinf.tu-darmstadt.de/data/from_games and unpack all in $DETECTRON2_DATASETS/gta5"
)


@command(help=__doc__)
@workers
@incomplete
def main(workers: int, incomplete: bool) -> None:
    names = [f"{number:05d}" for number in range(1, IMAGES + 1)]
    release = Release("gta5_train", IMAGES, HINT, names, incomplete)
    prepare(release, "gta5", ("images", "labels"), read_label_ids, label_table(), workers, MISFITS)


if __name__ == "__main__":
    sys.exit(run(main))
