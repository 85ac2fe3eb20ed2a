"""Bipartite matching of queries and segments (Mask2Former; DETR, Sec. 3.1): all layers, one transfer to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from scipy.optimize import linear_sum_assignment

from ...structures import Targets
from .losses import image_of_target, sample_points, sample_validity
from .transformer_decoder import DecoderOutput

CHUNK_VALUES = {"cpu": 2**22, "gpu": 2**27}
"""Mask logits compared at a time: 16 MB, whose passes stay in a CPU's cache (benchmarks/matching.py); 512 MB on a GPU, where
every chunk costs some twenty kernel launches."""


@dataclass
class Matches:
    """The queries that answer for each of the T segments of a batch, on the device.

    Args:
        image: (T,) int64, the image of each segment, one image after another.
        query: (R, T, G) int64, its G queries in each of the R predictions (Hungarian matching: G = 1).
        matched: (R, T, G) fp32, 1 where there is a query, else 0, as when there are more segments than queries. `query` is
            then 0.
    """

    image: torch.Tensor
    query: torch.Tensor
    matched: torch.Tensor

    def images(self, start: int, stop: int, counts: Sequence[int]) -> Matches:
        """The matches of images `start` to `stop` (excluded), counted anew from 0; `counts`: segments of every image."""
        rows = slice(sum(counts[:start]), sum(counts[:stop]))
        return Matches(self.image[rows] - start, self.query[:, rows], self.matched[:, rows])


_Target = TypeVar("_Target", contravariant=True)


class Matcher(Protocol[_Target]):
    """Finds the queries that answer for each segment of a batch."""

    def __call__(self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[_Target]) -> Matches:
        """Matches all predictions of a batch.

        Args:
            class_logits: (R, B, Q, columns).
            output: the masks.
            targets: of the B images, all of one size.
        """
        ...


class HungarianMatcher:
    """Assigns the segments of each image to its queries, by the least total cost (Mask2Former).

    Args:
        class_weight, mask_weight, dice_weight: of the costs; a class weight of 0 matches by masks alone.
        num_points: random points per image at which masks are compared, the same for all predictions.
    """

    def __init__(
        self, class_weight: float = 2.0, mask_weight: float = 5.0, dice_weight: float = 5.0, num_points: int = 12544
    ) -> None:
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.num_points = num_points

    @torch.no_grad()
    def __call__(self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets]) -> Matches:
        """Matches all predictions of a batch, with one transfer to the host.

        Args:
            class_logits: (R, B, Q, K + 1).
            output: the masks.
            targets: of the B images, all of one size.
        """
        device, counts = class_logits.device, [len(t) for t in targets]
        if sum(counts):
            costs = self.costs(class_logits, output, targets).cpu().numpy()  # the one transfer of the step
        else:
            costs = np.zeros((*class_logits.shape[:3], 0))
        query, matched = assign(costs, counts)
        image = image_of_target(targets)
        return Matches(*(x.to(device, non_blocking=True) for x in (image, query, matched)))

    def class_cost(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, Q, K + 1) logits and (B, N) labels to (B, Q, N), weighted."""
        probability = logits.float().softmax(-1)
        return -self.class_weight * probability.gather(-1, labels[:, None].expand(-1, logits.shape[1], -1))

    def mask_cost(self, logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B, Q, P) logits, (B, N, P) masks, (B, P) validity to (B, Q, N), weighted."""
        return pairwise_mask_cost(logits, masks, valid, self.mask_weight, self.dice_weight)

    def costs(self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets]) -> torch.Tensor:
        """(R, B, Q, N) fp32 with N the largest number of segments in an image; finite everywhere."""
        device, batch = class_logits.device, len(targets)
        counts = [len(t) for t in targets]
        width = max(counts)
        # costs are differences of sums over thousands of points: fp32
        with torch.autocast(device.type, enabled=False):
            points = torch.rand(batch, self.num_points, 2, device=device)
            features = sample_points(output.mask_features.float(), points)  # (B, C, P)
            image = image_of_target(targets).to(device)
            column = torch.cat([torch.arange(n) for n in counts]).to(device)
            masks = features.new_zeros(batch, width, self.num_points)
            every_mask = torch.cat([t.masks for t in targets])[:, None].float()
            masks[image, column] = sample_points(every_mask, points[image])[:, 0]
            labels = torch.zeros(batch, width, dtype=torch.int64, device=device)
            labels[image, column] = torch.cat([t.labels for t in targets])
            validity = sample_validity(targets, points)
            valid = None if validity is None else torch.stack(validity)

            costs = []
            chunk = max(
                1, CHUNK_VALUES["cpu" if device.type == "cpu" else "gpu"] // (class_logits.shape[2] * self.num_points)
            )
            images = [slice(start, start + chunk) for start in range(0, batch, chunk)]
            for logits, embeddings in zip(class_logits, output.mask_embeddings, strict=True):
                parts = [
                    self.mask_cost(
                        torch.bmm(embeddings[i].float(), features[i]), masks[i], None if valid is None else valid[i]
                    )
                    for i in images
                ]
                cost = torch.cat(parts)
                if self.class_weight:
                    cost += self.class_cost(logits, labels)
                costs.append(cost)
            # a diverged model must fail at its loss with a name, not inside the solver
            return torch.nan_to_num(torch.stack(costs), nan=0.0, posinf=1e6, neginf=-1e6)


def loss_weights(cfg: CfgNode) -> dict[str, Any]:
    """Weights of the terms, the same in the costs of a matcher and in a criterion."""
    former = cfg.MODEL.MASK_FORMER
    return {
        "class_weight": 0.0 if cfg.MODEL.CLASSIFIER == "none" else former.CLASS_WEIGHT,
        "mask_weight": former.MASK_WEIGHT,
        "dice_weight": former.DICE_WEIGHT,
    }


def build_matcher(cfg: CfgNode) -> HungarianMatcher:
    """The matcher of a config."""
    return HungarianMatcher(**loss_weights(cfg), num_points=cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS)


def assign(costs: np.ndarray, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The cheapest assignment of each prediction and image.

    Args:
        costs: (R, B, Q, N).
        counts: number of segments of each image; they are its first columns.

    Returns:
        `query` and `matched` of `Matches`, (R, T, 1) each, on the CPU.
    """
    predictions, total = len(costs), sum(counts)
    query = np.zeros((predictions, total, 1), np.int64)
    matched = np.zeros((predictions, total, 1), np.float32)
    for r in range(predictions):
        start = 0
        for b, count in enumerate(counts):
            queries, segments = linear_sum_assignment(costs[r, b, :, :count])
            query[r, start + segments, 0] = queries
            matched[r, start + segments, 0] = 1
            start += count
    return torch.from_numpy(query), torch.from_numpy(matched)


def pairwise_mask_cost(
    logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None, bce_weight: float, dice_weight: float
) -> torch.Tensor:
    """Weighted binary cross-entropy and dice of every query with every segment.

    Args:
        logits: (B, Q, P).
        masks: (B, N, P) in 0..1.
        valid: (B, P) or None.
        bce_weight, dice_weight: of the two terms.

    Returns:
        (B, Q, N).
    """
    # bce(x, t) = softplus(x) - x t, and softplus(x) = relu(x) - log(sigmoid(|x|)), with sigmoid(|x|) in 0.5..1;
    # these tensors are the largest of a step: one scratch buffer serves both terms
    weight = None if valid is None else valid[:, None]
    probability = logits.sigmoid()
    scratch = torch.sub(probability, 0.5).abs_().add_(0.5).log_()
    log_sum = _weighted_sum(scratch, weight)
    softplus = _weighted_sum(torch.clamp(logits, min=0, out=scratch), weight) - log_sum
    points: torch.Tensor | int = logits.shape[-1]
    if valid is not None and weight is not None:
        masks, probability = masks * weight, probability.mul_(weight)
        points = valid.sum(-1).clamp(min=1)[:, None, None]
    columns = masks.transpose(1, 2)
    bce = (softplus[..., None] - torch.bmm(logits, columns)) / points
    sizes = probability.sum(-1, keepdim=True) + masks.sum(-1)[:, None]
    dice = 1 - (2 * torch.bmm(probability, columns) + 1) / (sizes + 1)
    return bce_weight * bce + dice_weight * dice


def _weighted_sum(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Sum over the last dimension, in place where there is a weight."""
    return (x if weight is None else x.mul_(weight)).sum(-1)
