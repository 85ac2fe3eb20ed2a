"""The shipped tiny CLIP: how well it recognises, and that its script still makes such a thing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from safetensors.torch import load_file

from dearli_d2.modeling.backbone import tiny_clip
from dearli_d2.modeling.backbone.clip_model import build_clip
from tests.conftest import REPO


def test_shipped_weights_recognise_things_under_true_masks():
    """The counterpart of the paper's oracle experiment (Fig. 3): at least 75 % of things; chance is 6 %."""
    shares = tiny_clip.oracle_accuracy(build_clip(tiny_clip.NAME, "shipped").eval())
    assert shares["things"] >= 0.75
    assert shares["all"] >= 0.75


def test_random_weights_do_not():
    shares = tiny_clip.oracle_accuracy(build_clip(tiny_clip.NAME, "").eval(), scenes=40)
    assert shares["all"] < 0.4


def test_shipped_file_is_small():
    assert tiny_clip.WEIGHTS.stat().st_size <= 8e6
    assert all(v.dtype.itemsize == 2 for v in load_file(tiny_clip.WEIGHTS).values())


def test_a_short_run_of_the_script_learns(tmp_path):
    out = tmp_path / "clip.safetensors"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "dearli_d2",
        "data",
        "tiny-clip",
        "--steps",
        "60",
        "--scenes",
        "150",
        "--out",
        str(out),
    ]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    shares = tiny_clip.oracle_accuracy(build_clip(tiny_clip.NAME, str(out)).eval(), scenes=40)
    assert shares["all"] > 0.25


@pytest.mark.slow
def test_regenerated_weights_reach_the_shipped_quality(tmp_path):
    model = tiny_clip.train(steps=2500, scenes=4000)
    assert tiny_clip.oracle_accuracy(model)["things"] >= 0.75
