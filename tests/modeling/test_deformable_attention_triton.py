"""The Triton kernels in the interpreter (or on a GPU): values and gradients against the plain implementation in float64."""

from __future__ import annotations

import logging

import pytest
import torch

from dearli_d2.errors import ConfigError
from dearli_d2.modeling.mask2former import deformable_attention as plain

pytest.importorskip("triton")
from dearli_d2.modeling.mask2former.deformable_attention_triton import deformable_attention, runs_on

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def reference(value, shapes, locations, weights):
    """grid_sample in float64, differentiated by autograd."""
    value, locations, weights = value.double(), locations.double(), weights.double()
    batch, _, heads, dim = value.shape
    total, start = 0, 0
    for level, (height, width) in enumerate(shapes):
        if not height * width:
            continue
        tokens = value[:, start : start + height * width]
        start += height * width
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        grid = (2 * locations[:, :, :, level] - 1).permute(0, 2, 1, 3, 4).flatten(0, 1)
        samples = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
        factors = weights[:, :, :, level].permute(0, 2, 1, 3).flatten(0, 1)[:, None]
        total = total + (samples * factors).sum(-1)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def inputs(shapes, batch=2, queries=19, heads=3, dim=8, points=2, dtype=torch.float32, spread=1.6):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(batch, tokens, heads, dim, generator=generator).to(DEVICE, dtype)
    locations = (
        torch.rand(batch, queries, heads, len(shapes), points, 2, generator=generator) * spread - (spread - 1) / 2
    )
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=generator)
    return [x.requires_grad_() for x in (value, locations.to(DEVICE), weights.to(DEVICE))]


def compare(leaves, shapes, tolerance):
    output, expected = (f(leaves[0], shapes, *leaves[1:]) for f in (deformable_attention, reference))
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
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
    compare(inputs(shapes, **options), shapes, 1e-5)


def test_an_empty_level_adds_nothing():
    shapes = [(4, 5), (0, 3)]
    compare(inputs(shapes), shapes, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_are_summed_in_fp32(dtype):
    shapes = [(5, 7), (3, 4)]
    leaves = inputs(shapes, dtype=dtype)
    output = deformable_attention(leaves[0], shapes, *leaves[1:])
    assert output.dtype == torch.float32
    assert torch.allclose(output.double(), reference(leaves[0], shapes, *leaves[1:]), atol=1e-5)
    compare(leaves, shapes, 1e-2)  # the gradient of the value is rounded to its type
    assert torch.autograd.grad(deformable_attention(leaves[0], shapes, *leaves[1:]).sum(), leaves)[0].dtype == dtype


def test_inputs_need_not_be_contiguous():
    shapes = [(4, 6)]
    value, locations, weights = (x.detach() for x in inputs(shapes, heads=2))
    scattered = [
        value.transpose(1, 2).contiguous().transpose(1, 2),
        locations.flip(0).flip(0),
        weights.mT.contiguous().mT,
    ]
    scattered[1] = torch.stack([locations, locations], -1)[..., 0]
    compare([x.requires_grad_() for x in scattered], shapes, 1e-5)


def test_the_operators_keep_their_contracts():
    shapes = ((4, 6), (2, 3))
    value, locations, weights = inputs(shapes, queries=5)
    table = torch.tensor([(4, 6, 0), (2, 3, 24)], dtype=torch.int32, device=DEVICE)
    checks = ["test_schema", "test_autograd_registration"]
    if DEVICE == "cuda":  # the interpreter reads memory, which a fake tensor has none of
        checks += ["test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(
        torch.ops.dearli_d2.deformable_attention.default, (value, table, locations, weights), test_utils=checks
    )


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
    value, locations, weights = inputs([(2, 2)])
    with pytest.raises(ConfigError, match=r"MODEL\.DEFORM_ATTN_IMPL"):
        plain.multi_scale_deformable_attention(value, [(2, 2)], locations, weights, "triton")
