"""A feature pyramid from one map of one stride, for plain ViTs (ViTDet, Sec. 3)."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from ..pixel_decoder import group_count


class SimpleFeaturePyramid(nn.Module):
    """res2..res5 at patch/4, patch/2, patch and 2 patch by transposed convolutions, identity and max-pooling, each
    followed by a 1x1 convolution with GroupNorm.

    Args:
        in_dim: channels of the tokens. dim: channels of every level. patch: stride of the tokens in pixels.
    """

    def __init__(self, in_dim: int, dim: int, patch: int) -> None:
        super().__init__()
        up = lambda a, b: nn.ConvTranspose2d(a, b, 2, stride=2)  # noqa: E731
        half, quarter = in_dim // 2, in_dim // 4
        stages = {
            "res2": (nn.Sequential(up(in_dim, half), nn.GroupNorm(1, half), nn.GELU(), up(half, quarter)), quarter),
            "res3": (up(in_dim, half), half),
            "res4": (nn.Identity(), in_dim),
            "res5": (nn.MaxPool2d(2), in_dim),
        }
        self.stages = nn.ModuleDict(
            {
                name: nn.Sequential(
                    resize, nn.Conv2d(channels, dim, 1, bias=False), nn.GroupNorm(group_count(dim), dim)
                )
                for name, (resize, channels) in stages.items()
            }
        )
        self._shapes = {
            name: ShapeSpec(channels=dim, stride=stride)
            for name, stride in zip(stages, (patch // 4, patch // 2, patch, patch * 2), strict=True)
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, in_dim, h, w) to four maps."""
        return {name: stage(tokens) for name, stage in self.stages.items()}
