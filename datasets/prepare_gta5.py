#!/usr/bin/env python
"""GTA5 (Playing for Data) with the 19 classes of Cityscapes, as one segment a class.

Reads below $DETECTRON2_DATASETS/gta5

    images/*.png                the ten archives of images
    labels/*.png                the ten archives of labels; palette index = Cityscapes label id

and writes semantic_train.json and semantic_train/*.png. Pairs whose sizes differ (the release has a few) are left out and
named. An interrupted run resumes.

    dearli prepare gta5 --workers 4
"""

from __future__ import annotations

import sys

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import workers
from dearli_d2.data.preparation import read_label_ids
from dearli_d2.data.rendered_streets import prepare
from dearli_d2.data.streets import label_table

EXPECTED = 24966


@command(help=__doc__)
@workers
def main(workers: int) -> None:
    prepare("gta5", ("images", "labels"), read_label_ids, label_table(), EXPECTED, workers)


if __name__ == "__main__":
    sys.exit(run(main))
