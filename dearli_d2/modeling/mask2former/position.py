"""Sine position embedding of maps (DETR; Mask2Former's variant: coordinates normalised to 0..2 pi)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch


def sine_position(height: int, width: int, dim: int, device: torch.device) -> torch.Tensor:
    """(dim, height, width) fp32: the first half of the channels encodes y, the second x.

    A pure function of its arguments, so it is computed once per size and device. An exported graph computes it itself.
    """
    exported = torch.compiler.is_exporting()  # its sizes may be symbols
    return _sine_position(height, width, dim, device) if exported else _kept(height, width, dim, device)


def _sine_position(height: int, width: int, dim: int, device: torch.device) -> torch.Tensor:
    half = dim // 2
    frequency = 10000 ** (2 * torch.div(torch.arange(half, device=device), 2, rounding_mode="floor") / half)

    def encode(length: int) -> torch.Tensor:
        position = torch.arange(length, dtype=torch.float32, device=device) + 1
        angle = (position / (length + 1e-6) * 2 * math.pi)[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)

    y, x = encode(height), encode(width)
    return torch.cat([y.T[:, :, None].expand(-1, -1, width), x.T[:, None].expand(-1, height, -1)]).contiguous()


_kept = lru_cache(maxsize=64)(_sine_position)
