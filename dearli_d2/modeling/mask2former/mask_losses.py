"""Mask losses of matched queries, on sampled points instead of whole masks (Mask2Former, Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ...structures import Targets
from ..linear import computes_here, linear
from ..ranks import over_ranks
from .losses import mask_bce, mask_dice, random_points, sample_points, sample_validity
from .matcher import Matches
from .transformer_decoder import DecoderOutput

# masks whose candidate points are drawn at a time: few enough for a CPU's cache, many enough to fill a GPU
_BLOCK = {"cpu": 32, "gpu": 1024}

MaskLoss = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]
"""(M, P) logits, (M, P) labels and the (M, P) validity of points to (M,) losses."""


class PointMaskLosses:
    """A loss per point and the dice loss of each matched query, in all predictions at once.

    Args:
        loss: the first of the two losses.
        num_points: points per mask (12 544 = 112^2).
        oversample_ratio: random candidates per importance-sampled point.
        importance_sample_ratio: share of the points that are the most uncertain candidates (PointRend).
    """

    def __init__(
        self,
        loss: MaskLoss = mask_bce,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ) -> None:
        self.loss = loss
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_sample_ratio)

    def __call__(
        self, output: DecoderOutput, targets: Sequence[Targets], matches: Matches
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both losses, each averaged over the queries of a segment, summed over segments and divided by their mean number.

        Args:
            output: the masks.
            targets: of each image, all of one size.
            matches: of these segments.

        Returns:
            (R,) of `loss` and (R,) dice.
        """
        predictions, total, _ = matches.query.shape
        num_masks = mean_number_of_masks(targets, output.mask_features.device)
        if not total:  # the loss must still be connected to every parameter (data-parallel training)
            nothing = 0 * (output.mask_features.float().sum() + output.mask_embeddings.float().sum())
            return nothing.expand(predictions), nothing.expand(predictions)
        # dice sums thousands of points: fp32
        with torch.autocast(output.mask_features.device.type, enabled=False):
            logits = _matched_logits(output, matches, [len(t) for t in targets])  # (T, R G, h, w)
            points = self._choose_points(logits.flatten(0, 1)[:, None])  # (T R G, P, 2)
            sampled = sample_points(logits.flatten(0, 1)[:, None], points)[:, 0]
            per_target = points.view(total, -1, 2)
            masks = torch.cat([t.masks for t in targets])[:, None].float()
            labels = sample_points(masks, per_target)[:, 0].view_as(sampled)
            valid = sample_validity(targets, per_target, matches.image)
            valid = None if valid is None else valid.view_as(sampled)
            weight = matches.matched / (num_masks * matches.matched.sum(-1, keepdim=True).clamp(min=1))
            first = (_by_match(self.loss(sampled, labels, valid), matches) * weight).sum((1, 2))
            dice = (_by_match(mask_dice(sampled, labels, valid), matches) * weight).sum((1, 2))
        return first, dice

    @torch.no_grad()
    def _choose_points(self, logits: torch.Tensor) -> torch.Tensor:
        """(M, num_points, 2) for (M, 1, h, w) logits: the most uncertain of many random points, and some random ones."""
        block = _BLOCK["cpu" if logits.device.type == "cpu" else "gpu"]
        return torch.cat([self._choose_points_of(part) for part in logits.split(block)])

    def _choose_points_of(self, logits: torch.Tensor) -> torch.Tensor:
        count, device = len(logits), logits.device
        candidates = random_points(count, self.num_candidates, device)
        certainty = sample_points(logits, candidates)[:, 0].abs_()
        # x and y are gathered together, as one complex number
        points = torch.view_as_complex(candidates).gather(1, _least(certainty, self.num_uncertain))
        others = random_points(count, self.num_points - self.num_uncertain, device)
        return torch.cat([torch.view_as_real(points), others], 1)


def point_options(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `PointMaskLosses` from a config."""
    former = cfg.MODEL.MASK_FORMER
    return {
        "num_points": former.TRAIN_NUM_POINTS,
        "oversample_ratio": former.OVERSAMPLE_RATIO,
        "importance_sample_ratio": former.IMPORTANCE_SAMPLE_RATIO,
    }


def mean_number_of_masks(targets: Sequence[Targets], device: torch.device) -> torch.Tensor | float:
    """Segments per rank, at least 1."""
    count = float(sum(len(t) for t in targets))
    return over_ranks(torch.full((), count, device=device)) if comm.get_world_size() > 1 else max(count, 1.0)


def _by_match(losses: torch.Tensor, matches: Matches) -> torch.Tensor:
    """(T R G,) to (R, T, G)."""
    predictions, total, group = matches.query.shape
    return losses.view(total, predictions, group).transpose(0, 1)


def _matched_logits(output: DecoderOutput, matches: Matches, counts: list[int]) -> torch.Tensor:
    """(T, R G, h, w) mask logits of the matched queries only, in fp32."""
    embeddings = output.mask_embeddings.float()
    _, batch, queries, _ = embeddings.shape
    prediction = torch.arange(len(embeddings), device=embeddings.device)[:, None, None]
    row = (prediction * batch + matches.image[:, None]) * queries + matches.query  # (R, T, G)
    row = row.transpose(0, 1).flatten(1)
    # unlike indexing with several tensors, `index_select` needs no sort in its backward pass
    chosen = embeddings.flatten(0, 2).index_select(0, row.flatten()).view(*row.shape, -1)
    features = output.mask_features.float()
    maps = [
        linear(e.flatten(0, 1), f.mT).unflatten(0, e.shape[:2])
        for e, f in zip(chosen.split(counts), features.flatten(2), strict=True)
    ]
    return torch.cat(maps).unflatten(-1, features.shape[-2:])


def _least(values: torch.Tensor, count: int) -> torch.Tensor:
    """(M, count) indices of the smallest of (M, N) values, in any order."""
    if not computes_here(values):
        return values.topk(count, dim=1, largest=False, sorted=False).indices
    # several times faster than `topk`
    return torch.from_numpy(np.argpartition(values.numpy(), count - 1, axis=1)[:, :count])
