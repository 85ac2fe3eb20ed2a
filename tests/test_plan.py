"""The plan of an experiment: what is there, what it costs, without training."""

from __future__ import annotations

import json

import pytest

from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.data.custom_example import write_example
from dearli_d2.modeling import build_model
from dearli_d2.plan import data_rows, model_rows, schedule_rows
from tests.conftest import REPO


def test_plan_of_a_benchmark_that_is_not_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    path = REPO / "configs" / "ade20k" / "dearli_convnext_b.yaml"
    small = ["SOLVER.IMS_PER_BATCH", "1", "SSL.IMS_PER_BATCH", "2", "INPUT.CROP_SIZE", "64", "SSL.START", "0"]
    assert main(["plan", "--config-file", str(path), *small]) == 0
    text = capsys.readouterr().out
    assert "ade20k_panoptic_train@1_128:unlabeled" in text
    assert text.count("MISSING") == 4  # three data sets, and the warm-up's weights
    assert "run dearli prepare ade20k" in text
    assert "20.35 M" in text  # trainable parameters, as published
    # 4 bytes x (5 x 20.35 M + 179.39 M) are 1.05 GiB: weight, gradient, two moments, teacher; frozen once. 2 bytes x (88 M + 20.35 M) are
    # 0.20 GiB: the image tower and the teacher in bf16. And constants
    assert "1.26 GiB" in text or "1.25 GiB" in text
    assert "memory of a step with 3 images" in text
    assert "estimated; one step was timed, on an H200" in text
    assert main(["plan", "--config-file", "none.yaml"]) == 2


def test_rows_of_miniworld(mini_config):
    cfg = mini_config("SSL.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "100", "SSL.START", "20", file="dear.yaml")
    found = {row[0]: row[2] for row in data_rows(cfg)}
    assert found["labelled"] == "50 images"
    assert found["unlabelled"] == "950 images"
    schedule = dict(schedule_rows(cfg))
    assert schedule["passes over the labelled images"] == "4.0"  # 100 x 2 / 50
    assert schedule["passes over the unlabelled images"] == "0.3"  # 80 x 4 / 950
    assert "alpha 0.6" in schedule["teacher"]
    assert schedule["teacher"].startswith("EMA 0.95 after a ramp")


def test_rows_where_nothing_is_trained():
    cfg = get_config(REPO / "configs" / "coco_panoptic" / "m2f_r50.yaml", ["MODEL.DEVICE", "cpu"])
    assert dict(schedule_rows(cfg)) == {
        "training": "none, the config names no data set to train on",
        "output": cfg.OUTPUT_DIR,
    }


def test_rows_of_domain_adaptation(mini_config):
    options = (
        "SSL.SOURCE_IMS_PER_BATCH",
        "5",
        "SSL.IMS_PER_BATCH",
        "2",
        "SOLVER.MAX_ITER",
        "100",
        "INPUT.CROP_SIZE",
        "192",
    )
    cfg = mini_config("DATASETS.TRAIN", "()", *options, file="semidavil.yaml")
    found = [(row[0], row[2]) for row in data_rows(cfg)]
    assert ("source", "200 images") in found
    assert [value for what, value in found if what == "captions"] == ["200 captions", "950 captions"]
    schedule = dict(schedule_rows(cfg))
    assert "batch, labelled" not in schedule
    assert schedule["batch, source"] == "5"
    assert schedule["passes over the source images"] == "2.5"  # 100 x 5 / 200
    assert "confidence of 0.6" in schedule["teacher"]
    assert any(row[0] == "memory of a step with 7 images" for row in model_rows(cfg))


def test_rows_of_a_pair(mini_config):
    """Both networks count, in training; nothing is averaged."""
    cfg = mini_config("SSL.STRONG_VIEWS", "2", "SSL.IMS_PER_BATCH", "3", "INPUT.CROP_SIZE", "128", file="segkc.yaml")
    roles = {row[0]: row[2] for row in data_rows(cfg)}
    assert (roles["backbone weights"], roles["senior's backbone weights"]) == ("resnet10t", "miniworld-convnext")
    schedule, pair = dict(schedule_rows(cfg)), dict(model_rows(cfg))
    assert "junior and senior, of each other" in schedule["teacher"]
    model = build_model(cfg)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert pair["trainable parameters"] == f"{trained / 1e6:.2f} M"
    fixed = float(pair["weights, gradients, optimiser, teacher"].split()[0])
    assert fixed == pytest.approx(4 * (4 * trained + frozen) / 2**30, abs=0.02)
    assert "memory of a step with 8 images" in pair  # 2 labelled, 3 unlabelled in two views
    alone = dict(model_rows(mini_config("MODEL.META_ARCHITECTURE", "DPTSegmenter", file="segkc.yaml")))
    assert float(alone["trainable parameters"].split()[0]) < trained / 1e6


def test_plan_of_a_patch_of_14_pixels(mini_config, tmp_path):
    """As EVA02-L/14 has."""
    content = {
        "embed_dim": 192,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "plan-eva.json").write_text(json.dumps(content))
    options = ["NAME", "OpenCLIPEVA", "ARCH", str(tmp_path / "plan-eva.json"), "WEIGHTS", "", "PYRAMID_DIM", "16"]
    options = [f"MODEL.BACKBONE.{w}" if i % 2 == 0 else w for i, w in enumerate(options)]
    rows = dict(model_rows(mini_config(*options, file="hvl.yaml")))
    assert float(rows["memory of a step with 4 images"].split()[0]) > 0


def test_rows_of_a_config_that_trains_nothing(mini_config):
    rows = dict(model_rows(mini_config("DATASETS.TRAIN", "()")))
    assert list(rows) == ["trainable parameters", "frozen parameters", "weights, gradients, optimiser, teacher"]


def test_own_data_are_looked_at_and_drawn(tmp_path, capsys):
    write_example(tmp_path / "mine", labeled=8, unlabeled=3)
    config = ["--config-file", str(REPO / "configs/custom/small.yaml")]
    own = ["DATASETS.CUSTOM.ROOT", str(tmp_path / "mine"), "MODEL.DEVICE", "cpu"]
    picture = tmp_path / "sheet.png"
    assert main(["plan", *config, "--picture", str(picture), *own, "INPUT.CROP_SIZE", "320"]) == 0
    text = capsys.readouterr().out
    assert "custom_train: 6 images, 128 x 128 to 128 x 128 pixels" in text
    assert "% of pixels" in text
    assert "a short side of at most 128 pixels and are enlarged; INPUT.CROP_SIZE 128 needs less" in text
    assert picture.is_file()
    assert main(["plan", *config[:1], str(REPO / "configs/miniworld/m2f.yaml"), "--picture", str(picture)]) == 2
    assert "--picture shows own data" in capsys.readouterr().err
