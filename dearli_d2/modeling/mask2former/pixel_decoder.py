"""Mask2Former's pixel decoder: deformable attention over the coarse levels, one FPN step to the mask features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..linear import Linear, feed_forward
from ..norms import group_norm
from ..precision import autocast_type
from .deformable_attention import MSDeformAttn, Shapes, takes_triton
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


@dataclass
class Tokens:
    """Tokens of the encoder, in the forms that its layers read.

    Args:
        full: (B, N, C).
        value: the same tokens, in the autocast type if they are cast already.
        query: the tokens plus their position; None if no layer reads it.
    """

    full: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor | None

    @classmethod
    def at(cls, full: torch.Tensor, position: torch.Tensor | None) -> Tokens:
        """Tokens from (B, N, C) features and their (N, C) position."""
        return cls(full, full, None if position is None else full + position)


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
        self, tokens: Tokens, position: torch.Tensor | None, reference_points: torch.Tensor, spatial_shapes: Shapes
    ) -> Tokens:
        """Tokens with a query to tokens, which have a query if the (N, C) `position` is given."""
        attended = self.self_attn(tokens.query, reference_points, tokens.value, spatial_shapes)
        tokens = self._normed(self.norm1, tokens.full, attended, None)
        return self._normed(self.norm2, tokens.full, feed_forward(tokens.value, self.linear1, self.linear2), position)

    def _normed(
        self, norm: nn.LayerNorm, tokens: torch.Tensor, branch: torch.Tensor, position: torch.Tensor | None
    ) -> Tokens:
        dtype = autocast_type(tokens.device)
        fused = takes_triton(self.self_attn.implementation, tokens.device) and not torch.compiler.is_compiling()
        if dtype is None or not fused or tokens.dtype != torch.float32:  # a compiled graph fuses the sums anyway
            return Tokens.at(norm(tokens + branch), position)
        from .residual_norm_triton import residual_norm, runs_on  # Triton is optional

        if not runs_on(tokens.device):
            return Tokens.at(norm(tokens + branch), position)
        return Tokens(*residual_norm(tokens, branch, norm, position, dtype))


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
        tokens = Tokens.at(torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1), position)
        layers = self.transformer.encoder.layers
        for index, layer in enumerate(layers):
            followed = refine is None and index + 1 < len(layers)
            tokens = layer(tokens, position if followed else None, reference_points, shapes)
            if refine is not None:
                tokens = Tokens.at(refine(index, tokens.full, shapes), position)
        maps = [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(tokens.full.split([h * w for h, w in shapes], 1), shapes, strict=True)
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
