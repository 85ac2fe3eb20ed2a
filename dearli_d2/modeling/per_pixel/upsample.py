"""Class scores from one map: two upsampling convolution blocks and a classifier."""

from __future__ import annotations

import torch
from torch import nn

from ..norms import group_norm


class UpsampleHead(nn.Module):
    """(B, in_dim, h, w) to (B, num_classes, 4 h, 4 w)."""

    def __init__(self, in_dim: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_block(in_dim, dim), _block(dim, dim))
        self.classifier = nn.Conv2d(dim, num_classes, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.classifier(self.blocks(features))


def _block(in_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(in_dim, dim, 3, padding=1, bias=False),
        group_norm(dim),
        nn.ReLU(),
    )
