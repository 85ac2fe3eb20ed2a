"""Fusion of a feature pyramid from coarse to fine by residual convolution blocks, and a classifier (Ranftl et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone.pyramid import LEVELS
from ..norms import normalised_convolution


class DPTHead(nn.Module):
    """`res2`..`res5`, with any strides, to (B, num_classes, ...) at twice the resolution of `res2`.

    Args:
        in_channels: channels of each level.
        dim: channels of the fused maps.
        num_classes: of the classifier.
        norm: "NONE" is the head of UniMatch V2: nothing is normalised, maps are resized with aligned corners, and a 3x3
            convolution stands before the classifier, at its resolution. With "GN", "BN" (over all ranks where there are
            several) or "BN_CPU", the same for ranks without a GPU, the residual blocks are normalised, maps are resized by the
            centres of their cells, and there is no such convolution.
    """

    def __init__(self, in_channels: Mapping[str, int], dim: int, num_classes: int, norm: str = "NONE") -> None:
        super().__init__()
        self.dim, self.align_corners = dim, norm == "NONE"
        self.project = nn.ModuleDict(
            {name: nn.Conv2d(in_channels[name], dim, 3, padding=1, bias=False) for name in LEVELS}
        )
        self.refine = nn.ModuleDict({name: _Residual(dim, norm) for name in LEVELS[:-1]})
        self.fuse = nn.ModuleDict({name: _Residual(dim, norm) for name in LEVELS})
        self.out = nn.ModuleDict({name: nn.Conv2d(dim, dim, 1) for name in LEVELS})
        self.last = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU()) if norm == "NONE" else None
        self.classifier = nn.Conv2d(dim, num_classes, 1)

    # The published order interpolates before the 1x1 convolutions of `out` and, where no other stands between, of the
    # classifier. The two commute, and this way the convolutions see, and keep for their gradient, a quarter of the pixels.

    def features(self, pyramid: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, dim, ...) the fused map, of the size of `res2`."""
        coarsest, *others = reversed(LEVELS)
        fused: torch.Tensor = self.out[coarsest](self.fuse[coarsest](self.project[coarsest](pyramid[coarsest])))
        for name in others:
            level = self.project[name](pyramid[name])
            level = self._resize(fused, level.shape[2:]) + self.refine[name](level)
            fused = self.out[name](self.fuse[name](level))
        return fused

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """(B, dim, h, w) to (B, num_classes, 2 h, 2 w) logits."""
        height, width = features.shape[2:]
        size = (2 * height, 2 * width)
        if self.last is None:
            return self._resize(self.classifier(features), size)
        return self.classifier(self.last(self._resize(features, size)))

    def _resize(self, maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=self.align_corners)

    def forward(self, pyramid: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits from the levels, (B, C_l, h_l, w_l) each by name."""
        return self.classify(self.features(pyramid))


class _Residual(nn.Module):
    """Two pre-activated 3x3 convolutions beside the identity."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        layers = [part for _ in range(2) for part in (nn.ReLU(), *normalised_convolution(dim, norm))]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)
