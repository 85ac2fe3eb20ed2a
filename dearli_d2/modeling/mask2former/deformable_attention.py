"""Multi-scale deformable attention (Deformable DETR, Sec. 4.1): in plain PyTorch for any device, in Triton for GPUs.

`MODEL.DEFORM_ATTN_IMPL` chooses one of `IMPLEMENTATIONS`. They agree to 1e-5 in fp32.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import ConfigError
from ..linear import Linear

logger = logging.getLogger(__name__)

Shapes = Sequence[tuple[int, int]]

_CPU_BLOCK = 1024  # queries


def multi_scale_deformable_attention(
    value: torch.Tensor,
    spatial_shapes: Shapes,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    implementation: str = "auto",
) -> torch.Tensor:
    """Weighted sum of bilinear samples of `value`.

    Args:
        value: (B, N, h, d) with N = sum of H_l * W_l, levels one after another, rows first.
        spatial_shapes: (H_l, W_l) of each of the L levels.
        sampling_locations: (B, M, h, L, P, 2), x and y in 0..1 of the level; samples outside read zeros.
        attention_weights: (B, M, h, L, P), sum to 1 over (L, P) in the usual use.
        implementation: one of `IMPLEMENTATIONS`, or "auto": the fastest one for the device and grad mode.

    Returns:
        (B, M, h * d) in fp32 (positions in half precision would be off by up to a cell).
    """
    if torch.compiler.is_exporting():  # operators that every runtime of graphs knows
        return _by_grid_sample(value.float(), spatial_shapes, sampling_locations.float(), attention_weights.float())
    if implementation == "auto":
        forward_only = not (torch.is_grad_enabled() and value.requires_grad)
        if value.device.type == "cpu":
            implementation = "gather" if forward_only else "grid_sample"
        else:
            implementation = "triton" if _triton_runs_on(value.device) else "grid_sample"
    if implementation == "triton":
        try:
            from .deformable_attention_triton import deformable_attention
        except ImportError as error:
            raise ConfigError(
                "MODEL.DEFORM_ATTN_IMPL is triton but Triton is not installed; use auto or grid_sample"
            ) from error
        return deformable_attention(value, spatial_shapes, sampling_locations, attention_weights)
    with torch.autocast(value.device.type, enabled=False):
        return _DeformableAttention.apply(
            value.float(), tuple(spatial_shapes), sampling_locations.float(), attention_weights.float(), implementation
        )


@cache
def _triton_runs_on(device: torch.device) -> bool:
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    try:
        from .deformable_attention_triton import runs_on
    except ImportError:  # Triton is optional
        logger.warning("Triton is not installed: deformable attention is several times slower without it.")
        return False
    return runs_on(device)


class _DeformableAttention(torch.autograd.Function):
    """Keeps only its inputs for the backward pass.

    The samples are L P times as large as the output. The backward pass makes them again, a block at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        spatial_shapes: Shapes,
        locations: torch.Tensor,
        weights: torch.Tensor,
        implementation: str,
    ) -> torch.Tensor:
        ctx.spatial_shapes = spatial_shapes
        ctx.save_for_backward(value, locations, weights)
        return _PLAIN[implementation](value, spatial_shapes, locations, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        batch, _, heads, dim = value.shape
        maps, grids, factors = _heads_first(value, locations, weights)
        grad = grad_output.unflatten(2, (heads, dim)).permute(0, 2, 3, 1).flatten(0, 1)[..., None].contiguous()
        grad_maps, grad_grids, grad_factors = (torch.zeros_like(x) for x in (maps, grids, factors))
        for level, tokens, block in _blocks(ctx.spatial_shapes, locations):
            feature = maps[..., tokens].unflatten(2, ctx.spatial_shapes[level])
            grid, upstream = grids[:, level, block], grad[:, :, block]
            samples = F.grid_sample(feature, grid, align_corners=False)  # (B h, d, m, P)
            grad_factors[:, level, block] = samples.mul_(upstream).sum(1)
            torch.mul(upstream, factors[:, level, block].unsqueeze(1), out=samples)
            grad_feature, grad_grids[:, level, block] = torch.ops.aten.grid_sampler_2d_backward(
                samples, feature, grid, 0, 0, False, (True, True)
            )
            grad_maps[..., tokens] += grad_feature.flatten(2)
        return (
            grad_maps.unflatten(0, (batch, heads)).permute(0, 3, 1, 2),
            None,
            grad_grids.mul_(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2, 4, 5),
            grad_factors.unflatten(0, (batch, heads)).permute(0, 3, 1, 2, 4),
            None,
        )


def _by_grid_sample(
    value: torch.Tensor, spatial_shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`grid_sample` level by level, accumulated (stacking the levels costs time and memory)."""
    batch, _, heads, dim = value.shape
    maps, grids, factors = _heads_first(value, locations, weights)
    output = value.new_zeros(batch * heads, dim, locations.shape[1])
    for level, tokens, block in _blocks(spatial_shapes, locations):
        feature = maps[..., tokens].unflatten(2, spatial_shapes[level])
        samples = F.grid_sample(feature, grids[:, level, block], align_corners=False)  # (B h, d, m, P)
        output[..., block] += samples.mul_(factors[:, level, block].unsqueeze(1)).sum(-1)
    return output.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def _heads_first(
    value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps (B h, d, N), grids (B h, L, M, P, 2) in -1..1, and weights (B h, L, M, P)."""
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).contiguous()
    grids = locations.permute(0, 2, 3, 1, 4, 5).flatten(0, 1).mul(2).sub_(1)
    return maps, grids, weights.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()


def _blocks(spatial_shapes: Shapes, locations: torch.Tensor) -> Iterator[tuple[int, slice, slice]]:
    """(level, its tokens, queries): on a CPU queries come in blocks whose samples stay in the cache."""
    queries = locations.shape[1]
    blocks = [slice(None)]
    if locations.device.type == "cpu" and not torch.compiler.is_exporting():
        size = -(-queries // max(round(queries / _CPU_BLOCK), 1))  # equal blocks
        blocks = [slice(first, first + size) for first in range(0, queries, size)]
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        tokens = slice(start, start + height * width)
        yield from ((level, tokens, block) for block in blocks)
        start += height * width


def _by_gather(
    value: torch.Tensor, spatial_shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """All 4 L P corner rows of a query and head in one `embedding_bag`: the fastest forward pass on a CPU."""
    batch, tokens, heads, dim = value.shape
    queries = locations.shape[1]
    sizes = locations.new_tensor([(w, h) for h, w in spatial_shapes])[:, None]  # (L, 1, 2)
    starts = locations.new_tensor([sum(h * w for h, w in spatial_shapes[:i]) for i in range(len(spatial_shapes))])
    position = (locations * sizes).sub_(0.5)  # x and y in cells
    low = position.floor()
    share = position - low
    inside_low, inside_high = (low >= 0) & (low < sizes), (low >= -1) & (low < sizes - 1)
    shares = (torch.where(inside_low, 1 - share, 0), torch.where(inside_high, share, 0))
    cells = (low.clamp(min=0).minimum(sizes - 1), (low + 1).clamp_(min=0).minimum(sizes - 1))
    rows = [cell[..., 1] * sizes[..., 0] + starts[:, None] for cell in cells]  # fp32 is exact up to 2^24 tokens
    corners = [(rows[y] + cells[x][..., 0], shares[y][..., 1] * shares[x][..., 0]) for y in (0, 1) for x in (0, 1)]
    token = torch.stack([index for index, _ in corners], -1).to(torch.int32)  # (B, M, h, L, P, 4)
    factor = torch.stack([weight for _, weight in corners], -1) * weights[..., None]
    first = torch.arange(batch, dtype=torch.int32, device=value.device).view(-1, 1, 1) * tokens * heads
    first = first + torch.arange(heads, dtype=torch.int32, device=value.device)
    index = token.mul_(heads).add_(first[..., None, None, None])
    output = F.embedding_bag(
        index.flatten(0, 2).flatten(1),
        value.reshape(-1, dim),
        per_sample_weights=factor.flatten(0, 2).flatten(1),
        mode="sum",
    )
    return output.view(batch, queries, heads * dim)


_PLAIN: dict[str, Callable[..., torch.Tensor]] = {"grid_sample": _by_grid_sample, "gather": _by_gather}
IMPLEMENTATIONS = (*_PLAIN, "triton")


def _level_sizes(spatial_shapes: Shapes, like: torch.Tensor) -> torch.Tensor:
    """(L, 2): width and height of each level, of the type of `like`."""
    if not torch.compiler.is_exporting():
        return like.new_tensor([(w, h) for h, w in spatial_shapes])
    one = like.new_ones(())  # `new_tensor` would fix sizes that are symbols
    return torch.stack([torch.stack([one * w, one * h]) for h, w in spatial_shapes])


class MSDeformAttn(nn.Module):
    """Deformable attention with its projections; parameter names as published.

    Args:
        dim: channels C.
        heads: number of attention heads.
        levels, points: L and P.
        implementation: see `multi_scale_deformable_attention`.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int, implementation: str = "auto") -> None:
        super().__init__()
        self.heads, self.levels, self.points, self.implementation = heads, levels, points, implementation
        self.sampling_offsets = Linear(dim, heads * levels * points * 2)
        self.attention_weights = Linear(dim, heads * levels * points)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Heads start looking in different directions, point p at distance p + 1 (Deformable DETR, App. A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: torch.Tensor, reference_points: torch.Tensor, tokens: torch.Tensor, spatial_shapes: Shapes
    ) -> torch.Tensor:
        """Attends from each query to a few points of each level, around its reference point.

        Args:
            query: (B, M, C), with position.
            reference_points: (M, 2), x and y in 0..1.
            tokens: (B, N, C) flattened levels.
            spatial_shapes: (H_l, W_l) per level.

        Returns:
            (B, M, C).
        """
        batch, queries, _ = query.shape
        value = self.value_proj(tokens).view(batch, -1, self.heads, tokens.shape[-1] // self.heads)
        per_head = (batch, queries, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).float().view(*per_head, 2)  # pixels of the level
        weights = self.attention_weights(query).float().view(*per_head[:3], -1).softmax(-1).view(per_head)
        sizes = _level_sizes(spatial_shapes, offsets)
        locations = reference_points[:, None, None, None] + offsets / sizes[:, None]
        attended = multi_scale_deformable_attention(value, spatial_shapes, locations, weights, self.implementation)
        return self.output_proj(attended.to(value.dtype))
