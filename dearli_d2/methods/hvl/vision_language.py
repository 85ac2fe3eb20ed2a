"""Masked vision-language consistency: features of hidden regions against a frozen encoder and the class's text (HVL)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...modeling.ranks import over_ranks
from ...structures import Targets

# share of an image that a hidden class may cover
_LEAST, _MOST = 0.01, 0.5


def masked_regions(
    targets: Sequence[Targets], least: float = _LEAST, most: float = _MOST
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses a random class of each image. Nothing here waits for the device.

    Args:
        targets: semantic, one per image.
        least: least share of the image that the class covers.
        most: largest share of the image that the class covers.

    Returns:
        (B, H, W) bool, empty where no class fits; (B,) int64 labels.
    """
    regions, labels = [], []
    for target in targets:
        if not len(target):
            regions.append(target.masks.new_zeros(target.masks.shape[1:]))
            labels.append(target.labels.new_zeros(()))
            continue
        share = target.masks.flatten(1).float().mean(1)
        fits = (share >= least) & (share <= most)
        chosen = (torch.rand(len(target), device=share.device) * fits).argmax()[
            None
        ]  # one row, not a number for the host
        regions.append((target.masks[chosen] & fits[chosen][:, None, None])[0])
        labels.append(target.labels[chosen][0])
    return torch.stack(regions), torch.stack(labels)


def region_losses(
    features: torch.Tensor,
    reference: torch.Tensor,
    region: torch.Tensor,
    label: torch.Tensor,
    text: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_align and L_mask: means over the cells of all ranks that lie mostly inside a region.

    Args:
        features: (B, E, h, w) embeddings of the image with the region hidden, unit norm.
        reference: (B, E, h, w) embeddings of the whole image, unit norm.
        region: (B, H, W) bool.
        label: (B,), the class of each region.
        text: (K, E), unit norm.
        temperature: divides the cosines.

    Returns:
        Cross-entropy over the K classes; mean of 1 - cosine. Both are 0 where no cell is inside.
    """
    share = F.adaptive_avg_pool2d(region[:, None].float(), (features.shape[2], features.shape[3]))[:, 0]
    weight = share * (share >= 0.5)
    total = over_ranks(weight.sum(), least=1e-6)
    logits = torch.einsum("behw,ke->bkhw", features, text) / temperature
    cross_entropy = F.cross_entropy(logits, label[:, None, None].expand_as(share), reduction="none")
    distance = 1 - (features * reference).sum(1)
    return (cross_entropy * weight).sum() / total, (distance * weight).sum() / total
