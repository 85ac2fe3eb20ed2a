"""Feature pyramids from maps of one stride, for plain ViTs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from ..norms import group_norm

LEVELS = ("res2", "res3", "res4", "res5")  # names of a backbone's maps, from fine to coarse


class SimpleFeaturePyramid(nn.Module):
    """Makes res2..res5 of one map (ViTDet, Sec. 3).

    Transposed convolutions, identity and max-pooling give the strides patch/4, patch/2, patch and 2 patch. A 1x1 convolution
    with GroupNorm follows each.

    Args:
        in_dim: channels of the tokens.
        dim: channels of every level.
        patch: stride of the tokens in pixels.
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
                name: nn.Sequential(resize, nn.Conv2d(channels, dim, 1, bias=False), group_norm(dim))
                for name, (resize, channels) in stages.items()
            }
        )
        self._shapes = _shapes([dim] * 4, patch)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return self._shapes

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, in_dim, h, w) to four maps."""
        return {name: stage(tokens) for name, stage in self.stages.items()}


class Reassemble(nn.Module):
    """Makes res2..res5 of the maps of four blocks at several depths (DPT, Sec. 3.1).

    A 1x1 convolution changes the channels of each map. Then transposed convolutions of stride 4 and 2, identity and a
    convolution of stride 2 change its size.

    Args:
        in_dim: channels of the tokens.
        channels: of the four levels.
        patch: stride of the tokens in pixels.
    """

    def __init__(self, in_dim: int, channels: Sequence[int], patch: int) -> None:
        super().__init__()
        self._shapes = _shapes(channels, patch)
        a, b, _, d = channels
        resize = (
            nn.ConvTranspose2d(a, a, 4, stride=4),
            nn.ConvTranspose2d(b, b, 2, stride=2),
            nn.Identity(),
            nn.Conv2d(d, d, 3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(in_dim, n, 1), layer) for n, layer in zip(channels, resize, strict=True)]
        )

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return self._shapes

    def forward(self, maps: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Four (B, in_dim, h, w), from early to late, to four levels of h * 4, h * 2, h and h / 2, rounded up."""
        return {name: stage(x) for name, stage, x in zip(self._shapes, self.stages, maps, strict=True)}


def _shapes(channels: Sequence[int], patch: int) -> dict[str, ShapeSpec]:
    strides = patch // 4, patch // 2, patch, patch * 2
    return {
        f"res{i + 2}": ShapeSpec(channels=c, stride=s) for i, (c, s) in enumerate(zip(channels, strides, strict=True))
    }
