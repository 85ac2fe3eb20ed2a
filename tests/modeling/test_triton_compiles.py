"""Every Triton kernel compiles for a GPU, on a machine without one. The interpreter accepts code that the compiler refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SCRIPT = """
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from dearli_d2.modeling.mask2former.competition_triton import compete
from dearli_d2.modeling.mask2former.deformable_attention_triton import deformable_attention
from dearli_d2.modeling.mask2former.residual_norm_triton import residual_norm


class Pretended:
    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


driver.set_active(Pretended())
launch = JITFunction.run


def compiled(kernel, *args, grid=None, warmup=False, **options):
    made = launch(kernel, *args, grid=grid, warmup=True, **options)
    print(kernel.fn.__module__.split(".")[-1], kernel.fn.__name__, len(made.asm["cubin"]))
    return made


JITFunction.run = compiled
for dtype in (torch.bfloat16, torch.float32):
    shapes, tokens = [(4, 4), (8, 8)], 80
    value = torch.randn(1, tokens, 8, 32, dtype=dtype, requires_grad=True)
    offsets = torch.randn(1, tokens, 8, 2, 4, 2, dtype=dtype, requires_grad=True)
    logits = torch.randn(1, tokens, 8, 8, dtype=dtype, requires_grad=True)
    deformable_attention(value, shapes, torch.rand(tokens, 2), offsets, logits).float().sum().backward()
    compete(torch.randn(1, 20, 16, 16, dtype=dtype), torch.rand(1, 20), (64, 64), (64, 64))
tokens = torch.randn(2, 50, 256, requires_grad=True)
for position in (None, torch.randn(50, 256, requires_grad=True)):
    branch = torch.randn(2, 50, 256, dtype=torch.bfloat16, requires_grad=True)
    outputs = residual_norm(tokens, branch, torch.nn.LayerNorm(256), position, torch.bfloat16)
    sum(x.float().sum() for x in outputs if x is not None).backward()
"""


def test_kernels_compile_for_a_hopper_card(repo, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(repo)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "90"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    source = (repo / "dearli_d2" / "modeling" / "mask2former").glob("*_triton.py")
    kernels = {
        (path.stem, name)
        for path in source
        for name in re.findall(
            r"@triton\.jit\ndef (\w+)\(\n", path.read_text()
        )  # those with arguments over several lines
    }
    assert len(kernels) >= 5
    assert found == kernels
