"""Plain implementations, written from the definitions, for tests and benchmarks."""

from __future__ import annotations

import torch


def loop_panoptic(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    things: set[int],
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[torch.Tensor, list[dict]]:
    """Panoptic read-out of one image, one segment at a time; see `dearli_d2.modeling.mask2former.inference.panoptic_inference`.

    Args:
        class_logits: (Q, K + 1). mask_logits: (Q, H, W).
    """
    scores, labels = class_logits.softmax(-1).max(-1)
    kept = [q for q in range(len(labels)) if labels[q] != class_logits.shape[-1] - 1 and scores[q] > object_threshold]
    panoptic = torch.zeros(mask_logits.shape[-2:], dtype=torch.int32)
    segments, stuff = [], {}
    if not kept:
        return panoptic, segments
    probability = mask_logits.sigmoid()
    winner = (scores[kept, None, None] * probability[kept]).argmax(0)
    for position, q in enumerate(kept):
        won, own = winner == position, probability[q] >= 0.5
        visible = won & own
        if not (won.any() and own.any() and visible.any()):
            continue
        if float(won.sum()) / float(own.sum()) < overlap_threshold:
            continue
        label = int(labels[q])
        if label not in things and label in stuff:
            panoptic[visible] = stuff[label]
            continue
        identifier = len(segments) + 1
        if label not in things:
            stuff[label] = identifier
        panoptic[visible] = identifier
        segments.append({"id": identifier, "category_id": label, "isthing": label in things, "score": float(scores[q])})
    return panoptic, segments
