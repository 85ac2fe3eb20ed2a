"""Mask2Former's pixel decoder: deformable attention over the coarse levels, one FPN step to the mask features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..linear import Linear, feed_forward
from ..norms import group_norm
from .deformable_attention import MSDeformAttn, Shapes
from .position import sine_position

# (index of the layer, (B, N, C) tokens, shapes of the levels that make up the N) to (B, N, C) tokens
Refinement = Callable[[int, torch.Tensor, Shapes], torch.Tensor]


@dataclass
class PixelFeatures:
    """The features that the transformer decoder attends to.

    Args:
        multi_scale: (B, C, H_l, W_l) per level, coarse to fine.
        mask_features: (B, C_mask, H/4, W/4).
    """

    multi_scale: list[torch.Tensor]
    mask_features: torch.Tensor


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, both post-norm, no dropout."""

    def __init__(
        self, dim: int, feedforward_dim: int, heads: int, levels: int, points: int, implementation: str
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, heads, levels, points, implementation)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, feedforward_dim)
        self.linear2 = Linear(feedforward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, tokens: torch.Tensor, position: torch.Tensor, reference_points: torch.Tensor, spatial_shapes: Shapes
    ) -> torch.Tensor:
        """(B, N, C) tokens with their (N, C) position to (B, N, C)."""
        tokens = self.norm1(tokens + self.self_attn(tokens + position, reference_points, tokens, spatial_shapes))
        return self.norm2(tokens + feed_forward(tokens, self.linear1, self.linear2))


class _Encoder(nn.Module):
    """Holds the layers under the published name `transformer.encoder.layers`."""

    def __init__(self, layers: list[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class _Transformer(nn.Module):
    def __init__(self, layers: list[EncoderLayer], levels: int, dim: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        nn.init.normal_(self.level_embed)
        self.encoder = _Encoder(layers)


class _ConvNorm(nn.Conv2d):
    """Bias-free convolution with GroupNorm, under the published names `weight`, `norm.*`."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = group_norm(channels)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


def _zero_bias(layer: nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class MSDeformAttnPixelDecoder(nn.Module):
    """Deformable attention over three levels of the backbone, and one FPN step to the mask features (Mask2Former, Sec. 3.2.2).

    Args:
        in_channels: channels of each backbone feature, fine to coarse, e.g. {"res2": 256, ..., "res5": 2048}. The first
            is joined by the FPN step, the others are the levels of the deformable encoder.
        dim: channels C of the encoder.
        mask_dim: channels of the mask features.
        feedforward_dim, heads, points, layers: of the encoder.
        implementation: of deformable attention.
    """

    def __init__(
        self,
        in_channels: dict[str, int],
        dim: int = 256,
        mask_dim: int = 256,
        feedforward_dim: int = 1024,
        heads: int = 8,
        points: int = 4,
        layers: int = 6,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        self.fine, *levels = in_channels
        self.levels = levels[::-1]  # coarse to fine
        self.dim = dim
        projections = [nn.Conv2d(in_channels[name], dim, 1) for name in self.levels]
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight)
            _zero_bias(projection)
        self.input_proj = nn.ModuleList(nn.Sequential(layer, group_norm(dim)) for layer in projections)
        self.transformer = _Transformer(
            [EncoderLayer(dim, feedforward_dim, heads, len(levels), points, implementation) for _ in range(layers)],
            len(levels),
            dim,
        )
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        _zero_bias(self.mask_features)
        self.adapter_1 = _ConvNorm(in_channels[self.fine], dim, 1)
        self.layer_1 = _ConvNorm(dim, dim, 3)

    def forward(self, features: dict[str, torch.Tensor], refine: Refinement | None = None) -> PixelFeatures:
        """Features of the backbone to mask features and refined levels.

        Args:
            features: name to (B, C_in, H, W) as in `in_channels`.
            refine: called after each layer of the encoder.
        """
        maps = [proj(features[name]) for name, proj in zip(self.levels, self.input_proj, strict=True)]
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        position = torch.cat(
            [
                sine_position(h, w, self.dim, maps[0].device).flatten(1).T + embedding
                for (h, w), embedding in zip(shapes, self.transformer.level_embed, strict=True)
            ]
        )
        reference_points = torch.cat([_cell_centres(h, w, maps[0].device) for h, w in shapes])
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        for index, layer in enumerate(self.transformer.encoder.layers):
            tokens = layer(tokens, position, reference_points, shapes)
            if refine is not None:
                tokens = refine(index, tokens, shapes)
        maps = [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(tokens.split([h * w for h, w in shapes], 1), shapes, strict=True)
        ]
        lateral = self.adapter_1(features[self.fine])
        top = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        fused = F.relu_(self.layer_1(lateral + top))
        return PixelFeatures(maps, self.mask_features(fused))


def _cell_centres(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(H * W, 2): x and y of the cell centres in 0..1."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)
