"""What runs on a GPU beside training steps: the commands as a user types them, prediction, automatic masks, EoMT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from dearli_d2 import Predictor, get_config
from dearli_d2.data import miniworld
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.modeling import build_model
from tests.masks.test_masks import sam_generator, tiny_sam

REPO = Path(__file__).parents[2]
DEVICE = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def command(*arguments: str) -> str:
    """Runs Python in the checkout; returns all that it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of DEAR of ten steps in bf16, six of them with unlabelled images."""
    out = tmp_path_factory.mktemp("gpu") / "run"
    options = ["MODEL.DEVICE", DEVICE, "SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", "10", "SSL.START", "4"]
    options += ["INPUT.CROP_SIZE", "64", "TEST.EVAL_PERIOD", "0", "OUTPUT_DIR", str(out)]
    command("train_net.py", "--config-file", "configs/miniworld/dear.yaml", "--num-gpus", "1", *options)
    return out


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for index, size in enumerate((96, 96, 96, 128, 128)):
        Image.fromarray(miniworld.make_scene(1, index, size=size).image).save(folder / f"{index}.png")
    return folder


def test_a_run_goes_on(run):
    options = ["MODEL.DEVICE", DEVICE, "SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", "12", "SSL.START", "4"]
    options += ["INPUT.CROP_SIZE", "64", "TEST.EVAL_PERIOD", "0", "OUTPUT_DIR", str(run)]
    command("train_net.py", "--config-file", "configs/miniworld/dear.yaml", "--num-gpus", "1", "--resume", *options)
    steps = [json.loads(line)["iteration"] for line in (run / "metrics.json").read_text().splitlines()]
    assert max(steps) == 11


def test_predictions_of_the_command(run, photographs, tmp_path):
    model = ["--config-file", run / "config.yaml", "--weights", run / "model_final.pth"]
    for name, options in {"one": [], "half": ["--amp", "bf16", "--batch", "4"]}.items():
        command("-m", "dearli_d2", "predict", photographs, *model, "--out", tmp_path / name, *options)
    one, half = (
        np.stack([np.asarray(Image.open(tmp_path / name / f"{i}_semantic.png").resize((96, 96), 0)) for i in range(5)])
        for name in ("one", "half")
    )
    assert (one == half).mean() > 0.9


def test_predictions_of_the_device_are_those_of_the_cpu(run, photographs):
    images = [np.asarray(Image.open(photographs / f"{i}.png")) for i in range(5)]
    found = []
    for device in ("cpu", DEVICE):
        predictor = Predictor(get_config(run / "config.yaml", ["MODEL.DEVICE", device]), run / "model_final.pth")
        found.append([predictor(image) for image in images])
    for here, there in zip(*found, strict=True):
        assert (here.semantic == there.semantic).mean() > 0.99


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_eomt_steps(mini_config, dtype):
    amp = [] if dtype is None else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    trainer = DualStreamTrainer(mini_config("MODEL.DEVICE", DEVICE, *amp, file="eomt.yaml"))
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())


@pytest.mark.parametrize("file", ["m2f_lang.yaml", "m2f.yaml", "semidavil.yaml", "eomt.yaml", "hvl.yaml"])
def test_half_precision_predicts_what_fp32_does(mini_config, file):
    model = build_model(mini_config("MODEL.DEVICE", DEVICE, file=file)).eval()
    images = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "caption": "a red thing on grass"}]
    with torch.no_grad():
        full = model(images)[0]["sem_seg"].float()
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            half = model(images)[0]["sem_seg"].float()
    assert (full - half).abs().mean() < 0.05 * full.abs().mean() + 0.01


def test_automatic_masks_are_those_of_the_cpu():
    images = [miniworld.make_scene(0, i, size=96).image for i in range(2)]
    limits = {"predicted_iou": 0.4, "stability": 0.3, "nms": 0.7}
    here, there = (sam_generator(tiny_sam().to(device), **limits)(images) for device in ("cpu", DEVICE))
    for expected, found in zip(here, there, strict=True):
        assert len(expected) == len(found)
        masks = [[rle.decode(m["segmentation"]).astype(bool) for m in part] for part in (expected, found)]
        best = [max((a & b).sum() / max((a | b).sum(), 1) for b in masks[1]) for a in masks[0]]
        assert np.mean(best) > 0.95
