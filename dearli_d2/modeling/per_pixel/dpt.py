"""Fusion of a feature pyramid from coarse to fine by residual convolution blocks, and a classifier (Ranftl et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from detectron2.layers import NaiveSyncBatchNorm
from torch import nn

from ..inference import resize_logits
from ..pixel_decoder import group_count

LEVELS = ("res2", "res3", "res4", "res5")


class DPTHead(nn.Module):
    """`res2`..`res5`, whatever their strides, to (B, num_classes, ...) at twice the resolution of `res2`.

    Args:
        in_channels: of each level. dim: of the fused maps. norm: "GN", "BN" (over all ranks where there are several) or
            "BN_CPU", the same for ranks without a GPU.
    """

    def __init__(self, in_channels: Mapping[str, int], dim: int, num_classes: int, norm: str = "GN") -> None:
        super().__init__()
        self.dim = dim
        self.project = nn.ModuleDict(
            {name: nn.Conv2d(in_channels[name], dim, 3, padding=1, bias=False) for name in LEVELS}
        )
        self.refine = nn.ModuleDict({name: _Residual(dim, norm) for name in LEVELS[:-1]})
        self.fuse = nn.ModuleDict({name: _Residual(dim, norm) for name in LEVELS})
        self.out = nn.ModuleDict({name: nn.Conv2d(dim, dim, 1) for name in LEVELS})
        self.classifier = nn.Conv2d(dim, num_classes, 1)

    # The published order interpolates before the 1x1 convolutions of `out` and of the classifier. The two commute, and this way
    # the convolutions see, and keep for their gradient, a quarter of the pixels.

    def features(self, pyramid: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, dim, ...) the fused map, of the size of `res2`."""
        fused = None
        for name in reversed(LEVELS):
            level = self.project[name](pyramid[name])
            if fused is not None:
                level = resize_logits(fused, level.shape[2:]) + self.refine[name](level)
            fused = self.out[name](self.fuse[name](level))
        return fused

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """(B, dim, h, w) to (B, num_classes, 2 h, 2 w) logits."""
        height, width = features.shape[2:]
        return resize_logits(self.classifier(features), (2 * height, 2 * width))

    def forward(self, pyramid: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.classify(self.features(pyramid))


# torch's SyncBatchNorm is for GPUs alone; detectron2's has no fp32 statistics under bf16 autocast
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "GN": lambda dim: nn.GroupNorm(group_count(dim), dim),
    "BN": nn.SyncBatchNorm,
    "BN_CPU": NaiveSyncBatchNorm,
}


class _Residual(nn.Module):
    """Two pre-activated 3x3 convolutions beside the identity."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        layers = [
            part
            for _ in range(2)
            for part in (nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1, bias=False), _NORMS[norm](dim))
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)
