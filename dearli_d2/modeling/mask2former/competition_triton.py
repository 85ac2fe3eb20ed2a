"""One Triton kernel that finds the winning query of each pixel.

It enlarges the masks as it reads them, so no full-size mask is written.

A program handles a block of pixels of one image and goes through its queries. Importing this module needs Triton.
`TRITON_INTERPRET=1`, set before the import, runs the kernel on a CPU.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from .kernel_trial import kernel_runs

_BLOCK, _WARPS = 512, 4


@triton.jit
def _kernel(
    masks, strength, place, counts, own, queries, height, width, columns, pixels, scale_y, scale_x,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    live = pixel < pixels
    # bilinear with align_corners False; pixels beyond the centres of the outer cells take the values of these cells
    y = tl.maximum(((pixel // columns).to(tl.float32) + 0.5) * scale_y - 0.5, 0.0)
    x = tl.maximum(((pixel % columns).to(tl.float32) + 0.5) * scale_x - 0.5, 0.0)
    top, left = tl.minimum(y.to(tl.int32), height - 1), tl.minimum(x.to(tl.int32), width - 1)
    bottom, right = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    share_y, share_x = y - top.to(tl.float32), x - left.to(tl.float32)
    first = image * queries
    best = tl.full((BLOCK,), -1.0, tl.float32)
    logit = tl.full((BLOCK,), -1.0, tl.float32)
    winner = tl.zeros((BLOCK,), tl.int32)
    for query in range(queries):
        power = tl.load(strength + first + query)
        if power >= 0:
            plane = masks + (first + query) * height * width
            above = (1 - share_x) * tl.load(plane + top * width + left, mask=live, other=0.0).to(tl.float32)
            above += share_x * tl.load(plane + top * width + right, mask=live, other=0.0).to(tl.float32)
            below = (1 - share_x) * tl.load(plane + bottom * width + left, mask=live, other=0.0).to(tl.float32)
            below += share_x * tl.load(plane + bottom * width + right, mask=live, other=0.0).to(tl.float32)
            value = (1 - share_y) * above + share_y * below
            tl.atomic_add(own + first + query, tl.sum((live & (value >= 0)).to(tl.int32), 0), sem="relaxed")
            chance = power * (1 / (1 + tl.exp(-value)))
            wins = chance > best  # of equal queries the first one wins
            best = tl.where(wins, chance, best)
            logit = tl.where(wins, value, logit)
            winner = tl.where(wins, query, winner)
    spot = 2 * winner + (logit >= 0).to(tl.int32)
    tl.store(place + image * pixels + pixel, spot, mask=live)
    spot = tl.where(live, spot, -1)
    for query in range(queries):
        if tl.load(strength + first + query) >= 0:
            at = counts + 2 * (first + query)
            tl.atomic_add(at, tl.sum((spot == 2 * query).to(tl.int32), 0), sem="relaxed")
            tl.atomic_add(at + 1, tl.sum((spot == 2 * query + 1).to(tl.int32), 0), sem="relaxed")


@triton_op("dearli_d2::compete", mutates_args={})
def _operator(
    masks: torch.Tensor, strength: torch.Tensor, full_height: int, full_width: int, rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, queries, height, width = masks.shape
    place = torch.empty(batch, rows * columns, dtype=torch.int64, device=masks.device)
    counts = torch.zeros(batch, 2 * queries, dtype=torch.int32, device=masks.device)
    own = torch.zeros(batch, queries, dtype=torch.int32, device=masks.device)
    # torch 2.10 wraps no kernel of the interpreter, which needs no wrapping
    kernel = wrap_triton(_kernel) if isinstance(_kernel, triton.JITFunction) else _kernel
    kernel[(triton.cdiv(rows * columns, _BLOCK), batch)](
        masks, strength, place, counts, own, queries, height, width, columns, rows * columns,
        height / full_height, width / full_width, BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return place, counts, own


def compete(
    mask_logits: torch.Tensor, strength: torch.Tensor, full: tuple[int, int], size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Finds the winner of each pixel: the query with the largest strength x sigmoid(mask), of equal ones the first.

    Args:
        mask_logits: (B, Q, h, w) of any floating-point type; sums are fp32.
        strength: (B, Q) fp32. A query with a negative strength does not compete.
        full: height and width to which the masks are enlarged, bilinear with align_corners False.
        size: height and width of the upper left part that is read out.

    Returns:
        A tensor (B, N) int64 for the N pixels of `size`: 2 q + 1 where the mask logit of the winner q is at least 0, else 2 q.
        The number of pixels with each of these values, (B, 2 Q) int32. The number of pixels at which the mask logit of a query
        is at least 0, (B, Q) int32, which is 0 for queries that do not compete.
    """
    return _operator(mask_logits.contiguous(), strength.float().contiguous(), *full, *size)


@cache
def runs_on(device: torch.device) -> bool:
    """True if the kernel can be built and run on this GPU, see `kernel_runs`."""

    def trial() -> None:
        logits = torch.ones(1, 1, 2, 2, device=device)
        place, _, _ = compete(logits, logits[0, :, 0, 0][None], (4, 4), (4, 4))
        if not (place == 1).all():
            raise RuntimeError("its result is wrong")

    return kernel_runs("the read-out", device, trial, "Full-size masks are written instead, which is slower.")
