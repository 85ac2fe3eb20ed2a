"""Decoder warm-up on class-agnostic masks, and what it hands on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dearli_d2.checkpoint import load_weights
from dearli_d2.data.build import build_streams
from dearli_d2.data.catalog import ImageFolder, dataset_dicts, register
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import DatasetError
from dearli_d2.masks.classical import ClassicalGenerator
from dearli_d2.masks.generate import generate
from dearli_d2.masks.storage import MaskFolder
from dearli_d2.modeling import build_model


@pytest.fixture
def mask_folder(tmp_path):
    folder = MaskFolder(tmp_path / "masks")
    files = [d["file_name"] for d in dataset_dicts("miniworld_train@0.01")]
    generate(files, ClassicalGenerator(), folder)
    return folder


@pytest.fixture
def warmup_config(mini_config, mask_folder):
    def make(*overrides: str):
        return mini_config(
            "DATASETS.TRAIN", "('miniworld_train@0.01',)", "DATASETS.MASKS", str(mask_folder.folder), *overrides,
            file="warmup.yaml",
        )  # fmt: skip

    return make


def test_warm_up_has_mask_losses_only_and_no_class_head(warmup_config):
    trainer = DualStreamTrainer(warmup_config("SOLVER.MAX_ITER", "1"))
    names = [n for n, _ in trainer.student.named_parameters()]
    assert not any("class_embed" in n or ("logit_scale" in n and "backbone" not in n) or "void" in n for n in names)
    batch = next(trainer.stream)
    losses = trainer.student(batch)
    assert {n.rpartition("_")[0] if n[-1].isdigit() else n for n in losses} == {"loss_mask", "loss_dice"}
    sum(losses.values()).backward()
    for name, parameter in trainer.student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
    trainer.train()


def test_warm_up_leaves_out_what_mask_generation_could_not_read(warmup_config, tmp_path):
    folder, masks = tmp_path / "pictures", MaskFolder(tmp_path / "their_masks")
    folder.mkdir()
    files = [Path(shutil.copy(d["file_name"], folder)) for d in dataset_dicts("miniworld_train@0.01")]
    damaged = files[0]
    damaged.write_bytes(damaged.read_bytes()[:-300])
    register("pictures_to_warm_up", ImageFolder(folder, "put images there"))
    dicts = dataset_dicts("pictures_to_warm_up")
    generate([str(f) for f in files[1:]], ClassicalGenerator(), masks)
    with pytest.raises(DatasetError, match="1 of 10 images have no masks"):
        masks.check(dicts)
    generate([f"{folder}/../pictures/{f.name}" for f in files], ClassicalGenerator(), masks)
    said = masks.check(dicts)
    assert "masks of 9 images" in said
    assert f"1 that cannot be read are left out: {damaged}" in said
    cfg = warmup_config("DATASETS.TRAIN", "('pictures_to_warm_up',)", "DATASETS.MASKS", str(masks.folder))
    stream = build_streams(cfg)
    shown = {sample["file_name"] for _ in range(10) for sample in next(stream)["labeled"]}
    assert shown == set(map(str, files[1:]))


def test_warm_up_targets_are_all_masks_as_class_zero(warmup_config, mask_folder):
    cfg = warmup_config("INPUT.CROP_SIZE", "128", "INPUT.SCALE_RANGE", "(1.0, 1.0)", "INPUT.RANDOM_FLIP", "none")
    sample = next(build_streams(cfg))["labeled"][0]
    masks = mask_folder.read(sample["file_name"])
    assert len(masks) > 8
    assert torch.equal(sample["targets"].masks, torch.from_numpy(masks))
    assert (sample["targets"].labels == 0).all()


def test_warm_up_carries_over_exactly_the_decoder(warmup_config, ssl_config, tmp_path):
    cfg = warmup_config("SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "warm"))
    DualStreamTrainer(cfg).train()
    weights = tmp_path / "warm" / "model_final.pth"
    trainer = DualStreamTrainer(ssl_config("MODEL.WEIGHTS", str(weights)))
    warm = torch.load(weights, weights_only=True)["model"]
    fresh = {n for n in trainer.student.state_dict() if n not in warm}
    assert fresh == {
        *(f"sem_seg_head.predictor.class_embed.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
        "sem_seg_head.predictor.logit_scale",
        "void_embedding.weight",
    }
    for model in (trainer.student, trainer.teacher.model):  # both start from it
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in warm.items())
    report = load_weights(build_model(ssl_config()), weights, strict=False).carry_over()
    lines = report.splitlines()
    assert lines[0].startswith("  carried over: ")
    assert "sem_seg_head.pixel_decoder" in lines[0]
    assert "starts fresh: " in lines[1]
    assert "class_embed" in lines[1]
    assert "void_embedding" in lines[1]
    assert lines[2] == "  not used: nothing"


def test_masks_that_are_missing_stop_the_run_before_it_starts(warmup_config, mask_folder):
    with pytest.raises(DatasetError, match=r"990 of 1000 images have no masks.*dearli masks generate"):
        DualStreamTrainer(warmup_config("DATASETS.TRAIN", "('miniworld_train',)"))
    with pytest.raises(DatasetError, match="holds no manifest.json"):
        DualStreamTrainer(warmup_config("DATASETS.MASKS", str(mask_folder.folder / "nowhere")))
