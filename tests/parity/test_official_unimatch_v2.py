"""DINOv2-S with the DPT head against UniMatch V2's own code, with the same random weights. Runs where the environment variable
OFFICIAL_UNIMATCH_V2 names a checkout of it (github.com/LiheYoung/UniMatch-V2)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from dearli_d2.checkpoint import load_state
from dearli_d2.config import get_config
from dearli_d2.modeling import build_model

CHECKOUT = os.environ.get("OFFICIAL_UNIMATCH_V2", "")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="OFFICIAL_UNIMATCH_V2 names no checkout of UniMatch V2's code")


@pytest.fixture
def pair(repo, monkeypatch):
    """Ours and theirs, for 21 classes."""
    assert Path(CHECKOUT, "model/semseg/dpt.py").is_file(), f"OFFICIAL_UNIMATCH_V2: no checkout in {CHECKOUT}"
    monkeypatch.syspath_prepend(CHECKOUT)
    from model.semseg.dpt import DPT

    theirs = DPT("small", 21, 64, [48, 96, 192, 384]).eval()
    cfg = get_config(
        repo / "configs/pascal_voc/segkc_labels.yaml", ["MODEL.BACKBONE.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    )
    ours = build_model(cfg).eval()
    for parameter in theirs.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    assert load_state(ours, theirs.state_dict(), "theirs").complete  # by the names of published checkpoints
    yield ours, theirs
    for name in [n for n in sys.modules if n == "model" or n.startswith("model.")]:
        del sys.modules[name]


def test_logits_and_gradients_are_those_of_the_authors_code(pair):
    """At 518 pixels, the size of the position embeddings, with their last resizing."""
    ours, theirs = pair
    images = torch.randn(1, 3, 518, 518)
    expected = theirs(images)
    logits = torch.nn.functional.interpolate(ours.logits(images, None), (518, 518), mode="bilinear", align_corners=True)
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    target = torch.randint(0, 21, (1, 518, 518))
    torch.nn.functional.cross_entropy(expected, target).backward()
    torch.nn.functional.cross_entropy(logits, target).backward()
    pairs = [
        (ours.head.last[0].weight, theirs.head.scratch.output_conv[0].weight),
        (ours.head.fuse["res5"].layers[1].weight, theirs.head.scratch.refinenet4.resConfUnit2.conv1.weight),
        (ours.backbone.pyramid.stages[0][1].weight, theirs.head.resize_layers[0].weight),
        (ours.backbone.model.model.patch_embed.proj.weight, theirs.backbone.patch_embed.proj.weight),
    ]
    for own, their in pairs:
        assert (own.grad - their.grad).abs().max() < 2e-3 * their.grad.abs().max()


def test_both_have_as_many_parameters(pair):
    """But for what theirs never uses: the mask token and a residual unit of the coarsest level."""
    ours, theirs = pair
    unused = theirs.backbone.mask_token.numel()
    unused += sum(p.numel() for p in theirs.head.scratch.refinenet4.resConfUnit1.parameters())
    assert sum(p.numel() for p in ours.parameters()) + unused == sum(p.numel() for p in theirs.parameters())
