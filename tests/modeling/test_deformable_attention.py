"""Deformable attention against a brute-force loop and automatic differentiation, in float64 where that is possible."""

from __future__ import annotations

import importlib.util
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dearli_d2.config.schema import schema
from dearli_d2.errors import ConfigError
from dearli_d2.modeling.mask2former import deformable_attention_cpu
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
    offsets = torch.randn(2, 6, 3, 3, 2, 2, dtype=dtype) * 3  # some points lie outside, a few of them far outside
    offsets[1, 5, 2] = torch.tensor([-1e4, 1e4])
    logits = torch.randn(2, 6, 3, 6, dtype=dtype)
    return value, offsets, logits


REFERENCE = torch.rand(6, 2, generator=torch.Generator().manual_seed(1))


def attend(value, offsets, logits, implementation="auto"):
    return multi_scale_deformable_attention(value, SHAPES, REFERENCE.to(value.device), offsets, logits, implementation)


def test_the_config_accepts_every_implementation():
    assert schema()["MODEL.DEFORM_ATTN_IMPL"].options == ("auto", *IMPLEMENTATIONS)


def brute_force(value, offsets, logits):
    """Bilinear interpolation written from its definition, one number at a time."""
    batch, _, heads, dim = value.shape
    weights = logits.double().softmax(-1).view(offsets.shape[:-1])
    output = torch.zeros(batch, offsets.shape[1], heads, dim, dtype=torch.float64)
    starts = [0]
    for h, w in SHAPES:
        starts.append(starts[-1] + h * w)
    for b, m, head, level, point in torch.cartesian_prod(*(torch.arange(n) for n in offsets.shape[:5])).tolist():
        height, width = SHAPES[level]
        x = float(REFERENCE[m, 0]) * width + float(offsets[b, m, head, level, point, 0]) - 0.5
        y = float(REFERENCE[m, 1]) * height + float(offsets[b, m, head, level, point, 1]) - 0.5
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
    ours = attend(*inputs(), implementation)
    assert torch.allclose(ours.double(), brute_force(*inputs()), atol=1e-5)


def test_implementations_agree_to_1e_5():
    results = [attend(*inputs(), name) for name in HERE]
    for other in results[1:]:
        assert torch.allclose(results[0], other, atol=1e-5)


def by_autograd(value, offsets, logits):
    output, start = 0, 0
    weights = logits.softmax(-1).view(offsets.shape[:-1])
    for level, (height, width) in enumerate(SHAPES):
        part = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(6, 4, height, width)
        points = REFERENCE[:, None, None] + offsets[:, :, :, level] / torch.tensor([width, height])
        grid = points.transpose(1, 2).flatten(0, 1) * 2 - 1
        samples = F.grid_sample(part, grid, align_corners=False)
        output = output + (samples * weights[..., level, :].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        start += height * width
    return output.view(2, 12, 6).transpose(1, 2)


@pytest.mark.parametrize("block", [256, 4])
@pytest.mark.parametrize("implementation", HERE)
def test_gradients_equal_automatic_differentiation(implementation, block, monkeypatch):
    monkeypatch.setattr(deformable_attention_cpu, "_BLOCK", block)  # 6 queries: one block, or two
    direction = torch.randn(2, 12, 6).transpose(1, 2)
    grads = []
    for function in (by_autograd, partial(attend, implementation=implementation)):
        leaves = [x.requires_grad_() for x in inputs()]
        grads.append(torch.autograd.grad((function(*leaves) * direction).sum(), leaves))
    for name, expected, ours in zip(("value", "offsets", "logits"), *grads, strict=True):
        assert torch.allclose(expected, ours, atol=1e-5), name


def test_numbers_of_a_diverged_model_read_no_foreign_memory():
    value, offsets, logits = (x.requires_grad_() for x in inputs())
    broken = offsets.detach().clone()
    broken[0, 0] = torch.tensor([math.nan, math.inf])
    output = attend(value, broken.requires_grad_(), logits)
    output.sum().backward()
    assert output[0, 0].eq(0).all()
    assert torch.equal(output[0, 1:], attend(*inputs())[0, 1:])


def test_numbers_have_the_type_of_the_value():
    value, offsets, logits = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(value, offsets, logits), attend(*inputs()))
        assert attend(value.bfloat16(), offsets, logits).dtype == torch.bfloat16


def test_sparse_products_are_refused_on_other_devices():
    with pytest.raises(ConfigError, match=r"MODEL\.DEFORM_ATTN_IMPL is gather.* meta"):
        attend(*(x.to("meta") for x in inputs()), "gather")


def test_module_starts_with_heads_that_look_in_different_directions():
    module = MSDeformAttn(dim=16, heads=4, levels=3, points=2)
    offsets = module.sampling_offsets.bias.view(4, 3, 2, 2)
    assert torch.allclose(offsets[:, 0, 1], 2 * offsets[:, 0, 0])
    directions = F.normalize(offsets[:, 0, 0], dim=-1)
    assert (directions @ directions.T - torch.eye(4)).abs().max() < 1 + 1e-6
    assert torch.linalg.matrix_rank(directions - directions.mean(0)) == 2
