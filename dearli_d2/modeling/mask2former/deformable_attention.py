"""Multi-scale deformable attention (Deformable DETR, Sec. 4.1): by `grid_sample`, as sparse products on a CPU, or in Triton.

`MODEL.DEFORM_ATTN_IMPL` chooses one of `IMPLEMENTATIONS`. They agree to 1e-5 in fp32.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import ConfigError
from ..linear import Linear, computes_here, linear
from .deformable_attention_cpu import DeformableAttention as OnCpu

logger = logging.getLogger(__name__)

Shapes = Sequence[tuple[int, int]]


def multi_scale_deformable_attention(
    value: torch.Tensor,
    spatial_shapes: Shapes,
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
    implementation: str = "auto",
) -> torch.Tensor:
    """Weighted sum of bilinear samples of `value`, computed in fp32 (positions in half precision would be off by up to a cell).

    Args:
        value: (B, N, h, d) with N = sum of H_l * W_l, levels one after another, rows first.
        spatial_shapes: (H_l, W_l) of each of the L levels.
        reference_points: (M, 2), x and y in 0..1 of every level, without a gradient.
        offsets: (B, M, h, L, P, 2) from the reference points, x and y in cells of the level; samples outside read zeros.
        logits: (B, M, h, L * P); their softmax gives the weights.
        implementation: one of `IMPLEMENTATIONS`, or "auto": the fastest one for the device.

    Returns:
        (B, M, h * d), of the type of `value`.

    Raises:
        ConfigError: this device cannot run the implementation.
    """
    if torch.compiler.is_exporting():  # operators that every runtime of graphs knows
        implementation = "export"
    elif implementation in ("auto", "gather") and value.device.type == "cpu":
        implementation = "gather" if computes_here(value) else "grid_sample"
    elif implementation == "auto":
        implementation = "triton" if takes_triton(implementation, value.device) else "grid_sample"
    if implementation == "triton":
        try:
            from .deformable_attention_triton import deformable_attention
        except ImportError as error:
            raise ConfigError(
                "MODEL.DEFORM_ATTN_IMPL is triton but Triton is not installed; use auto or grid_sample"
            ) from error
        return deformable_attention(value, spatial_shapes, reference_points, offsets, logits)
    if implementation == "gather" and value.device.type != "cpu":
        raise ConfigError(
            f"MODEL.DEFORM_ATTN_IMPL is gather, which runs on CPUs only, not on {value.device}; use auto or grid_sample"
        )
    with torch.autocast(value.device.type, enabled=False):
        inputs = value.float(), tuple(spatial_shapes), reference_points, offsets.float(), logits.float()
        if implementation == "gather":
            output = OnCpu.apply(*inputs)
        else:
            sampled = _by_grid_sample if implementation == "export" else _DeformableAttention.apply
            output = sampled(inputs[0], inputs[1], *_locations_and_weights(*inputs[1:]))
    return output.to(value.dtype)


def _locations_and_weights(
    spatial_shapes: Shapes, reference_points: torch.Tensor, offsets: torch.Tensor, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Locations (B, M, h, L, P, 2), x and y in 0..1 of the level, and weights (B, M, h, L, P)."""
    sizes = _level_sizes(spatial_shapes, offsets)
    locations = reference_points[:, None, None, None] + offsets / sizes[:, None]
    return locations, logits.softmax(-1).view(offsets.shape[:-1])


@torch.compiler.assume_constant_result  # else its trial of the kernels would be part of a compiled graph
def takes_triton(implementation: str, device: torch.device) -> bool:
    """True if this value of `MODEL.DEFORM_ATTN_IMPL` selects the Triton kernels on this device."""
    return implementation == "triton" or (implementation == "auto" and _triton_runs_on(device))


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
    ) -> torch.Tensor:
        ctx.spatial_shapes = spatial_shapes
        ctx.save_for_backward(value, locations, weights)
        return _by_grid_sample(value, spatial_shapes, locations, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        batch, _, heads, dim = value.shape
        maps, grids, factors = _heads_first(value, locations, weights)
        grad = grad_output.unflatten(2, (heads, dim)).permute(0, 2, 3, 1).flatten(0, 1)[..., None].contiguous()
        grad_maps, grad_grids, grad_factors = (torch.zeros_like(x) for x in (maps, grids, factors))
        for level, tokens in _levels(ctx.spatial_shapes):
            feature = maps[..., tokens].unflatten(2, ctx.spatial_shapes[level])
            samples = F.grid_sample(feature, grids[:, level], align_corners=False)  # (B h, d, M, P)
            grad_factors[:, level] = samples.mul_(grad).sum(1)
            torch.mul(grad, factors[:, level].unsqueeze(1), out=samples)
            grad_feature, grad_grids[:, level] = torch.ops.aten.grid_sampler_2d_backward(
                samples, feature, grids[:, level], 0, 0, False, (True, True)
            )
            grad_maps[..., tokens] = grad_feature.flatten(2)
        return (
            grad_maps.unflatten(0, (batch, heads)).permute(0, 3, 1, 2),
            None,
            grad_grids.mul_(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2, 4, 5),
            grad_factors.unflatten(0, (batch, heads)).permute(0, 3, 1, 2, 4),
        )


def _by_grid_sample(
    value: torch.Tensor, spatial_shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`grid_sample` level by level, accumulated (stacking the levels costs time and memory)."""
    batch, _, heads, dim = value.shape
    maps, grids, factors = _heads_first(value, locations, weights)
    output = value.new_zeros(batch * heads, dim, locations.shape[1])
    for level, tokens in _levels(spatial_shapes):
        feature = maps[..., tokens].unflatten(2, spatial_shapes[level])
        samples = F.grid_sample(feature, grids[:, level], align_corners=False)  # (B h, d, M, P)
        output += samples.mul_(factors[:, level].unsqueeze(1)).sum(-1)
    return output.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def _heads_first(
    value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps (B h, d, N), grids (B h, L, M, P, 2) in -1..1, and weights (B h, L, M, P)."""
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).contiguous()
    grids = locations.permute(0, 2, 3, 1, 4, 5).flatten(0, 1).mul(2).sub_(1)
    return maps, grids, weights.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()


def _levels(spatial_shapes: Shapes) -> Iterator[tuple[int, slice]]:
    """(level, its tokens)."""
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        yield level, slice(start, start + height * width)
        start += height * width


IMPLEMENTATIONS = ("grid_sample", "gather", "triton")


def _level_sizes(spatial_shapes: Shapes, like: torch.Tensor) -> torch.Tensor:
    """(L, 2): width and height of each level, of the type of `like`."""
    if not torch.compiler.is_exporting():
        # not `new_tensor`, which on a GPU waits until all work before it is done
        return torch.tensor([(w, h) for h, w in spatial_shapes], dtype=like.dtype).to(like.device, non_blocking=True)
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
        value = self.value_proj(tokens).unflatten(2, (self.heads, -1))
        both = self.sampling_offsets, self.attention_weights  # in one product: they read the same query
        parts = [layer.out_features for layer in both]
        points = linear(query, torch.cat([layer.weight for layer in both]), torch.cat([layer.bias for layer in both]))
        offsets, logits = (x.unflatten(2, (self.heads, -1)) for x in points.split(parts, 2))
        offsets = offsets.unflatten(3, (self.levels, self.points, 2))
        attended = multi_scale_deformable_attention(
            value, spatial_shapes, reference_points, offsets, logits, self.implementation
        )
        return self.output_proj(attended)
