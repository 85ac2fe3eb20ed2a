"""Pure functions: point sampling and the mask losses of Mask2Former (Sec. 3.3) with per-point validity."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...structures import Targets
from ..linear import product


def sample_points(maps: torch.Tensor, points: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Samples of maps, zeros outside.

    Args:
        maps: (N, C, H, W) floating point.
        points: (N, P, 2), x and y in -1..1, from border to border.
        mode: "bilinear" or "nearest".

    Returns:
        (N, C, P).
    """
    return F.grid_sample(maps, points[:, :, None], mode=mode, align_corners=False).squeeze(-1)


def random_points(count: int, number: int, device: torch.device) -> torch.Tensor:
    """Uniform (count, number, 2) fp32 points for `sample_points`."""
    return torch.rand(count, number, 2, device=device).mul_(2).sub_(1)


def image_of_target(targets: Sequence[Sized]) -> torch.Tensor:
    """(T,) int64 on the CPU: the image of each of the T segments of a batch, counted one image after another."""
    return torch.from_numpy(np.repeat(np.arange(len(targets), dtype=np.int64), [len(t) for t in targets]))


def sample_validity(
    targets: Sequence[Targets], points: torch.Tensor, image: torch.Tensor | None = None
) -> torch.Tensor | None:
    """1 where the pixel of a point is valid, else 0; None when every pixel of the batch is.

    Args:
        targets: of the B images, all of one size.
        points: (N, P, 2), x and y in -1..1.
        image: (N,) the image of each row of points; None = row i is of image i.

    Returns:
        (N, P) fp32.
    """
    if all(t.valid is None for t in targets):
        return None
    maps = torch.stack([t.masks.new_ones(t.masks.shape[1:]) if t.valid is None else t.valid for t in targets])
    maps = (maps if image is None else maps[image])[:, None].float()
    return sample_points(maps, points.clamp(-1, 1 - 2e-6), mode="nearest")[:, 0]


def mask_bce(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Binary cross-entropy of each mask, mean over its valid points. All (M, P), `valid` 0 or 1; returns (M,)."""
    # bce(x, t) = softplus(x) - x t
    inside = targets if valid is None else targets * valid
    points = logits.shape[-1] if valid is None else valid.sum(-1).clamp(min=1)
    softplus: torch.Tensor = _SoftplusSums.apply(logits, valid)
    return (softplus - (logits * inside).sum(-1)) / points


class _SoftplusSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        probability = logits.sigmoid()
        ctx.save_for_backward(probability, weight)
        return softplus_sums(logits, probability, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        probability, weight = ctx.saved_tensors
        result = probability * grad[..., None]
        return result if weight is None else result.mul_(weight), None


def softplus_sums(logits: torch.Tensor, probability: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Sums of the softplus of logits over the points with a weight of 1. They have no gradient.

    Args:
        logits: (..., P).
        probability: their sigmoid.
        weight: 0 or 1, of the shape of the logits; for (B, Q, P) logits also (B, 1, P). None = 1.

    Returns:
        (...).
    """
    if logits.device.type != "cpu":
        return _weighted_sums(F.softplus(logits), weight)
    # softplus(x) = relu(x) - log(sigmoid(|x|)). Logarithms are slow on a CPU, so up to 64 factors, each in 0.5..1, share one
    factors = 1 - probability
    torch.maximum(factors, probability, out=factors)
    if weight is not None:
        factors.masked_fill_(weight == 0, 1)
    log_sums = factors.unflatten(-1, (-1, math.gcd(logits.shape[-1], 64))).prod(-1).log_().sum(-1)
    return _weighted_sums(torch.clamp(logits, min=0, out=factors), weight) - log_sums


def _weighted_sums(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Sums over the last dimension; may change the values."""
    if weight is None:
        return values.sum(-1)
    if weight.shape == values.shape:
        return values.mul_(weight).sum(-1)
    return product(values, weight.mT)[..., 0]


def mask_dice(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Soft dice loss of each mask with +1 smoothing (Milletari et al. 2016 as in MaskFormer). All (M, P); (M,)."""
    probability = logits.sigmoid()
    if valid is not None:
        probability, targets = probability * valid, targets * valid
    overlap = (probability * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probability.sum(-1) + targets.sum(-1) + 1)


def mask_iou(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Soft Jaccard loss of each mask with +1 smoothing. All (M, P); (M,)."""
    probability = logits.sigmoid()
    if valid is not None:
        probability, targets = probability * valid, targets * valid
    overlap = (probability * targets).sum(-1)
    return 1 - (overlap + 1) / (probability.sum(-1) + targets.sum(-1) - overlap + 1)


def sigmoid_focal(logits: torch.Tensor, targets: torch.Tensor, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss of independent binary decisions (Lin et al. 2017), element by element, in fp32."""
    logits = logits.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    wrong = probability + targets - 2 * probability * targets  # 1 - p_t
    return (alpha * targets + (1 - alpha) * (1 - targets)) * wrong.pow(gamma) * cross_entropy
