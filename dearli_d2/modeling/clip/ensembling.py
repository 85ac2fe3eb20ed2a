"""Zero-shot recognition of predicted masks and its ensemble with the learned classifier (DEARLi, Sec. 3.2, eq. 4-6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .text_tower import ClipModel


def mask_pool(features: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Mean of the dense features under each binarised mask.

    Args:
        features: (B, D, h, w) dense features, `clip_vis_dense` for OpenCLIP ConvNeXt.
        mask_logits: (B, Q, H, W); resized to (h, w) (bilinear, align_corners False), then `> 0`.

    Returns:
        (B, Q, D) in fp32, also under autocast; zero for a mask that covers no cell.
    """
    if mask_logits.shape[-2:] != features.shape[-2:]:
        mask_logits = F.interpolate(mask_logits, size=features.shape[-2:], mode="bilinear", align_corners=False)
    masks = (mask_logits > 0).float()
    # areas are counts, so 1 is the least of a mask that is not empty
    area = masks.sum((-1, -2)).clamp(min=1)[..., None, None]
    with torch.autocast(features.device.type, enabled=False):  # sums over many cells
        return torch.einsum("bqhw,bdhw->bqd", masks / area, features.float())


def clip_head(visual: ClipModel, pooled: torch.Tensor) -> torch.Tensor:
    """Pushes pooled features through the head of an OpenCLIP timm tower as fake 1x1 images.

    Args:
        visual: `clip_model.visual` with a timm ConvNeXt `trunk` and a projection `head`.
        pooled: (B, Q, D).

    Returns:
        (B, Q, E) unit-norm embeddings in fp32, also under autocast (few rows, and their logits are scaled by 100).
    """
    with torch.autocast(pooled.device.type, enabled=False):
        flat = pooled.float().flatten(0, 1)[..., None, None]
        embedded = visual.head(visual.trunk.forward_head(flat))
        return F.normalize(embedded, dim=-1).unflatten(0, pooled.shape[:2])


def geometric_ensemble(
    class_logits: torch.Tensor, clip_logits: torch.Tensor, alpha: float | torch.Tensor
) -> torch.Tensor:
    """Geometric mean of the learned and the zero-shot posterior (eq. 6); the void probability stays the learned one.

    P(c) = (1 - P_MT(void)) * normalise_c(P_MT(c | not void)^alpha * P_CLIP(c)^(1 - alpha)).

    Args:
        class_logits: (B, Q, K + 1), last = no object.
        clip_logits: (B, Q, K), already multiplied by CLIP's logit scale.
        alpha: weight of the learned posterior, 1 = learned only, 0 = zero-shot only; (K,) where it differs between classes
            (FC-CLIP, eq. 7).

    Returns:
        (B, Q, K + 1) log-probabilities in fp32.
    """
    # logits are scaled by up to 100: half precision has too few digits for their softmax
    log_learned = class_logits.float().log_softmax(-1)
    log_clip = clip_logits.float().log_softmax(-1)
    # among the objects: with weights that differ, a constant of the query would not drop out
    log_known = class_logits[..., :-1].float().log_softmax(-1)
    log_mix = (alpha * log_known + (1 - alpha) * log_clip).log_softmax(-1)
    log_void = log_learned[..., -1:]
    # log(1 - P(void)) as the log-sum of the others keeps its digits when P(void) is near 1
    log_object = log_learned[..., :-1].logsumexp(-1, keepdim=True)
    return torch.cat([log_mix + log_object, log_void], dim=-1)
