"""Pure functions: point sampling and the mask losses of Mask2Former (Sec. 3.3) with per-point validity."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import numpy as np
import torch
import torch.nn.functional as F

from ...structures import Targets


def sample_points(maps: torch.Tensor, points: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Samples of maps, zeros outside.

    Args:
        maps: (N, C, H, W) floating point.
        points: (N, P, 2), x and y in 0..1.
        mode: "bilinear" or "nearest".

    Returns:
        (N, C, P).
    """
    grid = points.mul(2).sub_(1)[:, :, None]
    return F.grid_sample(maps, grid, mode=mode, align_corners=False).squeeze(-1)


def image_of_target(targets: Sequence[Sized]) -> torch.Tensor:
    """(T,) int64 on the CPU: the image of each of the T segments of a batch, counted one image after another."""
    return torch.from_numpy(np.repeat(np.arange(len(targets), dtype=np.int64), [len(t) for t in targets]))


def sample_validity(
    targets: Sequence[Targets], points: torch.Tensor, image: torch.Tensor | None = None
) -> torch.Tensor | None:
    """1 where the pixel of a point is valid, else 0; None when every pixel of the batch is.

    Args:
        targets: of the B images, all of one size.
        points: (N, P, 2), x and y in 0..1.
        image: (N,) the image of each row of points; None = row i is of image i.

    Returns:
        (N, P) fp32.
    """
    if all(t.valid is None for t in targets):
        return None
    maps = torch.stack([t.masks.new_ones(t.masks.shape[1:]) if t.valid is None else t.valid for t in targets])
    maps = (maps if image is None else maps[image])[:, None].float()
    return sample_points(maps, points.clamp(0, 1 - 1e-6), mode="nearest")[:, 0]


def mask_bce(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Binary cross-entropy of each mask, mean over its valid points. All (M, P); returns (M,)."""
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if valid is None:
        return loss.mean(-1)
    return (loss * valid).sum(-1) / valid.sum(-1).clamp(min=1)


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
