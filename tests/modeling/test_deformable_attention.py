"""Deformable attention against a brute-force loop and automatic differentiation, in float64 where that is possible."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F

from dearli_d2.config.schema import schema
from dearli_d2.modeling.mask2former import deformable_attention
from dearli_d2.modeling.mask2former.deformable_attention import (
    IMPLEMENTATIONS,
    MSDeformAttn,
    multi_scale_deformable_attention,
)

SHAPES = [(5, 7), (3, 4), (2, 1)]
HERE = [name for name in IMPLEMENTATIONS if name != "triton" or importlib.util.find_spec("triton")]


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, 3, 4, dtype=dtype)
    # some locations lie outside
    locations = torch.rand(2, 6, 3, 3, 2, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(2, 6, 3, 6, dtype=dtype).softmax(-1).view(2, 6, 3, 3, 2)
    return value, locations, weights


def test_the_config_accepts_every_implementation():
    assert schema()["MODEL.DEFORM_ATTN_IMPL"].options == ("auto", *IMPLEMENTATIONS)


def brute_force(value, locations, weights):
    """Bilinear interpolation written from its definition, one number at a time."""
    batch, _, heads, dim = value.shape
    output = torch.zeros(batch, locations.shape[1], heads, dim, dtype=torch.float64)
    starts = [0]
    for h, w in SHAPES:
        starts.append(starts[-1] + h * w)
    for b, m, head, level, point in torch.cartesian_prod(*(torch.arange(n) for n in locations.shape[:5])).tolist():
        height, width = SHAPES[level]
        x = float(locations[b, m, head, level, point, 0]) * width - 0.5
        y = float(locations[b, m, head, level, point, 1]) * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    token = starts[level] + row * width + column
                    factor = share * float(weights[b, m, head, level, point])
                    output[b, m, head] += factor * value[b, token, head].double()
    return output.flatten(2)


@pytest.mark.parametrize("implementation", HERE)
def test_equals_the_definition(implementation):
    value, locations, weights = inputs()
    ours = multi_scale_deformable_attention(value, SHAPES, locations, weights, implementation)
    assert torch.allclose(ours.double(), brute_force(value, locations, weights), atol=1e-5)


def test_implementations_agree_to_1e_5(monkeypatch):
    monkeypatch.setattr(deformable_attention, "_CPU_BLOCK", 4)
    value, locations, weights = inputs()
    results = [multi_scale_deformable_attention(value, SHAPES, locations, weights, name) for name in HERE]
    for other in results[1:]:
        assert torch.allclose(results[0], other, atol=1e-5)


@pytest.mark.parametrize("block", [1024, 4])
def test_gradients_equal_automatic_differentiation(block, monkeypatch):
    monkeypatch.setattr(deformable_attention, "_CPU_BLOCK", block)  # 6 queries: one block, or two

    def plain(value, locations, weights):
        output, start = 0, 0
        for level, (height, width) in enumerate(SHAPES):
            part = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(6, 4, height, width)
            grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1) * 2 - 1
            samples = F.grid_sample(part, grid, align_corners=False)
            output = output + (samples * weights[..., level, :].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
            start += height * width
        return output.view(2, 12, 6).transpose(1, 2)

    direction = torch.randn(2, 6, 12)
    grads = []
    for function in (plain, lambda v, x, w: multi_scale_deformable_attention(v, SHAPES, x, w)):
        leaves = [x.requires_grad_() for x in inputs()]
        (function(*leaves) * direction).sum().backward()
        grads.append([x.grad for x in leaves])
    for name, expected, ours in zip(("value", "locations", "weights"), *grads, strict=True):
        assert torch.allclose(expected, ours, atol=1e-5), name


def test_output_is_fp32_under_autocast():
    value, locations, weights = inputs()
    expected = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    assert torch.equal(expected, ours)


def test_module_starts_with_heads_that_look_in_different_directions():
    module = MSDeformAttn(dim=16, heads=4, levels=3, points=2)
    offsets = module.sampling_offsets.bias.view(4, 3, 2, 2)
    assert torch.allclose(offsets[:, 0, 1], 2 * offsets[:, 0, 0])
    directions = F.normalize(offsets[:, 0, 0], dim=-1)
    assert (directions @ directions.T - torch.eye(4)).abs().max() < 1 + 1e-6
    assert torch.linalg.matrix_rank(directions - directions.mean(0)) == 2
