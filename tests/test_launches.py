"""Counted kernel launches: gradients equal PyTorch's, and counts equal those made by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks.launches import Counter, backward, pretended_cuda
from dearli_d2.modeling.mask2former.deformable_attention import multi_scale_deformable_attention


def branched_loss(weight, bias, x):
    hidden = torch.relu(x @ weight + bias)  # the bias is broadcast
    half = hidden.to(torch.bfloat16) @ weight.to(torch.bfloat16)  # the weight is used twice, the type changes
    first, second = half.float().split(3, dim=-1)  # a node with several outputs
    return (first * 2 + first.square()).sum() + second.sigmoid().sum() + hidden.mean()


def test_gradients_are_those_of_the_engine():
    weight, bias = torch.randn(6, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    x = torch.randn(4, 6)
    branched_loss(weight, bias, x).backward()
    expected = weight.grad.clone(), bias.grad.clone()
    weight.grad = bias.grad = None
    backward(branched_loss(weight, bias, x), Counter())
    assert torch.allclose(weight.grad, expected[0], rtol=1e-5)
    assert torch.allclose(bias.grad, expected[1], rtol=1e-5)


def test_gradients_of_functions_with_a_backward_pass_of_their_own():
    value = torch.randn(2, 30, 4, 8, requires_grad=True)
    offsets = torch.randn(2, 7, 4, 1, 3, 2, requires_grad=True)
    logits = torch.rand(2, 7, 4, 3, requires_grad=True)
    reference = torch.rand(7, 2)

    def loss():
        return (
            multi_scale_deformable_attention(value, [(5, 6)], reference, offsets, logits, "grid_sample").square().sum()
        )

    leaves = value, offsets, logits
    expected = torch.autograd.grad(loss(), leaves)
    backward(loss(), Counter())
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert torch.allclose(leaf.grad, gradient, rtol=1e-5, atol=1e-6)


def test_launches_and_bytes_of_a_known_graph():
    with pretended_cuda() as fake, fake, Counter() as counter:
        x, y = torch.empty(10, 20, device="cuda"), torch.empty(20, device="cuda")
        z = (x + y).t()  # 200 + 20 read, 200 written; a transpose is a view
        z.mul_(2)  # 200 read and written
        torch.zeros(5, device="cuda")  # 5 written
        torch.empty(7).to("cuda")
        z.cpu()
    assert sum(counter.launches.values()) == 3
    assert sum(counter.bytes.values()) == 4 * (420 + 400 + 5)
    assert counter.copies == {"to the device": [1, 28], "to the host": [1, 800]}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_autocast_casts_a_weight_once(dtype):
    with pretended_cuda() as fake, fake:
        layer, x = nn.Linear(8, 8, device="cuda"), torch.empty(4, 8, device="cuda")
        with Counter() as counter, torch.autocast("cuda", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            layer(layer(x))
    casts = sum(n for (_, _, name), n in counter.launches.items() if name == "_to_copy")
    assert casts == (3 if dtype else 0)  # weight, bias, input


def test_the_command_counts_a_whole_step(repo):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.launches", "--size", "64", "--images", "2", "--lines", "5"]
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    counts = {name.strip(): int(number) for name, number, *_ in rows if number.strip().isdigit()}
    parts = ("backward", "matching", "losses", "backbone", "optimiser", "EMA", "strong views", "teacher: rest")
    assert all(counts[part] > 0 for part in parts)
    assert counts["all"] > 1000
    assert "copies to the device" in done.stdout
