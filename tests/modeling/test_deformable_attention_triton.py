"""The Triton kernels in the interpreter (or on a GPU): values and gradients against the plain implementation in float64."""

from __future__ import annotations

import logging

import pytest
import torch

from dearli_d2.errors import ConfigError
from dearli_d2.modeling.mask2former import deformable_attention as plain

pytest.importorskip("triton")
from dearli_d2.modeling.mask2former.deformable_attention_triton import _in_rows, deformable_attention, runs_on

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def reference(value, shapes, points, offsets, logits):
    """grid_sample in float64, differentiated by autograd."""
    value, offsets = value.double(), offsets.double()
    weights = logits.double().softmax(-1).view(offsets.shape[:-1])
    batch, _, heads, dim = value.shape
    total, start = 0, 0
    for level, (height, width) in enumerate(shapes):
        if not height * width:
            continue
        tokens = value[:, start : start + height * width]
        start += height * width
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        locations = points.double()[:, None, None] + offsets[:, :, :, level] / offsets.new_tensor([width, height])
        grid = (2 * locations - 1).permute(0, 2, 1, 3, 4).flatten(0, 1)
        samples = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
        factors = weights[:, :, :, level].permute(0, 2, 1, 3).flatten(0, 1)[:, None]
        total = total + (samples * factors).sum(-1)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def inputs(shapes, batch=2, queries=19, heads=3, dim=8, points=2, dtype=torch.float32, spread=2.0):
    """Reference points; value, offsets and logits."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(batch, tokens, heads, dim, generator=generator)
    offsets = torch.randn(batch, queries, heads, len(shapes), points, 2, generator=generator) * spread
    logits = torch.randn(batch, queries, heads, len(shapes) * points, generator=generator)
    places = torch.rand(queries, 2, generator=generator).to(DEVICE)
    return places, [x.to(DEVICE, dtype).requires_grad_() for x in (value, offsets, logits)]


def compare(places, leaves, shapes, tolerance):
    output, expected = (f(leaves[0], shapes, places, *leaves[1:]) for f in (deformable_attention, reference))
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, output.dtype)
    ours = [output, *torch.autograd.grad(output, leaves, upstream)]
    theirs = [expected, *torch.autograd.grad(expected, leaves, upstream.double())]
    for mine, right in zip(ours, theirs, strict=True):
        assert (mine.double() - right.double()).norm() <= tolerance * right.double().norm() + 1e-12
        assert mine.isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        ([(5, 7), (3, 4), (2, 1)], {}),
        ([(4, 4)], {"queries": 1, "heads": 1, "points": 1, "batch": 1}),
        ([(3, 5), (2, 2)], {"dim": 6}),  # no power of two
        ([(3, 5), (2, 2)], {"dim": 1, "queries": 700}),
        ([(1, 1), (1, 9)], {"points": 3}),
        ([(6, 5)], {"spread": 9.0}),  # most points lie outside
    ],
)
def test_values_and_gradients_equal_float64(shapes, options):
    compare(*inputs(shapes, **options), shapes, 1e-5)


def test_an_empty_level_adds_nothing():
    shapes = [(4, 5), (0, 3)]
    compare(*inputs(shapes), shapes, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_fp32(dtype):
    shapes = [(5, 7), (3, 4)]
    places, leaves = inputs(shapes, dtype=dtype)
    output = deformable_attention(leaves[0], shapes, places, *leaves[1:])
    assert output.dtype == dtype
    # rounded once, at the end (the interpreter cuts off)
    expected = reference(leaves[0], shapes, places, *leaves[1:])
    assert ((output.double() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() + 1e-5).all()
    compare(places, leaves, shapes, 1e-2)
    assert [g.dtype for g in torch.autograd.grad(output.sum(), leaves)] == [dtype] * 3


def test_inputs_need_not_be_contiguous():
    shapes = [(4, 6)]
    places, leaves = inputs(shapes, heads=2)
    value, offsets, logits = (x.detach() for x in leaves)
    scattered = [
        value.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([offsets, offsets], -1)[..., 0],
        logits.mT.contiguous().mT,
    ]
    compare(places.T.contiguous().T, [x.requires_grad_() for x in scattered], shapes, 1e-5)
    # parts of the rows of one product
    rows = torch.cat([torch.randn(2, 19, 5, device=DEVICE), offsets.flatten(2), logits.flatten(2)], 2)
    parts = rows[..., 5 : 5 + 8].view(offsets.shape), rows[..., 13:].view(logits.shape)
    assert not any(x.is_contiguous() for x in parts)
    assert all(_in_rows(x) is x for x in parts)
    compare(places, [x.detach().requires_grad_() for x in (value, *parts)], shapes, 1e-5)


def test_without_a_device_nothing_is_tried():
    plain._triton_runs_on.cache_clear()
    assert not plain._triton_runs_on(torch.device("cpu"))


def test_a_kernel_that_does_not_build_is_reported_once(monkeypatch, caplog):
    from dearli_d2.modeling.mask2former import deformable_attention_triton as module

    def fails(*args):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(module, "deformable_attention", fails)
    with caplog.at_level(logging.WARNING):
        assert not runs_on(torch.device(DEVICE))
    assert "C compiler" in caplog.text


def test_asking_for_triton_without_triton_is_an_error_of_the_config(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "dearli_d2.modeling.mask2former.deformable_attention_triton", None)
    places, (value, *points) = inputs([(2, 2)])
    with pytest.raises(ConfigError, match=r"MODEL\.DEFORM_ATTN_IMPL"):
        plain.multi_scale_deformable_attention(value, [(2, 2)], places, *points, "triton")
