"""The trial of each Triton kernel: it draws no random numbers, and what fails has the plain path and a warning."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch

from dearli_d2.modeling.mask2former.pixel_decoder import EncoderLayer

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKAGE = "dearli_d2.modeling.mask2former."


@pytest.mark.parametrize("name", ["competition_triton", "deformable_attention_triton", "residual_norm_triton"])
def test_a_trial_succeeds_and_draws_no_random_numbers(name):
    module = importlib.import_module(PACKAGE + name)
    if hasattr(module.runs_on, "cache_clear"):
        module.runs_on.cache_clear()
    generator = torch.cuda.default_generators[0] if DEVICE.type == "cuda" else torch.default_generator
    before = generator.get_state()
    assert module.runs_on(DEVICE)
    assert torch.equal(generator.get_state(), before)


def test_norms_take_the_plain_path_where_their_kernel_fails(monkeypatch, caplog):
    module = importlib.import_module(PACKAGE + "residual_norm_triton")

    def fails(*_, **__):
        raise RuntimeError("Failed to find C compiler")

    torch.manual_seed(0)
    layer = EncoderLayer(16, 32, 2, 1, 1, "triton").to(DEVICE)
    tokens, branch = torch.randn(2, 1, 6, 16, device=DEVICE)
    monkeypatch.setattr(module, "_launch", fails)
    module.runs_on.cache_clear()
    with caplog.at_level(logging.WARNING), torch.autocast(DEVICE.type, torch.bfloat16):
        for _ in range(2):
            found = layer._normed(layer.norm1, tokens, branch, None)
    module.runs_on.cache_clear()
    assert torch.equal(found.full, layer.norm1(tokens + branch))
    assert caplog.text.count("residual norms does not run") == 1
