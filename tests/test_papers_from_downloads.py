"""The road of a row from the official downloads to its figures, on made-up downloads and with small networks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dearli_d2.cli import main
from dearli_d2.data.preparation import save_png
from dearli_d2.reproduction import find, run
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
    ("names", "download", "networks"),
    [
        (("hvl/pascal_voc/92", "hvl/pascal_voc/class_iou/92"), pascal_voc, HVL),
        (("split_matching/coco_stuff",), coco_stuff, SPLIT_MATCHING),
    ],
    ids=["hvl", "split_matching"],
)
def test_rows_go_from_their_download_to_their_figures(names, download, networks, tmp_path, monkeypatch, repo):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("DEARLI_INCOMPLETE", "1")
    monkeypatch.chdir(repo)
    assert main(["prepare", *download(tmp_path), "--workers", "1"]) == 0
    small = [word for pair in (SMALL | networks).items() for word in pair]
    # in this process; overrides of a row do not reach the commands of its stages
    monkeypatch.setattr(run, "run_dearli", lambda words: main([*words, *(small if words[0] == "regions" else ())]))
    for name in names:
        assert main(["reproduce", name, "--out", str(tmp_path / "out"), *small]) == 0
        record = json.loads((tmp_path / "out" / name / "reproduction.json").read_text())
        assert {found["metric"]: found["paper"] for found in record["figures"]} == find(name).figures
        ours = {found["metric"]: found["ours"] for found in record["figures"] if found["ours"] is not None}
        assert all(0 <= value <= 100 for value in ours.values())
        # the one test image shows background and tv monitors
        assert len(ours) == len(find(name).figures) or {"semantic/IoU/background", "semantic/IoU/tv monitor"} <= set(
            ours
        )
