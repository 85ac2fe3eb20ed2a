"""Multi-scale deformable attention as Triton kernels, one for each direction, behind two operators of `torch.library`.

The plain implementations write every sample to memory. These kernels keep the samples in registers: a program handles a
block of queries of one head, reads the four corners of each point, and sums in fp32. The backward pass reads the corners
again and adds to the gradient of the value with atomics.

Importing this module needs Triton. `TRITON_INTERPRET=1`, set before the import, runs the kernels on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

logger = logging.getLogger(__name__)

_BLOCK_VALUES = 512  # queries of a program x channels of a head
_WARPS = 2


@triton.jit
def _corner(x, y, width, height, first, live):
    """Row of a cell in the value, and whether the cell is there."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & live
    return tl.where(inside, first + y * width + x, 0), inside


@triton.jit
def _forward(
    value, locations, weights, table, output, tokens, queries, heads,
    DIM: tl.constexpr, PADDED: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    live = query < queries
    channel = tl.arange(0, PADDED)
    real = channel < DIM
    row = (batch * queries + query) * heads + head
    base = value + (batch * tokens * heads + head) * DIM
    total = tl.zeros((BLOCK, PADDED), tl.float32)
    for level in tl.static_range(LEVELS):
        height, width = tl.load(table + 3 * level), tl.load(table + 3 * level + 1)
        first = tl.load(table + 3 * level + 2)
        for point in range(POINTS):  # unrolled, the registers would spill
            at = row * (LEVELS * POINTS) + level * POINTS + point
            x = tl.load(locations + 2 * at, mask=live, other=0.0) * width - 0.5
            y = tl.load(locations + 2 * at + 1, mask=live, other=0.0) * height - 0.5
            weight = tl.load(weights + at, mask=live, other=0.0)
            left, top = tl.floor(x), tl.floor(y)
            share_x, share_y = x - left, y - top
            column, line = left.to(tl.int32), top.to(tl.int32)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    token, inside = _corner(column + dx, line + dy, width, height, first, live)
                    share = (share_x if dx else 1 - share_x) * (share_y if dy else 1 - share_y)
                    place = token.to(tl.int64)[:, None] * (heads * DIM) + channel[None]
                    found = tl.load(base + place, mask=inside[:, None] & real[None], other=0.0)
                    total += (weight * share)[:, None] * found.to(tl.float32)
    tl.store(output + row[:, None] * DIM + channel[None], total, mask=live[:, None] & real[None])


@triton.jit
def _backward(
    value, locations, weights, table, upstream, grad_value, grad_locations, grad_weights, tokens, queries, heads,
    DIM: tl.constexpr, PADDED: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    live = query < queries
    channel = tl.arange(0, PADDED)
    real = channel < DIM
    row = (batch * queries + query) * heads + head
    base = (batch * tokens * heads + head) * DIM
    grad = tl.load(upstream + row[:, None] * DIM + channel[None], mask=live[:, None] & real[None], other=0.0)
    for level in tl.static_range(LEVELS):
        height, width = tl.load(table + 3 * level), tl.load(table + 3 * level + 1)
        first = tl.load(table + 3 * level + 2)
        for point in range(POINTS):
            at = row * (LEVELS * POINTS) + level * POINTS + point
            x = tl.load(locations + 2 * at, mask=live, other=0.0) * width - 0.5
            y = tl.load(locations + 2 * at + 1, mask=live, other=0.0) * height - 0.5
            weight = tl.load(weights + at, mask=live, other=0.0)
            left, top = tl.floor(x), tl.floor(y)
            share_x, share_y = x - left, y - top
            column, line = left.to(tl.int32), top.to(tl.int32)
            grad_weight = tl.zeros((BLOCK,), tl.float32)
            grad_x = tl.zeros((BLOCK,), tl.float32)
            grad_y = tl.zeros((BLOCK,), tl.float32)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    token, inside = _corner(column + dx, line + dy, width, height, first, live)
                    place = base + token.to(tl.int64)[:, None] * (heads * DIM) + channel[None]
                    there = inside[:, None] & real[None]
                    found = tl.load(value + place, mask=there, other=0.0).to(tl.float32)
                    # all three gradients follow from <corner, upstream>
                    product = tl.sum(found * grad, 1)
                    along_x, along_y = share_x if dx else 1 - share_x, share_y if dy else 1 - share_y
                    grad_weight += along_x * along_y * product
                    grad_x += (along_y if dx else -along_y) * product
                    grad_y += (along_x if dy else -along_x) * product
                    part = (weight * along_x * along_y)[:, None] * grad
                    tl.atomic_add(grad_value + place, part, mask=there, sem="relaxed")
            tl.store(grad_weights + at, grad_weight, mask=live)
            tl.store(grad_locations + 2 * at, weight * grad_x * width, mask=live)
            tl.store(grad_locations + 2 * at + 1, weight * grad_y * height, mask=live)


def _launch(kernel: Any, value: torch.Tensor, locations: torch.Tensor, arguments: Sequence[torch.Tensor]) -> None:
    batch, tokens, heads, dim = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    padded = triton.next_power_of_2(dim)
    block = max(_BLOCK_VALUES // padded, 1)
    if batch and queries:
        # torch 2.10 wraps no kernel of the interpreter, which needs no wrapping
        launched = wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel
        launched[(triton.cdiv(queries, block), heads, batch)](
            *arguments, tokens, queries, heads, DIM=dim, PADDED=padded, LEVELS=levels, POINTS=points, BLOCK=block,
            num_warps=_WARPS,
        )  # fmt: skip


@triton_op("dearli_d2::deformable_attention", mutates_args={})
def _operator(value: torch.Tensor, table: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    batch, _, heads, dim = value.shape
    output = torch.empty(batch, locations.shape[1], heads * dim, dtype=torch.float32, device=value.device)
    _launch(_forward, value, locations, (value, locations, weights, table, output))
    return output


@triton_op("dearli_d2::deformable_attention_backward", mutates_args={})
def _operator_backward(
    value: torch.Tensor, table: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    _launch(
        _backward,
        value,
        locations,
        (value, locations, weights, table, grad, grad_value, grad_locations, grad_weights),
    )
    return grad_value, grad_locations, grad_weights


def _keep_inputs(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    value, table, locations, weights = ctx.saved_tensors
    grads = _operator_backward(value, table, locations, weights, grad.float().contiguous())
    return grads[0].to(value.dtype), None, grads[1], grads[2]


_operator.register_autograd(_gradients, setup_context=_keep_inputs)


@cache
def _table(shapes: tuple[tuple[int, int], ...], device: torch.device) -> torch.Tensor:
    """(L, 3) int32: height, width and first token of each level."""
    rows, first = [], 0
    for height, width in shapes:
        rows.append((height, width, first))
        first += height * width
    return torch.tensor(rows, dtype=torch.int32).to(device)


def deformable_attention(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor:
    """Computes `multi_scale_deformable_attention`; the value may be fp32, bf16 or fp16, sums are fp32."""
    kind = value.dtype
    value = value.float() if value.dtype == torch.float64 else value
    table = _table(tuple(spatial_shapes), value.device)
    sizes = table[:, [1, 0]].clamp(min=1)[:, None]
    locations = reference_points[:, None, None, None] + offsets.float() / sizes
    weights = logits.float().softmax(-1).view(offsets.shape[:-1])
    return _operator(value.contiguous(), table, locations.contiguous(), weights.contiguous()).to(kind)


def runs_on(device: torch.device) -> bool:
    """True if the kernels can be built and run on this GPU. Logs a warning where they cannot (no C compiler, an old card)."""
    try:
        shapes = (1, 4, 1, 4), (1, 2), (1, 1, 1, 1, 1, 2), (1, 1, 1, 1)
        value, *points = (torch.rand(shape, device=device) for shape in shapes)
        deformable_attention(value, [(2, 2)], *points)
        torch.cuda.synchronize(device)
    except Exception as error:
        logger.warning(
            "The Triton kernel of deformable attention does not run on %s (%s: %s). The plain implementation is used; it "
            "is several times slower. Triton needs a C compiler (for example Debian's package gcc) and a GPU from 2017 on.",
            device,
            type(error).__name__,
            str(error).strip().splitlines()[-1:] or "",
        )
        return False
    return True
