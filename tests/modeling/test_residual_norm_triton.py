"""The Triton kernels of a residual sum with LayerNorm, in the interpreter (or on a GPU), against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton")
from dearli_d2.modeling.mask2former import residual_norm_triton as module
from dearli_d2.modeling.mask2former.pixel_decoder import MSDeformAttnPixelDecoder
from dearli_d2.modeling.mask2former.residual_norm_triton import residual_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def made(batch, tokens, dim, branch_type):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    norm = nn.LayerNorm(dim)
    with torch.no_grad():
        norm.weight.copy_(draw(dim))
        norm.bias.copy_(draw(dim))
    leaves = [draw(batch, tokens, dim), draw(batch, tokens, dim).to(branch_type), 3 * draw(tokens, dim)]
    return norm.to(DEVICE), [x.to(DEVICE).requires_grad_() for x in leaves]


def reference(tokens, branch, weight, bias, position):
    result = F.layer_norm(tokens + branch, weight.shape, weight, bias)
    return result, result, result + position


@pytest.mark.parametrize("used", [(0, 1, 2), (0, 1), (2,)])
@pytest.mark.parametrize(("batch", "tokens", "dim"), [(2, 7, 16), (1, 1, 6), (3, 5, 33)])
def test_values_and_gradients_equal_float64(batch, tokens, dim, used, monkeypatch):
    monkeypatch.setattr(module, "_PROGRAMS", 2)  # a program takes several blocks of rows
    norm, (tokens, branch, position) = made(batch, tokens, dim, torch.float32)
    leaves = [tokens, branch, norm.weight, norm.bias, position]
    right = [x.detach().double().requires_grad_() for x in leaves]
    place = position if 2 in used else None
    outputs = residual_norm(tokens, branch, norm, place, torch.float32)
    assert (outputs[2] is None) == (place is None)
    found, expected = ([x[i] for i in used] for x in (outputs, reference(*right)))
    upstream = [torch.randn(tokens.shape, device=DEVICE) for _ in used]
    ours = torch.autograd.grad(found, leaves, upstream, allow_unused=True)
    theirs = torch.autograd.grad(expected, right, [u.double() for u in upstream], allow_unused=True)
    for mine, true in zip((*found, *ours), (*expected, *theirs), strict=True):
        assert (mine is None) == (true is None)
        if mine is not None:
            assert (mine - true).norm() <= 1e-5 * true.norm()


def test_lower_types_round_once():
    norm, (tokens, branch, position) = made(2, 5, 16, torch.bfloat16)
    full, low, placed = residual_norm(tokens, branch, norm, position, torch.bfloat16)
    expected = reference(*(x.detach() for x in (tokens, branch.float(), norm.weight, norm.bias, position)))
    assert [x.dtype for x in (full, low, placed)] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for mine, true, step in zip((full, low, placed), expected, (1e-6, 2**-7, 2**-7), strict=True):
        assert ((mine - true).abs() <= step * true.abs() + 1e-5).all()  # the interpreter cuts off
    gradients = torch.autograd.grad((low.float() * placed.float()).sum(), (tokens, branch, position))
    assert [g.dtype for g in gradients] == [torch.float32, torch.bfloat16, torch.float32]


def test_inputs_and_gradients_need_not_be_contiguous():
    norm, (tokens, branch, position) = made(2, 5, 8, torch.float32)
    turned = [tokens.transpose(0, 1).contiguous().transpose(0, 1), branch.mT.contiguous().mT, position.T.contiguous().T]
    for ours, theirs in zip(residual_norm(*turned[:2], norm, turned[2], torch.float32),
                            residual_norm(tokens, branch, norm, position, torch.float32), strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)
    output = residual_norm(tokens, branch, norm, None, torch.float32)[0]
    expected = F.layer_norm(tokens + branch, (8,), norm.weight, norm.bias)
    scattered = torch.randn(2, 8, 5, device=DEVICE).mT
    assert torch.allclose(*(torch.autograd.grad(x, tokens, scattered)[0] for x in (output, expected)), atol=1e-5)


def test_nothing_is_kept_without_gradients():
    norm, (tokens, branch, position) = made(2, 5, 8, torch.float32)
    arguments = tokens, branch, norm.weight, norm.bias, position, norm.eps, torch.bfloat16
    assert [torch.ops.dearli_d2.residual_norm(*arguments, keep)[3].numel() for keep in (True, False)] == [80, 0]


def test_the_pixel_decoder_with_all_kernels_has_the_errors_of_autocast():
    torch.manual_seed(0)
    decoders = [
        MSDeformAttnPixelDecoder({f"res{i}": 8 for i in range(2, 6)}, 16, 16, 24, 2, 2, 1, implementation=name).to(
            DEVICE
        )
        for name in ("grid_sample", "triton")
    ]
    for parameter in decoders[0].parameters():  # all paths carry numbers
        nn.init.normal_(parameter, std=0.3)
    decoders[1].load_state_dict(decoders[0].state_dict())
    features = {f"res{i}": torch.randn(1, 8, 2 ** (6 - i), 2 ** (6 - i), device=DEVICE) for i in range(2, 6)}

    def run(decoder, enabled):
        decoder.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=enabled):
            output = decoder(features)
        output.mask_features.float().square().mean().add(output.multi_scale[0].float().square().mean()).backward()
        return [output.mask_features, *output.multi_scale, *(p.grad for p in decoder.parameters())]

    exact = run(decoders[0], False)
    errors = [
        torch.stack(
            [((a - b).norm() / b.norm()).detach() for a, b in zip(run(decoder, True), exact, strict=True)]
        ).median()
        for decoder in decoders
    ]
    # the interpreter cuts off what a GPU rounds
    assert 0 < errors[1] < (1.1 if DEVICE == "cuda" else 2) * errors[0] < 1
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(run(decoders[1], False), exact, strict=True))
