"""Attention that SemiDAViL compares with DLG (Fig. 5): correlations of pixels with the names of the classes.

The paper names both and cites where they come from. What is decided here stands in docs/semidavil.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_HEADS = 4
_WINDOW = 7  # pixels, as in SemiVL


class WordPixelCorrelation(nn.Module):
    """WPCT: the correlation of each pixel with each word, as in LSeg (Li et al. 2022), is added to the features.

    The projection to C starts at zero, so that the module starts as the identity.

    Args:
        vision_dim: channels C of the dense features.
        text_dim: of the words.
        dim: d of the space in which they are compared.
        words: K of an image.
        depth: channels of each word's map that are projected.
    """

    def __init__(self, vision_dim: int, text_dim: int, dim: int, words: int, depth: int = 1) -> None:
        super().__init__()
        self.vision_key, self.text_key = nn.Linear(vision_dim, dim), nn.Linear(text_dim, dim)
        self.project = nn.Linear(words * depth, vision_dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def correlation(self, vision: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) features and (B, K, text_dim) words to (B, K, h, w) cosines in fp32."""
        pixels = self.vision_key(vision.flatten(2).transpose(1, 2)).float()
        with torch.autocast(vision.device.type, enabled=False):
            cosines = F.normalize(self.text_key(text.float()), dim=2) @ F.normalize(pixels, dim=2).transpose(1, 2)
        return cosines.unflatten(2, vision.shape[2:])

    def maps(self, vision: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(B, K * depth, h, w), what is projected."""
        return self.correlation(vision, text)

    def forward(self, vision: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) features and (B, K, text_dim) words to (B, C, h, w) features."""
        return vision + self.project(self.maps(vision, text).movedim(1, 3)).movedim(3, 1)


class CorrelationReasoning(WordPixelCorrelation):
    """VLGA: the correlations are read in space and between words, as in the decoder of SemiVL (Hoyer et al. 2024).

    A convolution reads the map of each word. Then the words attend to each other at each pixel, with their text features beside
    them.

    Args:
        vision_dim, text_dim, dim, words: see `WordPixelCorrelation`.
    """

    def __init__(self, vision_dim: int, text_dim: int, dim: int, words: int) -> None:
        depth = max(_HEADS, dim // 8)
        super().__init__(vision_dim, text_dim, dim, words, depth)
        self.spatial = nn.Conv2d(1, depth, _WINDOW, padding=_WINDOW // 2)
        self.text = nn.Linear(text_dim, depth)
        self.semantic = nn.TransformerEncoderLayer(
            2 * depth, _HEADS, 4 * depth, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def maps(self, vision: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        correlation = self.correlation(vision, text)
        batch, words, height, width = correlation.shape
        x = self.spatial(correlation.flatten(0, 1)[:, None]).relu().unflatten(0, (batch, words))  # (B, K, depth, h, w)
        tokens = x.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B h w, K, depth)
        own = self.text(text).relu().repeat_interleave(height * width, 0)
        read = self.semantic(torch.cat([tokens, own.to(tokens.dtype)], 2))[..., : x.shape[2]]
        return (tokens + read).flatten(1).unflatten(0, (batch, height, width)).movedim(3, 1)
