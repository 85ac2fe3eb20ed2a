"""Bipartite matching of queries and segments (Mask2Former; DETR, Sec. 3.1): all layers, one transfer to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from ..structures import Targets
from .losses import TargetSampler, sample_logits, valid_at
from .transformer_decoder import DecoderOutput


@dataclass
class Matches:
    """Matched pairs of R predictions and B images, M in all, image by image.

    `prediction`, `image`, `query`, `target` are (M,) int64 on the device; `target` counts the segments of the whole
    batch one after another. `per_image` is the number of pairs of each image, on the host.
    """

    prediction: torch.Tensor
    image: torch.Tensor
    query: torch.Tensor
    target: torch.Tensor
    per_image: list[int]


class HungarianMatcher:
    """Args:
        class_weight, mask_weight, dice_weight: of the costs; a class weight of 0 matches by masks alone.
        num_points: random points per image at which masks are compared, the same for all predictions.
    """

    def __init__(
        self, class_weight: float = 2.0, mask_weight: float = 5.0, dice_weight: float = 5.0, num_points: int = 12544
    ) -> None:
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.num_points = num_points

    @torch.no_grad()
    def __call__(
        self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets], sampler: TargetSampler
    ) -> Matches:
        """Args:
            class_logits: (R, B, Q, K + 1). output: the masks. targets: of the B images. sampler: of the same targets.
        """
        device = class_logits.device
        counts = [len(t) for t in targets]
        costs = self.costs(class_logits, output, targets, sampler).cpu()  # the one transfer of the step
        starts = [sum(counts[:b]) for b in range(len(counts))]
        pairs = [
            (r, b, query, starts[b] + target)
            for b, count in enumerate(counts)
            for r in range(len(costs))
            for query, target in zip(*linear_sum_assignment(costs[r, b, :, :count].numpy()), strict=True)
        ]
        per_image = [len(costs) * min(count, costs.shape[2]) for count in counts]
        return Matches(*torch.tensor(pairs, dtype=torch.int64).view(-1, 4).to(device).unbind(1), per_image)

    def costs(
        self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets], sampler: TargetSampler
    ) -> torch.Tensor:
        """(R, B, Q, N) fp32 with N the largest number of segments in an image; finite everywhere."""
        predictions, batch, queries = class_logits.shape[:3]
        device = class_logits.device
        counts = [len(t) for t in targets]
        width = max(counts)
        if width == 0:
            return class_logits.new_zeros(predictions, batch, queries, 0, dtype=torch.float32)
        # costs are differences of sums over thousands of points: fp32
        with torch.autocast(device.type, enabled=False):
            points = torch.rand(batch, self.num_points, 2, device=device)
            logits = _logits_at(output, points)
            image_of_row = torch.cat([torch.full((n,), b) for b, n in enumerate(counts)]).to(device)
            column_of_row = torch.cat([torch.arange(n) for n in counts]).to(device)
            sampled = sampler(torch.arange(sum(counts), device=device), points[image_of_row])
            masks = logits.new_zeros(batch, width, self.num_points)
            masks[image_of_row, column_of_row] = sampled
            labels = torch.zeros(batch, width, dtype=torch.int64, device=device)
            labels[image_of_row, column_of_row] = torch.cat([t.labels for t in targets])

            cost = pairwise_mask_cost(logits, masks, valid_at(targets, points), self.mask_weight, self.dice_weight)
            if self.class_weight:
                probability = class_logits.float().softmax(-1)
                cost -= self.class_weight * probability.gather(
                    -1, labels[None, :, None].expand(predictions, -1, queries, -1)
                )
            # a diverged model must fail at its loss with a name, not inside the solver
            return torch.nan_to_num(cost, nan=0.0, posinf=1e6, neginf=-1e6)


def _logits_at(output: DecoderOutput, points: torch.Tensor) -> torch.Tensor:
    """(R, B, Q, P) mask logits at (B, P, 2) points: the cheaper order of sampling and product."""
    features, embeddings = output.mask_features.float(), output.mask_embeddings.float()
    sampled = sample_logits(features, points)  # (B, C, P)
    return torch.einsum("rbqc,bcp->rbqp", embeddings, sampled)


def pairwise_mask_cost(
    logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None, bce_weight: float, dice_weight: float
) -> torch.Tensor:
    """Weighted binary cross-entropy and dice of every query with every segment.

    Args:
        logits: (R, B, Q, P). masks: (B, N, P) in 0..1. valid: (B, P) or None.

    Returns:
        (R, B, Q, N).
    """
    probability = logits.sigmoid()
    softplus = F.softplus(logits)  # bce(x, t) = softplus(x) - x t
    if valid is not None:
        weight = valid[:, None]
        masks, softplus, probability = masks * weight, softplus * weight, probability * weight
        points = valid.sum(-1).clamp(min=1)[:, None, None]
    else:
        points = logits.shape[-1]
    columns = masks.transpose(1, 2)
    bce = (softplus.sum(-1, keepdim=True) - logits @ columns) / points
    dice = 1 - (2 * (probability @ columns) + 1) / (probability.sum(-1, keepdim=True) + masks.sum(-1)[:, None] + 1)
    return bce_weight * bce + dice_weight * dice
