"""Multi-scale deformable attention (Deformable DETR, Sec. 4.1) in plain PyTorch, for any device.

`MODEL.DEFORM_ATTN_IMPL` chooses one of `IMPLEMENTATIONS`; they agree to 1e-5 in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

Shapes = Sequence[tuple[int, int]]


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
        implementation: of the forward pass, a key of `IMPLEMENTATIONS`, or "auto": the fastest one for the device.

    Returns:
        (B, M, h * d) in fp32 (positions in half precision would be off by up to a cell).
    """
    if implementation == "auto":
        implementation = "gather" if value.device.type == "cpu" else "grid_sample"
    with torch.autocast(value.device.type, enabled=False):
        return _DeformableAttention.apply(
            value.float(), tuple(spatial_shapes), sampling_locations.float(), attention_weights.float(), implementation
        )


class _DeformableAttention(torch.autograd.Function):
    """Keeps only its inputs for the backward pass: the samples, L P times the output, are made again there, one level
    at a time and in one buffer."""

    @staticmethod
    def forward(ctx, value, spatial_shapes, locations, weights, implementation):
        ctx.spatial_shapes = spatial_shapes
        ctx.save_for_backward(value, locations, weights)
        return IMPLEMENTATIONS[implementation](value, spatial_shapes, locations, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        value, locations, weights = ctx.saved_tensors
        batch, tokens, heads, dim = value.shape
        queries = locations.shape[1]
        grad = grad_output.transpose(1, 2).reshape(batch * heads, dim, queries, 1)
        grad_value = value.new_empty(batch, heads, dim, tokens)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        start = 0
        for level, (maps, grid) in enumerate(_levels(value, ctx.spatial_shapes, locations)):
            buffer = F.grid_sample(maps, grid, align_corners=False)  # (B h, d, M, P)
            grad_weight = buffer.mul_(grad).sum(1)
            grad_weights[..., level, :] = grad_weight.view(batch, heads, queries, -1).transpose(1, 2)
            torch.mul(grad, _level_weights(weights, level), out=buffer)
            grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
                buffer, maps, grid, 0, 0, False, (True, True)
            )
            stop = start + math.prod(ctx.spatial_shapes[level])
            grad_value[..., start:stop] = grad_maps.view(batch, heads, dim, -1)
            grad_locations[..., level, :, :] = grad_grid.mul_(2).unflatten(0, (batch, heads)).transpose(1, 2)
            start = stop
        return grad_value.permute(0, 3, 1, 2), None, grad_locations, grad_weights, None


def _by_grid_sample(
    value: torch.Tensor, spatial_shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """One `grid_sample` per level, accumulated level by level (stacking the levels costs time and memory)."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    output = value.new_zeros(batch * heads, dim, queries)
    for level, (maps, grid) in enumerate(_levels(value, spatial_shapes, locations)):
        samples = F.grid_sample(maps, grid, align_corners=False)  # (B h, d, M, P)
        output += samples.mul_(_level_weights(weights, level)).sum(-1)
    return output.view(batch, heads * dim, queries).transpose(1, 2).contiguous()


def _levels(value: torch.Tensor, spatial_shapes: Shapes, locations: torch.Tensor):
    """Yields per level the maps (B h, d, H, W), a view, and the sampling grid (B h, M, P, 2) in -1..1."""
    channels_first = value.permute(0, 2, 3, 1).contiguous().flatten(0, 1)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        stop = start + height * width
        grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1)
        yield channels_first[..., start:stop].unflatten(2, (height, width)), (grid * 2).sub_(1)
        start = stop


def _level_weights(weights: torch.Tensor, level: int) -> torch.Tensor:
    """(B, M, h, L, P) to (B h, 1, M, P)."""
    return weights[..., level, :].transpose(1, 2).flatten(0, 1)[:, None]


def _by_gather(
    value: torch.Tensor, spatial_shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """All 4 L P corner rows of a query and head in one `embedding_bag`: the fastest on a CPU."""
    batch, tokens, heads, dim = value.shape
    queries = locations.shape[1]
    rows, factors = [], []
    first_row = torch.arange(batch, device=value.device).view(-1, 1, 1, 1) * tokens
    head = torch.arange(heads, device=value.device).view(1, 1, -1, 1)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        x = locations[..., level, :, 0] * width - 0.5  # (B, M, h, P)
        y = locations[..., level, :, 1] * height - 0.5
        left, top = x.floor(), y.floor()
        right_share, bottom_share = x - left, y - top
        left, top = left.long(), top.long()
        for dy, share_y in ((0, 1 - bottom_share), (1, bottom_share)):
            for dx, share_x in ((0, 1 - right_share), (1, right_share)):
                column, row = left + dx, top + dy
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                token = start + row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
                rows.append((first_row + token) * heads + head)
                factors.append(share_x * share_y * weights[..., level, :] * inside)
        start += height * width
    output = F.embedding_bag(
        torch.cat(rows, -1).flatten(0, 2),
        value.reshape(-1, dim),
        per_sample_weights=torch.cat(factors, -1).flatten(0, 2),
        mode="sum",
    )
    return output.view(batch, queries, heads * dim)


IMPLEMENTATIONS: dict[str, Callable[..., torch.Tensor]] = {"grid_sample": _by_grid_sample, "gather": _by_gather}


class MSDeformAttn(nn.Module):
    """Deformable attention with its projections; parameter names as published.

    Args:
        dim: channels C. heads: attention heads. levels, points: L and P.
        implementation: see `multi_scale_deformable_attention`.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int, implementation: str = "auto") -> None:
        super().__init__()
        self.heads, self.levels, self.points, self.implementation = heads, levels, points, implementation
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
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
        """Args:
            query: (B, M, C), with position. reference_points: (M, 2), x and y in 0..1.
            tokens: (B, N, C) flattened levels. spatial_shapes: (H_l, W_l) per level.

        Returns:
            (B, M, C).
        """
        batch, queries, _ = query.shape
        value = self.value_proj(tokens).view(batch, -1, self.heads, tokens.shape[-1] // self.heads)
        per_head = (batch, queries, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).float().view(*per_head, 2)  # pixels of the level
        weights = self.attention_weights(query).float().view(*per_head[:3], -1).softmax(-1).view(per_head)
        sizes = offsets.new_tensor([(w, h) for h, w in spatial_shapes])
        locations = reference_points[:, None, None, None] + offsets / sizes[:, None]
        attended = multi_scale_deformable_attention(value, spatial_shapes, locations, weights, self.implementation)
        return self.output_proj(attended.to(value.dtype))
