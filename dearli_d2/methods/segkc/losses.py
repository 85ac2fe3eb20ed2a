"""Distillation of the senior's predictions (SegKC)."""

from __future__ import annotations

import torch

from ...modeling.per_pixel.losses import summed_loss
from ...modeling.ranks import over_ranks


def distillation_loss(
    teacher: torch.Tensor, student: torch.Tensor, inside: torch.Tensor, temperature: float
) -> torch.Tensor:
    """temperature^2 KL(teacher || student) of the softened class distributions (Hinton et al. 2015), mean over pixels.

    Args:
        teacher, student: (B, C, h, w) logits, resized to `inside`; no gradient reaches the teacher.
        inside: (B, H, W) bool,
            which pixels count.
    """

    def divergence(teacher: torch.Tensor, student: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        theirs, own = ((x / temperature).log_softmax(1) for x in (teacher, student))
        return (theirs.exp() * (theirs - own)).sum(1) * inside

    return temperature**2 * summed_loss(divergence, (teacher.detach(), student), (inside,)) / over_ranks(inside.sum())
