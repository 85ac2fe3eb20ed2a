"""The road of a row from the official downloads to its figures, on made-up downloads and with small networks."""

from __future__ import annotations

import json
import math
import shlex

import numpy as np
import pytest

from dearli_d2.cli import main
from dearli_d2.data.preparation import save_png
from dearli_d2.reproduction import find
from tests.data import downloads

SMALL = {
    "MODEL.DEVICE": "cpu", "MODEL.TEXT.TEMPLATES": "name", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "128",
    "MODEL.MASK_FORMER.LAYERS": "2", "INPUT.CROP_SIZE": "64", "INPUT.MIN_SIZE_TEST": "64", "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.MAX_ITER": "2", "SOLVER.IMS_PER_BATCH": "2", "SOLVER.WARMUP_ITERS": "0", "SOLVER.AMP.ENABLED": "False",
    "SSL.IMS_PER_BATCH": "2", "SSL.PICTURE_PERIOD": "0",
}  # fmt: skip
CLIP = {"ARCH": "miniworld-convnext", "WEIGHTS": "shipped"}
HVL = {"MODEL.BACKBONE.NAME": "OpenCLIPConvNeXt", **{f"MODEL.BACKBONE.{key}": value for key, value in CLIP.items()}}
SPLIT_MATCHING = {
    "MODEL.BACKBONE.ARCH": "resnet10t", "MODEL.BACKBONE.WEIGHTS": "", "MODEL.TEXT.ENCODER": CLIP["ARCH"],
    "MODEL.TEXT.WEIGHTS": CLIP["WEIGHTS"], "MODEL.SPLIT.REGIONS.IMAGE_SIZE": "64", "MODEL.SPLIT.REGIONS.WINDOWS": "(2,)",
    "MODEL.SPLIT.REGIONS.CROP_SIZE": "128",
}  # fmt: skip


def pascal_voc(root):
    """The download, and a published list that labels one of the two images."""
    downloads.pascal_voc(root)
    labeled = root / "partitions" / "pascal" / "92" / "labeled.txt"
    labeled.parent.mkdir(parents=True)
    labeled.write_text("JPEGImages/a.jpg SegmentationClass/a.png\n")
    return ["pascal_voc"]


def coco_stuff(root):
    """The download, in which a cow, an unseen class, stands below a person and wood."""
    label = np.full((10, 12), 20, np.uint8)
    label[:4], label[4:7] = 0, 181
    for path in sorted((downloads.coco(root) / "stuffthingmaps").rglob("*.png")):
        save_png(path, label)
    return ["coco_stuff", "train", "val"]


@pytest.mark.parametrize(
    ("name", "download", "networks"),
    [("hvl/pascal_voc/92", pascal_voc, HVL), ("split_matching/coco_stuff", coco_stuff, SPLIT_MATCHING)],
    ids=["hvl", "split_matching"],
)
def test_a_row_goes_from_its_download_to_its_figures(name, download, networks, tmp_path, monkeypatch, repo):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("DEARLI_INCOMPLETE", "1")
    monkeypatch.chdir(repo)
    assert main(["prepare", *download(tmp_path), "--workers", "1"]) == 0
    experiment, given = find(name), {}
    small = [word for pair in (SMALL | networks).items() for word in pair]
    for stage in experiment.stages:
        given[stage.gives] = str(tmp_path / stage.name)
        assert main([*shlex.split(stage.command.format(out=given[stage.gives])), *small]) == 0
    pairs = [str(word) for word in (*experiment.overrides(), *small, *(x for pair in given.items() for x in pair))]
    run = ["--config-file", f"configs/{experiment.row.config}", *pairs, "OUTPUT_DIR", str(tmp_path / "run")]
    assert main(["train", *run]) == 0
    (test,) = experiment.config().DATASETS.TEST
    scores = json.loads((tmp_path / "run" / "evaluation" / test / "results.json").read_text())["results"]
    for metric in experiment.figures:
        task, score = metric.split("/")
        assert math.isfinite(scores[task][score])
        assert 0 <= scores[task][score] <= 100
