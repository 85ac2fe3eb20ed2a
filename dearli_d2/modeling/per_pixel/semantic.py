"""Semantic segmentation with class scores per pixel: sliding windows, pseudo-labels, entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...data.sizes import window_starts
from ...structures import Targets


def semantic_argmax(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Class scores per pixel, whose best class is that of the query with the highest mask response (HVL, "DQTD").

    Queries whose best class is no-object are left out.

    Args:
        class_logits: (B, Q, K + 1).
        mask_logits: (B, Q, H, W).

    Returns:
        (B, K, H, W) fp32 in 0..1: the highest response of each class's queries.
    """
    label, classes = class_logits.argmax(-1), class_logits.shape[-1] - 1
    response = mask_logits.float().sigmoid()
    scores = response.new_zeros(response.shape[0], classes + 1, *response.shape[2:])
    scores.scatter_reduce_(1, label[..., None, None].expand_as(response), response, "amax")
    return scores[:, :classes]


def class_segments(scores: torch.Tensor) -> tuple[torch.Tensor, list[dict]]:
    """(K, H, W) class scores as a panoptic prediction with one segment a class: see `panoptic_inference`."""
    return segments_of_classes(*scores.max(0))


def segments_of_classes(scores: torch.Tensor, best: torch.Tensor) -> tuple[torch.Tensor, list[dict]]:
    """`class_segments` of the best class of each pixel and its score, both (H, W)."""
    segments = [
        {"id": c + 1, "category_id": c, "isthing": False, "score": float(scores[best == c].mean())}
        for c in best.unique().tolist()
    ]
    return (best + 1).int(), segments


def normalized(scores: torch.Tensor) -> torch.Tensor:
    """(B, K, H, W) scores, none negative, to class probabilities per pixel.

    Scores that sum to more than one are divided by their sum. Others stay: what is missing to one is the probability of no
    class, as where no mask claims the pixel or where the classes that would were filtered out.
    """
    return scores / scores.sum(1, keepdim=True).clamp(min=1)


def entropy(probability: torch.Tensor) -> torch.Tensor:
    """Mean over pixels of the entropy of (B, K, ...) class probabilities, in nats; what is missing to one is an outcome too."""
    no_class = (1 - probability.sum(1, keepdim=True)).clamp(min=0)
    outcomes = torch.cat([probability, no_class], 1)
    return -(outcomes * outcomes.clamp(min=1e-8).log()).sum(1).mean()


@torch.no_grad()
def confident_targets(
    probability: torch.Tensor, threshold: float, valid: Sequence[torch.Tensor | None]
) -> list[Targets]:
    """The best class of each pixel as one mask a class; pixels below the threshold are not valid.

    Args:
        probability: (B, K, H, W) class probabilities, see `normalized`.
        threshold: of the best class's probability.
        valid: (H, W) bool of each image, or None = everywhere.

    Returns:
        On the device. The one transfer to the host tells which classes are there.
    """
    confidence, label = probability.max(1)
    sure = confidence >= threshold
    for row, inside in zip(sure, valid, strict=True):
        if inside is not None:
            row &= inside
    batch, classes = probability.shape[:2]
    counts = torch.zeros(batch, classes, dtype=torch.int64, device=label.device)
    counts.scatter_add_(1, label.flatten(1), sure.flatten(1).long())
    present = (counts > 0).cpu()
    targets = []
    for index in range(batch):
        labels = present[index].nonzero()[:, 0].to(label.device, non_blocking=True)
        masks = (label[index] == labels[:, None, None]) & sure[index]
        targets.append(Targets(labels, masks, sure[index]))
    return targets


def sliding_window(
    scores: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, window: int, stride: int
) -> torch.Tensor:
    """Class scores of large images as the mean over overlapping windows.

    Args:
        scores: maps (B, 3, h, w) to (B, K, h, w).
        images: (B, 3, H, W).
        window: side in pixels.
        stride: distance between windows in pixels. The last ones are moved back to end at the border.

    Returns:
        (B, K, H, W).
    """
    height, width = images.shape[-2:]
    total: torch.Tensor | None = None
    count = images.new_zeros(height, width)
    for top in window_starts(height, window, stride):
        for left in window_starts(width, window, stride):
            part = slice(top, top + window), slice(left, left + window)
            result = scores(images[..., part[0], part[1]])
            if total is None:
                total = result.new_zeros(*result.shape[:2], height, width)
            total[..., part[0], part[1]] += result
            count[part] += 1
    assert total is not None  # there is at least one window
    return total / count
