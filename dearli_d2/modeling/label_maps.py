"""Maps of labels as prediction writes them: the class scores of all pixels never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .mask2former.inference import first_of_largest, resize_logits
from .per_pixel.semantic import class_segments, segments_of_classes

# elements of the maps of all queries that are read out at a time: on a CPU they stay in the cache
_CPU_BLOCK, _GPU_BLOCK = 2**19, 2**28


@dataclass(frozen=True)
class LabelMaps:
    """The labels of one image, on the device.

    `panoptic` is (H, W) int32 segment ids, 0 = none, and `segments` are dicts with "id", "category_id", "isthing", "score".
    `semantic` is (H, W) int16 class indices and `confidence` (H, W) fp32 the probability of that class; both are None if they
    were not asked for.
    """

    panoptic: torch.Tensor
    segments: list[dict[str, Any]]
    semantic: torch.Tensor | None = None
    confidence: torch.Tensor | None = None


def maps_of_output(output: dict[str, Any], semantic: bool) -> LabelMaps:
    """The labels of one image from an output of `Segmenter.forward`. Without "panoptic_seg" a class is a segment."""
    panoptic, segments = output["panoptic_seg"] if "panoptic_seg" in output else class_segments(output["sem_seg"])
    if not semantic:
        return LabelMaps(panoptic, segments)
    return LabelMaps(panoptic, segments, *_best_class(output["sem_seg"].float())[:2])


def maps_of_masks(
    scores: Callable[[torch.Tensor], torch.Tensor], masks: torch.Tensor, size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best class of each pixel, from masks at a smaller size, in blocks of rows.

    Args:
        scores: maps (1, Q, h, W) logits of masks to (1, K, h, W) class scores, each pixel for itself.
        masks: (1, Q, h', w') logits.
        size: (H, W) of the result.

    Returns:
        (H, W) int16 class, fp32 probability, and fp32 score of it.
    """
    height, width = size
    block = _CPU_BLOCK if masks.device.type == "cpu" else _GPU_BLOCK
    rows = max(1, block // (masks.shape[1] * width))
    wide = resize_logits(masks, (masks.shape[-2], width))  # one direction after the other is faster
    parts = [
        _best_class(scores(_resized_rows(wide, height, top, min(top + rows, height)))[0])
        for top in range(0, height, rows)
    ]
    semantic, confidence, score = (torch.cat(part) for part in zip(*parts, strict=True))
    return semantic, confidence, score


def maps_of_classes(semantic: torch.Tensor, confidence: torch.Tensor, score: torch.Tensor) -> LabelMaps:
    """The labels of a model without panoptic read-out, whose segments are the classes; all (H, W), see `maps_of_masks`."""
    return LabelMaps(*segments_of_classes(score, semantic), semantic, confidence)


def _best_class(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(K, H, W) scores to the best class, int16, its probability (see `per_pixel.semantic.normalized`) and its score."""
    best, label = first_of_largest(scores)
    return label, best / scores.sum(0).clamp(min=1), best


def _resized_rows(masks: torch.Tensor, height: int, top: int, bottom: int) -> torch.Tensor:
    """Rows `top` to `bottom` of (1, Q, h, W) masks that are resized to `height` as `resize_logits` does, up to rounding."""
    if masks.shape[-2] == height:
        return masks[..., top:bottom, :]
    source = (torch.arange(top, bottom, device=masks.device) + 0.5) * (masks.shape[-2] / height) - 0.5
    source = source.clamp(min=0)
    above = source.long()
    below = (above + 1).clamp(max=masks.shape[-2] - 1)
    return torch.lerp(masks.index_select(-2, above), masks.index_select(-2, below), (source - above)[:, None])
