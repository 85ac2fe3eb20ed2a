"""LayerNorm of the sum of two tensors under autocast, as one Triton kernel for the forward and one for the backward pass.

Autocast normalises in fp32. PyTorch launches a kernel for the sum, one for each cast of the result, and one for each sum of
gradients. Here each pass reads and writes every tensor once.

Importing this module needs Triton. `TRITON_INTERPRET=1`, set before the import, runs the kernels on a CPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn
from torch.library import triton_op, wrap_triton

from .kernel_trial import kernel_runs

_ROWS = 4  # of a program at a time, one for each warp
_PROGRAMS = 1024  # of the backward pass; each sums the gradients of weight and bias for its rows


@triton.jit
def _normalised(total, real, eps, DIM: tl.constexpr):
    """Rows with mean 0 and variance 1, and 1 / their standard deviation before."""
    centred = tl.where(real, total - (tl.sum(total, 1) / DIM)[:, None], 0.0)
    factor = 1 / tl.sqrt(tl.sum(centred * centred, 1) / DIM + eps)
    return centred * factor[:, None], factor


@triton.jit
def _forward(
    tokens, branch, weight, bias, position, total, output, low, placed, rows, places, eps,
    DIM: tl.constexpr, PADDED: tl.constexpr, KEEP: tl.constexpr, PLACE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, PADDED)
    real = (row < rows)[:, None] & (channel < DIM)[None]
    at = row[:, None] * DIM + channel[None]
    summed = tl.load(tokens + at, mask=real, other=0.0) + tl.load(branch + at, mask=real, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(total + at, summed, mask=real)
    normed, _ = _normalised(summed, real, eps, DIM)
    factor = tl.load(weight + channel, mask=channel < DIM, other=0.0)
    result = normed * factor[None] + tl.load(bias + channel, mask=channel < DIM, other=0.0)[None]
    tl.store(output + at, result, mask=real)
    tl.store(low + at, result, mask=real)
    if PLACE:
        place = (row % places)[:, None] * DIM + channel[None]
        tl.store(placed + at, result + tl.load(position + place, mask=real, other=0.0), mask=real)


@triton.jit
def _backward(
    total, weight, grad_output, grad_low, grad_placed, grad_total, grad_branch, grad_affine, rows, eps,
    DIM: tl.constexpr, PADDED: tl.constexpr, OUTPUT: tl.constexpr, LOW: tl.constexpr, PLACED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, PADDED)
    factor = tl.load(weight + channel, mask=channel < DIM, other=0.0)
    grad_weight = tl.zeros((PADDED,), tl.float32)
    grad_bias = tl.zeros((PADDED,), tl.float32)
    program, programs = tl.program_id(0), tl.num_programs(0)
    for start in range(program * BLOCK, rows, programs * BLOCK):
        row = tl.arange(0, BLOCK).to(tl.int64) + start
        real = (row < rows)[:, None] & (channel < DIM)[None]
        at = row[:, None] * DIM + channel[None]
        grad = tl.zeros((BLOCK, PADDED), tl.float32)
        if OUTPUT:
            grad += tl.load(grad_output + at, mask=real, other=0.0)
        if LOW:
            grad += tl.load(grad_low + at, mask=real, other=0.0).to(tl.float32)
        if PLACED:
            grad += tl.load(grad_placed + at, mask=real, other=0.0).to(tl.float32)
        normed, scale = _normalised(tl.load(total + at, mask=real, other=0.0), real, eps, DIM)
        grad_weight += tl.sum(grad * normed, 0)
        grad_bias += tl.sum(grad, 0)
        grad *= factor[None]
        along = tl.sum(grad * normed, 1) / DIM
        result = (grad - normed * along[:, None] - (tl.sum(grad, 1) / DIM)[:, None]) * scale[:, None]
        tl.store(grad_total + at, result, mask=real)
        tl.store(grad_branch + at, result, mask=real)
    at = program * DIM + channel
    tl.store(grad_affine + at, grad_weight, mask=channel < DIM)
    tl.store(grad_affine + programs * DIM + at, grad_bias, mask=channel < DIM)


def _launch(kernel: Any, programs: int, dim: int, *arguments: Any, **constants: bool) -> None:
    # torch 2.10 wraps no kernel of the interpreter, which needs no wrapping
    launched = wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel
    sizes = {"DIM": dim, "PADDED": triton.next_power_of_2(dim), "BLOCK": _ROWS}
    launched[(programs,)](*arguments, **sizes, **constants, num_warps=_ROWS)


@triton_op("dearli_d2::residual_norm", mutates_args={})
def _operator(
    tokens: torch.Tensor,
    branch: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    position: torch.Tensor | None,
    eps: float,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result in fp32 and in `dtype`, its sum with the position in `dtype`, and the sum of the inputs. The last two may be empty."""

    def room(wanted: bool, kind: torch.dtype) -> torch.Tensor:
        return torch.empty(tokens.shape if wanted else (0,), dtype=kind, device=tokens.device)

    output, low = room(True, torch.float32), room(True, dtype)
    placed, total = room(position is not None, dtype), room(keep, torch.float32)
    dim = tokens.shape[-1]
    rows, places = tokens.numel() // dim, tokens.shape[-2]
    place = weight if position is None else position
    arguments = tokens, branch, weight, bias, place, total, output, low, placed, rows, places, eps
    _launch(_forward, triton.cdiv(rows, _ROWS), dim, *arguments, KEEP=keep, PLACE=position is not None)
    return output, low, placed, total


@triton_op("dearli_d2::residual_norm_backward", mutates_args={})
def _operator_backward(
    total: torch.Tensor,
    weight: torch.Tensor,
    grad_output: torch.Tensor | None,
    grad_low: torch.Tensor | None,
    grad_placed: torch.Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the tokens, of the branch in `dtype`, and (2, programs, C) of weight and bias by program."""
    dim = total.shape[-1]
    rows = total.numel() // dim
    programs = max(min(triton.cdiv(rows, _ROWS), _PROGRAMS), 1)
    grad_total, grad_branch = torch.empty_like(total), torch.empty_like(total, dtype=dtype)
    grad_affine = torch.empty(2, programs, dim, dtype=torch.float32, device=total.device)
    grads = [total if g is None else g for g in (grad_output, grad_low, grad_placed)]
    given = {"OUTPUT": grad_output is not None, "LOW": grad_low is not None, "PLACED": grad_placed is not None}
    outputs = grad_total, grad_branch, grad_affine
    _launch(_backward, programs, dim, total, weight, *grads, *outputs, rows, eps, **given)
    return outputs


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: torch.Tensor,
        branch: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        position: torch.Tensor | None,
        eps: float,
        dtype: torch.dtype,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        output, low, placed, total = _operator(tokens, branch, weight, bias, position, eps, dtype, keep)
        ctx.save_for_backward(total, weight)
        ctx.eps, ctx.branch_type = eps, branch.dtype
        ctx.set_materialize_grads(False)
        return output, low, None if position is None else placed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        grads = tuple(None if g is None else g.contiguous() for g in grads)
        grad_tokens, grad_branch, affine = _operator_backward(total, weight, *grads, ctx.eps, ctx.branch_type)
        grad_weight, grad_bias = affine.sum(1)
        grad_placed = grads[2]
        grad_position = None
        if grad_placed is not None and ctx.needs_input_grad[4]:
            grad_position = grad_placed.flatten(0, -3).sum(0, dtype=torch.float32)
        return grad_tokens, grad_branch, grad_weight, grad_bias, grad_position, None, None, None


def residual_norm(
    tokens: torch.Tensor, branch: torch.Tensor, norm: nn.LayerNorm, position: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Computes `norm(tokens + branch)` in fp32, and copies in a lower type for the next layers. Each copy is rounded once.

    Args:
        tokens: (B, N, C) fp32.
        branch: (B, N, C) of any floating type.
        norm: over the C channels, with weight and bias in fp32.
        position: (N, C) fp32, or None.
        dtype: the lower type.

    Returns:
        The result in fp32, the result in `dtype`, and its sum with the position in `dtype` (None without a position).
    """
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] = _ResidualNorm.apply(
        tokens.contiguous(), branch.contiguous(), norm.weight, norm.bias,
        None if position is None else position.contiguous(), norm.eps, dtype, torch.is_grad_enabled(),
    )  # fmt: skip
    return result


@cache
def runs_on(device: torch.device) -> bool:
    """True if the kernels can be built and run on this GPU, see `kernel_runs`."""

    def trial() -> None:
        for dtype in (torch.bfloat16, torch.float16):
            affine = torch.ones(4, device=device)
            values = torch.ones(1, 2, 4, device=device)
            *_, total = _operator(values, values.to(dtype), affine, affine, values[0], 1e-5, dtype, True)
            grad = torch.ones_like(total)
            _operator_backward(total, affine, grad, grad.to(dtype), None, 1e-5, dtype)

    return kernel_runs("residual norms", device, trial, "Sums and norms are separate kernels instead, which is slower.")
