"""Pure functions: point sampling and the mask losses of Mask2Former (Sec. 3.3) with per-point validity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..structures import Targets


def sample_logits(logits: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear samples, zeros outside.

    Args:
        logits: (N, C, H, W). points: (N, P, 2), x and y in 0..1.

    Returns:
        (N, C, P).
    """
    return F.grid_sample(logits, points[:, :, None] * 2 - 1, align_corners=False).squeeze(-1)


class TargetSampler:
    """Bilinear point samples of the boolean masks of a batch, without a float copy of them.

    Rows are the masks of all images one after another; images may differ in size.
    """

    def __init__(self, targets: Sequence[Targets]) -> None:
        device = targets[0].masks.device
        self.masks = torch.cat([t.masks.flatten() for t in targets])
        sizes = [t.masks.shape[-2:] for t in targets for _ in range(len(t))]
        starts, start = [], 0
        for height, width in sizes:
            starts.append(start)
            start += height * width
        # one small transfer for all three
        self.layout = torch.tensor([(s, h, w) for s, (h, w) in zip(starts, sizes, strict=True)]).view(-1, 3).to(device)

    def __call__(self, rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Args:
            rows: (M,) mask indices. points: (M, P, 2), x and y in 0..1.

        Returns:
            (M, P) fp32 in 0..1.
        """
        start, height, width = self.layout[rows].unsqueeze(-1).unbind(1)  # each (M, 1)
        x, y = points[..., 0].float() * width - 0.5, points[..., 1].float() * height - 0.5
        left, top = x.floor(), y.floor()
        x_share, y_share = x - left, y - top
        left, top = left.long(), top.long()
        sampled = torch.zeros_like(x)
        for dy, wy in ((0, 1 - y_share), (1, y_share)):
            for dx, wx in ((0, 1 - x_share), (1, x_share)):
                column, row = left + dx, top + dy
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                index = start + row * width + column
                corner = self.masks[torch.where(inside, index, start)] & inside
                sampled += torch.where(corner, wx * wy, 0.0)
        return sampled


def valid_at(targets: Sequence[Targets], points: torch.Tensor) -> torch.Tensor | None:
    """(B, P) fp32 1 where the pixel of the point is valid, else 0; None when every pixel of the batch is.

    Args:
        points: (B, P, 2), x and y in 0..1.
    """
    if all(t.valid is None for t in targets):
        return None
    rows = []
    for target, xy in zip(targets, points, strict=True):
        height, width = target.masks.shape[-2:]
        if target.valid is None:
            rows.append(torch.ones_like(xy[:, 0]))
            continue
        column = (xy[:, 0] * width).long().clamp(0, width - 1)
        row = (xy[:, 1] * height).long().clamp(0, height - 1)
        rows.append(target.valid[row, column].float())
    return torch.stack(rows)


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
