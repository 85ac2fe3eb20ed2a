"""Configuration: every shipped file is valid, and wrong ones say what is wrong."""

from __future__ import annotations

import pytest

from dearli_d2.config import get_config
from dearli_d2.errors import ConfigError
from tests.conftest import REPO

EXPERIMENTS = sorted(p for p in (REPO / "configs").rglob("*.yaml") if not p.name.startswith("Base"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(REPO / "configs")))
def test_every_config_is_valid(path):
    cfg = get_config(path)
    assert cfg.is_frozen()
    assert cfg.DATASETS.TRAIN
    assert cfg.MODEL.DEVICE in ("cpu", "cuda")


def test_values_of_the_paper(repo):
    cfg = get_config(repo / "configs/ade20k/m2f_lang_convnext_b_1_128.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE) == (1e-4, 0.05, 0.01)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (8, 80000, 0)
    assert (cfg.INPUT.CROP_SIZE, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (640, 640, 2560)
    former = cfg.MODEL.MASK_FORMER
    assert (former.NUM_QUERIES, former.TRAIN_NUM_POINTS, former.NO_OBJECT_WEIGHT) == (200, 12544, 0.1)
    assert (former.CLASS_WEIGHT, former.MASK_WEIGHT, former.DICE_WEIGHT) == (2.0, 5.0, 5.0)
    assert (cfg.MODEL.ENSEMBLE.ALPHA, cfg.MODEL.BACKBONE.FREEZE) == (0.6, True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["MODEL.MASK_FORMER.NUM_QUERIS", "10"], "no key .*NUM_QUERIS; did you mean MODEL.MASK_FORMER.NUM_QUERIES"),
        (["SOLVER.MAX_ITER"], "has no value"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER|Type mismatch"),
        (["MODEL.CLASSIFIER", "texts"], "MODEL.CLASSIFIER is 'texts'; it can be 'linear' or 'text'"),
        (["MODEL.NUM_CLASSES", "0"], "MODEL.NUM_CLASSES must be set"),
        (["MODEL.ENSEMBLE.ALPHA", "1.5"], "ENSEMBLE.ALPHA must be in 0..1"),
        (["INPUT.SCALE_RANGE", "(2.0, 0.5)"], "SCALE_RANGE"),
        (["MODEL.MASK_FORMER.HEADS", "7"], "multiple of its HEADS"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"], "CLIP_TYPE is 'value'"),
        (["MODEL.BACKBONE.NAME", "TimmBackbone"], "text needs an OpenCLIP backbone"),
    ],
)
def test_wrong_values_are_explained(repo, overrides, words):
    with pytest.raises(ConfigError, match=words):
        get_config(repo / "configs/miniworld/m2f_lang.yaml", overrides)


def test_wrong_files_are_explained(tmp_path):
    path = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match="no config file"):
        get_config(path)
    path.write_text("MODEL: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="no safe YAML"):
        get_config(path)
    path.write_text("_BASE_: none.yaml\n")
    with pytest.raises(ConfigError, match="none.yaml"):
        get_config(path)
    path.write_text("VERSION: 2\nMODEL:\n  MASK_FROMER:\n    LAYERS: 3\n")
    with pytest.raises(ConfigError, match="no key MODEL.MASK_FROMER; did you mean MODEL.MASK_FORMER"):
        get_config(path)


def test_device_is_chosen_without_a_flag(repo, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert get_config(repo / "configs/miniworld/m2f.yaml").MODEL.DEVICE == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        get_config(repo / "configs/miniworld/m2f.yaml", ["MODEL.DEVICE", "cuda"])
