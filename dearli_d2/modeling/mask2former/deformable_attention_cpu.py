"""Multi-scale deformable attention for CPUs: each query is a row of a sparse matrix, whose product with the value is the output.

A row has the four corners of the L P points of a query and head, with their shares of the weight. Libraries have the three
products that the forward and backward pass need: `embedding_bag` sums weighted rows, `sampled_addmm` computes inner products of
given pairs of rows, and SciPy's sparse product sums rows by column. Each level has a frame of zeros, so corners outside of it need no
special case.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse import csc_matrix

_BLOCK = 256  # queries whose corners stay in the cache
_FRAME = 2  # cells; a point more than one cell before the first is moved to -2, where it reads only zeros


@dataclass
class _Levels:
    """The levels with their frames, and the numbers that turn the cell of a point into a row of the value.

    Rows are pairs (token, head). A frame has two lines above and two below the level, and two columns at the left. The columns at
    the left of a line also serve as those at the right of the line before.
    """

    shapes: Sequence[tuple[int, int]]
    starts: list[int]
    tokens: int
    highest: torch.Tensor  # (L P 2,): width and height; a point there reads only zeros
    line: torch.Tensor  # (h L P,) fp32: rows from one line to the next
    first: torch.Tensor  # (h L P,) fp32: row of the cell (0, 0)

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]], heads: int, points: int) -> _Levels:
        starts, tokens = [], 0
        for height, width in shapes:
            starts.append(tokens)
            tokens += (height + 2 * _FRAME) * (width + _FRAME)
        highest = torch.tensor(shapes, dtype=torch.float32).flip(1)[:, None].expand(-1, points, -1).flatten()
        lines = [(width + _FRAME) * heads for _, width in shapes]
        cells = [start * heads + _FRAME * (line + heads) for start, line in zip(starts, lines, strict=True)]

        def per_point(values: list[int], head: torch.Tensor) -> torch.Tensor:
            rows = torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, points)
            return (rows + head[:, None, None]).flatten()

        head = torch.arange(heads)
        return cls(shapes, starts, tokens + _FRAME, highest, per_point(lines, 0 * head), per_point(cells, head))

    def framed(self, value: torch.Tensor) -> torch.Tensor:
        """(B, N, h, d) to (B, tokens, h, d) with zeros around the levels."""
        result = value.new_zeros(len(value), self.tokens, *value.shape[2:])
        for inside, level in zip(self._inside(result), self._split(value), strict=True):
            inside.copy_(level)
        return result

    def unframed(self, framed: torch.Tensor) -> torch.Tensor:
        """(B, tokens, h, d) to (B, N, h, d)."""
        result = framed.new_empty(len(framed), sum(h * w for h, w in self.shapes), *framed.shape[2:])
        for inside, level in zip(self._inside(framed), self._split(result), strict=True):
            level.copy_(inside)
        return result

    def _inside(self, framed: torch.Tensor) -> Iterator[torch.Tensor]:
        for (height, width), start in zip(self.shapes, self.starts, strict=True):
            lines, columns = height + 2 * _FRAME, width + _FRAME
            level = framed[:, start : start + lines * columns].unflatten(1, (lines, columns))
            yield level[:, _FRAME : _FRAME + height, _FRAME:]

    def _split(self, value: torch.Tensor) -> Iterator[torch.Tensor]:
        for part, shape in zip(value.split([h * w for h, w in self.shapes], 1), self.shapes, strict=True):
            yield part.unflatten(1, shape)


class DeformableAttention(torch.autograd.Function):
    """`multi_scale_deformable_attention` in fp32. Keeps only its inputs for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        shapes: Sequence[tuple[int, int]],
        reference_points: torch.Tensor,
        offsets: torch.Tensor,
        logits: torch.Tensor,
    ) -> torch.Tensor:
        """Arguments and result are those of `multi_scale_deformable_attention`."""
        ctx.shapes = shapes
        ctx.save_for_backward(value, reference_points, offsets, logits)
        batch, queries, heads, levels, points = offsets.shape[:5]
        corners = _Corners(shapes, reference_points, heads, points)
        rows = corners.levels.framed(value).flatten(1, 2)
        output = value.new_empty(batch, queries, heads, value.shape[3])
        index, factor = _room(min(queries, _BLOCK), heads, levels * points)
        for image in range(batch):
            for block in _blocks(queries):
                size = block.stop - block.start
                corners(block, offsets[image], logits[image], index[:size], factor[:size])
                output[image, block] = F.embedding_bag(
                    index[:size].flatten(0, 1).flatten(1),
                    rows[image],
                    per_sample_weights=factor[:size].flatten(0, 1).flatten(1),
                    mode="sum",
                ).unflatten(0, (size, heads))
        return output.flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the value, the offsets and the logits from that of the (B, M, h * d) output."""
        value, reference_points, offsets, logits = ctx.saved_tensors
        batch, queries, heads, levels, points = offsets.shape[:5]
        dim = value.shape[3]
        corners = _Corners(ctx.shapes, reference_points, heads, points)
        rows = corners.levels.framed(value).flatten(1, 2)
        upstream = grad_output.reshape(batch, queries, heads, dim)
        grad_rows = torch.empty_like(rows)
        grad_offsets = offsets.new_empty(batch, queries, heads, levels * points, 2)
        grad_logits = logits.new_empty(batch, queries, heads, levels * points)
        index, factor = _room(queries, heads, levels * points)
        products = torch.empty(min(queries, _BLOCK) * heads * 4 * levels * points)
        ends = torch.arange(queries * heads + 1, dtype=torch.int32).mul_(4 * levels * points)
        for image in range(batch):
            for block in _blocks(queries):
                weights, share = corners(block, offsets[image], logits[image], index[block], factor[block])
                grad = upstream[image, block].reshape(-1, dim)
                pairs = products[: index[block].numel()]
                _inner_products(ends[: len(grad) + 1], index[block].flatten(), grad, rows[image], pairs)
                _point_gradients(
                    pairs.view(*index[block].shape),
                    weights,
                    share,
                    grad_offsets[image, block],
                    grad_logits[image, block],
                )
            matrix = csc_matrix(
                (factor.flatten().numpy(), index.flatten().numpy(), ends.numpy()),
                shape=(rows.shape[1], queries * heads),
                copy=False,
            )
            grad_rows[image] = torch.from_numpy(matrix @ upstream[image].reshape(-1, dim).numpy())
        return (
            corners.levels.unframed(grad_rows.unflatten(1, (-1, heads))),
            None,
            None,
            grad_offsets.view_as(offsets),
            grad_logits.view_as(logits),
        )


class _Corners:
    """Finds the rows of the four corners of points, and their shares of the weights."""

    def __init__(
        self, shapes: Sequence[tuple[int, int]], reference_points: torch.Tensor, heads: int, points: int
    ) -> None:
        self.levels = _Levels.of(shapes, heads, points)
        self.heads = heads
        sizes = self.levels.highest
        # (M, 1, L P 2): x and y in cells
        self.base = (reference_points.repeat(1, len(sizes) // 2) * sizes - 0.5)[:, None]
        below = self.levels.line.int()
        self.steps: tuple[int | torch.Tensor, ...] = (0, heads, below, below + heads)

    def __call__(
        self, block: slice, offsets: torch.Tensor, logits: torch.Tensor, index: torch.Tensor, factor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the (m, h, 4, L P) `index` and `factor` of a block of queries. The corners are in the order of lines.

        Returns:
            The (m, h, L P) weights, and the (m, h, L P, 2) share of the right and of the lower cells.
        """
        size = block.stop - block.start
        share = torch.add(offsets[block].flatten(2), self.base[block])
        # these two replace NaN by a number, so no point of a diverged model reads outside of the value
        share = torch.fmin(
            torch.fmax(share, share.new_tensor(-float(_FRAME)), out=share), self.levels.highest, out=share
        )
        cell = share.floor()
        share = share.sub_(cell).unflatten(2, (-1, 2))
        x, y = cell.view(size, -1, 2).unbind(-1)
        row = torch.addcmul(self.levels.first, y, self.levels.line).add_(x, alpha=self.heads).int()  # exact below 2^24
        for corner, step in enumerate(self.steps):
            index[:, :, corner] = (row + step).unflatten(1, (self.heads, -1))
        weights = _softmax(logits[block])
        share_x, share_y = share.unbind(-1)
        lower = weights * share_y
        upper = weights - lower
        for line, part in ((0, upper), (2, lower)):
            right = part * share_x
            factor[:, :, line + 1] = right
            factor[:, :, line] = part.sub_(right)
        return weights, share


def _point_gradients(
    products: torch.Tensor,
    weights: torch.Tensor,
    share: torch.Tensor,
    grad_offsets: torch.Tensor,
    grad_logits: torch.Tensor,
) -> None:
    """Writes the gradients of points from the (m, h, 4, L P) inner products of each corner with the upstream gradient."""
    (top_left, top_right, low_left, low_right), (x, y) = products.unbind(2), share.unbind(-1)
    along_top, along_low = top_right - top_left, low_right - low_left
    top, low = torch.addcmul(top_left, along_top, x), torch.addcmul(low_left, along_low, x)
    grad_offsets[..., 0] = torch.addcmul(along_top, along_low.sub_(along_top), y).mul_(weights)
    low -= top
    grad_offsets[..., 1] = low * weights
    grad_weights = torch.addcmul(top, low, y).mul_(weights)
    torch.addcmul(grad_weights, weights, grad_weights.sum(-1, keepdim=True), value=-1, out=grad_logits)


def _inner_products(
    ends: torch.Tensor, index: torch.Tensor, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor
) -> None:
    """Writes <left[i], right[j]> for each row i and its columns j in `index`. `ends` says where the columns of a row end."""
    out.zero_()
    pairs = _sparse(ends, index, out, (len(left), len(right)))
    torch.sparse.sampled_addmm(pairs, left, right.T, beta=0, out=pairs)


def _sparse(ends: torch.Tensor, index: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A CSR matrix that shares its memory with the arguments."""
    _accept_beta_state()
    return torch.sparse_csr_tensor(ends, index, values, size=shape, check_invariants=False)


@cache
def _accept_beta_state() -> None:
    """Makes and hides the one warning of PyTorch that sparse matrices are in beta state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], size=(1, 1))


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension. PyTorch's own is five times slower for rows this short."""
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(-1, keepdim=True))


def _room(queries: int, heads: int, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = queries, heads, 4, points
    return torch.empty(shape, dtype=torch.int32), torch.empty(shape)


def _blocks(queries: int) -> Iterator[slice]:
    for first in range(0, queries, _BLOCK):
        yield slice(first, min(first + _BLOCK, queries))
