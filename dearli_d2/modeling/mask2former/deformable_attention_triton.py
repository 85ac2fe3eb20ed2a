"""Multi-scale deformable attention as Triton kernels, one for each direction, behind two operators of `torch.library`.

The plain implementations write every sample to memory. These kernels keep the samples in registers: a program handles a
block of queries of one head, reads the four corners of each point, and sums in fp32. The backward pass reads the corners
again and adds to the gradient of the value with atomics. They also compute positions and softmax, so the large tensors are read
and written once, in their own type.

Importing this module needs Triton. `TRITON_INTERPRET=1`, set before the import, runs the kernels on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from .kernel_trial import kernel_runs

_BLOCK_VALUES = 512  # queries of a program x channels of a head
_WARPS = 2


@triton.jit
def _corner(x, y, width, height, first, live):
    """Row of a cell in the value, and whether the cell is there."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & live
    return tl.where(inside, first + y * width + x, 0), inside


@triton.jit
def _softmax(logits, row, live, ROW: tl.constexpr, PADDED_ROW: tl.constexpr):
    """(BLOCK, PADDED_ROW) scores, 0 from column ROW on; for each row the factor that turns them into weights, and its largest logit."""
    column = tl.arange(0, PADDED_ROW)
    real = column[None] < ROW
    scores = tl.load(logits + row[:, None] + column[None], mask=live[:, None] & real, other=0.0).to(tl.float32)
    scores = tl.where(real, scores, float("-inf"))
    greatest = tl.max(scores, 1)
    scores = tl.exp(scores - greatest[:, None])
    return scores, 1 / tl.sum(scores, 1), greatest


@triton.jit
def _cells(offsets, at, reference, size, live):
    """The cell before each point along an axis, and the share of the cell after it."""
    cell = tl.load(offsets + at, mask=live, other=0.0).to(tl.float32) + reference * size - 0.5
    before = tl.floor(cell)
    return before.to(tl.int32), cell - before


@triton.jit
def _forward(
    value, reference, offsets, logits, table, output, tokens, queries, heads, offsets_stride, logits_stride,
    DIM: tl.constexpr, PADDED: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, PADDED_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    live = query < queries
    channel = tl.arange(0, PADDED)
    real = channel < DIM
    base = value + (batch * tokens * heads + head) * DIM
    reference_x = tl.load(reference + 2 * query, mask=live, other=0.0)
    reference_y = tl.load(reference + 2 * query + 1, mask=live, other=0.0)
    offsets_row = (batch * queries + query) * offsets_stride + head * (2 * LEVELS * POINTS)
    logits_row = (batch * queries + query) * logits_stride + head * (LEVELS * POINTS)
    _, factor, greatest = _softmax(logits, logits_row, live, LEVELS * POINTS, PADDED_ROW)
    total = tl.zeros((BLOCK, PADDED), tl.float32)
    for level in tl.static_range(LEVELS):
        height, width = tl.load(table + 3 * level), tl.load(table + 3 * level + 1)
        first = tl.load(table + 3 * level + 2)
        for point in range(POINTS):  # unrolled, the registers would spill
            place = level * POINTS + point
            column, share_x = _cells(offsets, offsets_row + 2 * place, reference_x, width, live)
            line, share_y = _cells(offsets, offsets_row + 2 * place + 1, reference_y, height, live)
            logit = tl.load(logits + logits_row + place, mask=live, other=0.0).to(tl.float32)
            weight = tl.exp(logit - greatest) * factor
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    token, inside = _corner(column + dx, line + dy, width, height, first, live)
                    share = (share_x if dx else 1 - share_x) * (share_y if dy else 1 - share_y)
                    cell = token.to(tl.int64)[:, None] * (heads * DIM) + channel[None]
                    found = tl.load(base + cell, mask=inside[:, None] & real[None], other=0.0)
                    total += (weight * share)[:, None] * found.to(tl.float32)
    row = (batch * queries + query) * heads + head
    tl.store(output + row[:, None] * DIM + channel[None], total, mask=live[:, None] & real[None])


@triton.jit
def _backward(
    value, reference, offsets, logits, table, upstream, grad_value, grad_offsets, grad_logits,
    tokens, queries, heads, offsets_stride, logits_stride,
    DIM: tl.constexpr, PADDED: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, PADDED_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    live = query < queries
    channel = tl.arange(0, PADDED)
    real = channel < DIM
    row = (batch * queries + query) * heads + head
    base = (batch * tokens * heads + head) * DIM
    grad = tl.load(upstream + row[:, None] * DIM + channel[None], mask=live[:, None] & real[None], other=0.0)
    grad = grad.to(tl.float32)
    reference_x = tl.load(reference + 2 * query, mask=live, other=0.0)
    reference_y = tl.load(reference + 2 * query + 1, mask=live, other=0.0)
    offsets_row = (batch * queries + query) * offsets_stride + head * (2 * LEVELS * POINTS)
    logits_row = (batch * queries + query) * logits_stride + head * (LEVELS * POINTS)
    scores, factor, greatest = _softmax(logits, logits_row, live, LEVELS * POINTS, PADDED_ROW)
    place_in_row = tl.arange(0, PADDED_ROW)
    grad_weights = tl.zeros((BLOCK, PADDED_ROW), tl.float32)
    for level in tl.static_range(LEVELS):
        height, width = tl.load(table + 3 * level), tl.load(table + 3 * level + 1)
        first = tl.load(table + 3 * level + 2)
        for point in range(POINTS):
            place = level * POINTS + point
            column, share_x = _cells(offsets, offsets_row + 2 * place, reference_x, width, live)
            line, share_y = _cells(offsets, offsets_row + 2 * place + 1, reference_y, height, live)
            logit = tl.load(logits + logits_row + place, mask=live, other=0.0).to(tl.float32)
            weight = tl.exp(logit - greatest) * factor
            grad_weight = tl.zeros((BLOCK,), tl.float32)
            grad_x = tl.zeros((BLOCK,), tl.float32)
            grad_y = tl.zeros((BLOCK,), tl.float32)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    token, inside = _corner(column + dx, line + dy, width, height, first, live)
                    cell = base + token.to(tl.int64)[:, None] * (heads * DIM) + channel[None]
                    there = inside[:, None] & real[None]
                    found = tl.load(value + cell, mask=there, other=0.0).to(tl.float32)
                    # all three gradients follow from <corner, upstream>
                    product = tl.sum(found * grad, 1)
                    along_x, along_y = share_x if dx else 1 - share_x, share_y if dy else 1 - share_y
                    grad_weight += along_x * along_y * product
                    grad_x += (along_y if dx else -along_y) * product
                    grad_y += (along_x if dy else -along_x) * product
                    part = (weight * along_x * along_y)[:, None] * grad
                    tl.atomic_add(grad_value + cell, part, mask=there, sem="relaxed")
            grad_weights = tl.where(place_in_row[None] == place, grad_weight[:, None], grad_weights)
            at = row * (LEVELS * POINTS) + place
            tl.store(grad_offsets + 2 * at, weight * grad_x, mask=live)
            tl.store(grad_offsets + 2 * at + 1, weight * grad_y, mask=live)
    weights = scores * factor[:, None]
    grad_scores = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None])
    at = row[:, None] * (LEVELS * POINTS) + place_in_row[None]
    tl.store(grad_logits + at, grad_scores, mask=live[:, None] & (place_in_row < LEVELS * POINTS)[None])


def _launch(
    kernel: Any, value: torch.Tensor, offsets: torch.Tensor, logits: torch.Tensor, arguments: Sequence[torch.Tensor]
) -> None:
    batch, tokens, heads, dim = value.shape
    queries, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    padded = triton.next_power_of_2(dim)
    block = max(_BLOCK_VALUES // padded, 1)
    if batch and queries:
        # torch 2.10 wraps no kernel of the interpreter, which needs no wrapping
        launched = wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel
        launched[(triton.cdiv(queries, block), heads, batch)](
            *arguments, tokens, queries, heads, offsets.stride(1), logits.stride(1), DIM=dim, PADDED=padded,
            LEVELS=levels, POINTS=points, PADDED_ROW=triton.next_power_of_2(levels * points), BLOCK=block,
            num_warps=_WARPS,
        )  # fmt: skip


@triton_op("dearli_d2::deformable_attention", mutates_args={})
def _operator(
    value: torch.Tensor, table: torch.Tensor, reference: torch.Tensor, offsets: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    batch, _, heads, dim = value.shape
    output = torch.empty(batch, offsets.shape[1], heads * dim, dtype=value.dtype, device=value.device)
    _launch(_forward, value, offsets, logits, (value, reference, offsets, logits, table, output))
    return output


@triton_op("dearli_d2::deformable_attention_backward", mutates_args={})
def _operator_backward(
    value: torch.Tensor,
    table: torch.Tensor,
    reference: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_offsets, grad_logits = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (offsets, logits))
    outputs = grad_value, grad_offsets, grad_logits
    _launch(_backward, value, offsets, logits, (value, reference, offsets, logits, table, grad, *outputs))
    return outputs


def _keep_inputs(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    value, *others = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = _operator_backward(value, *others, grad.contiguous())
    return grad_value.to(value.dtype), None, None, grad_offsets, grad_logits


_operator.register_autograd(_gradients, setup_context=_keep_inputs)


def _in_rows(points: torch.Tensor) -> torch.Tensor:
    """(B, M, ...) with contiguous values of a query and one stride between queries. Copies only where that is not so."""
    regular = points.numel() and points[0, 0].is_contiguous() and points.stride(0) == points.shape[1] * points.stride(1)
    return points if regular else points.contiguous()


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
    value = value.float() if kind == torch.float64 else value
    table = _table(tuple(spatial_shapes), value.device)
    points = (_in_rows(x.float() if x.dtype == torch.float64 else x) for x in (offsets, logits))
    return _operator(value.contiguous(), table, reference_points.float().contiguous(), *points).to(kind)


def runs_on(device: torch.device) -> bool:
    """True if the kernels can be built and run on this GPU, see `kernel_runs`."""

    def trial() -> None:
        shapes = (1, 4, 1, 4), (1, 2), (1, 1, 1, 1, 1, 2), (1, 1, 1, 1)
        value, *points = (torch.ones(shape, device=device) for shape in shapes)
        deformable_attention(value, [(2, 2)], *points)

    instead = "The plain implementation is used; it is several times slower."
    return kernel_runs("deformable attention", device, trial, instead)
