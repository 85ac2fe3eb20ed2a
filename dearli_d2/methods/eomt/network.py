"""The parts of EoMT beside the ViT, and the attention mask."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

from ...modeling.mask2former.transformer_decoder import DecoderOutput


class ScaleBlock(nn.Module):
    """Doubles both sides of a map: transposed convolution, GELU, depthwise 3x3 convolution, norm over the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = LayerNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, h, w) to (B, C, 2 h, 2 w)."""
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


def build_upscale(dim: int, patch: int) -> nn.Sequential:
    """Builds the way from a map of stride `patch` pixels to one of stride 4, of at least one `ScaleBlock`."""
    return nn.Sequential(*[ScaleBlock(dim) for _ in range(max(1, int(math.log2(patch)) - 2))])


def build_mask_head(dim: int) -> nn.Sequential:
    """Builds three linear layers with GELU between, from queries to mask embeddings."""
    return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))


@torch.no_grad()
def attention_mask(output: DecoderOutput, grid: tuple[int, int], prefix: int, probability: float) -> torch.Tensor:
    """Lets the queries attend to all queries, all prefix tokens, and the patches inside their own masks.

    Unlike in Mask2Former, a query whose mask is empty attends to no patch: the other tokens remain.

    Args:
        output: one prediction.
        grid: (h, w) patches.
        prefix: number of class and register tokens.
        probability: that a query is masked; the others may attend to all patches.

    Returns:
        (B, Q, Q + prefix + h w) bool, True = may attend.
    """
    embeddings = output.mask_embeddings[0]
    features = F.interpolate(output.mask_features, grid, mode="bilinear")  # resizing is linear in the features
    inside = torch.bmm(embeddings, features.flatten(2).to(embeddings.dtype)) > 0
    if probability < 1:
        inside |= (torch.rand(inside.shape[:2], device=inside.device) > probability)[..., None]
    always = inside.new_ones(*inside.shape[:2], inside.shape[1] + prefix)
    return torch.cat([always, inside], -1)
