"""The Triton kernel of the read-out in the interpreter (or on a GPU) gives the labels of masks that are enlarged first."""

from __future__ import annotations

import logging

import pytest
import torch

from dearli_d2.modeling.mask2former import inference

pytest.importorskip("triton")
from dearli_d2.modeling.mask2former import competition_triton as module

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("shape", "full", "size", "threshold"),
    [
        ((2, 7, 5, 6), (20, 24), (20, 24), 0.0),
        ((1, 3, 9, 7), (36, 28), (31, 25), 0.0),  # the padding is cut off
        ((2, 9, 6, 6), (25, 22), (25, 22), 0.4),  # some queries do not compete
        ((1, 4, 3, 3), (12, 12), (12, 12), 1.0),  # none does
        ((2, 2, 1, 1), (4, 4), (3, 4), 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_are_those_of_enlarged_masks(shape, full, size, threshold, dtype, monkeypatch):
    class_logits = 2 * torch.randn(*shape[:2], 6, device=DEVICE)
    masks = (3 * torch.randn(shape, device=DEVICE)).to(dtype)
    arguments = class_logits, masks, {0, 2}, threshold, 0.5, full, size
    monkeypatch.setattr(inference, "enlarges_in_place", lambda device: False)
    expected = inference.panoptic_regions(*arguments)
    monkeypatch.setattr(inference, "enlarges_in_place", lambda device: True)
    found = inference.panoptic_regions(*arguments)
    assert found.panoptic.shape == (shape[0], *size)
    assert expected.panoptic.any() == (threshold < 1)
    for name in ("panoptic", "segment_id", "label", "score"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_a_kernel_with_a_wrong_result_is_reported(monkeypatch, caplog):
    module.runs_on.cache_clear()
    right = module.compete
    monkeypatch.setattr(module, "compete", lambda *args: (right(*args)[0] + 1, None, None))
    with caplog.at_level(logging.WARNING):
        assert not module.runs_on(torch.device(DEVICE))
    module.runs_on.cache_clear()
    assert "its result is wrong" in caplog.text


def test_a_kernel_that_does_not_build_is_reported(monkeypatch, caplog):
    def fails(*args):
        raise RuntimeError("Failed to find C compiler")

    module.runs_on.cache_clear()
    assert module.runs_on(torch.device(DEVICE))
    module.runs_on.cache_clear()
    monkeypatch.setattr(module, "compete", fails)
    with caplog.at_level(logging.WARNING):
        assert not module.runs_on(torch.device(DEVICE))
    module.runs_on.cache_clear()
    assert "Full-size masks are written instead" in caplog.text
