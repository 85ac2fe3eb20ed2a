"""Mask2Former's set criterion with deep supervision, all predictions at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import nn

from ..structures import Targets
from .losses import TargetSampler, mask_bce, mask_dice, sample_logits, valid_at
from .matcher import HungarianMatcher, Matches
from .transformer_decoder import DecoderOutput


class SetCriterion(nn.Module):
    """Args:
        num_classes: K.
        matcher: finds the pairs.
        class_weight, mask_weight, dice_weight: loss weights; 0 leaves the term out.
        no_object_weight: of the no-object class in the cross-entropy.
        num_points: points per mask (12 544 = 112^2).
        oversample_ratio: random candidates per importance-sampled point.
        importance_sample_ratio: share of the points that are the most uncertain candidates (PointRend).
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_sample_ratio)
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("empty_weight", weight, persistent=False)  # derived, so not part of a checkpoint

    def forward(
        self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets]
    ) -> dict[str, torch.Tensor]:
        """Weighted losses by their published names, the final prediction without a suffix.

        Args:
            class_logits: (R, B, Q, K + 1). output: the masks. targets: on the device of the logits.

        Returns:
            {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0", ..., "loss_dice_{R-2}"}: scalars.
        """
        sampler = TargetSampler(targets)
        matches = self.matcher(class_logits, output, targets, sampler)
        losses = {}
        if self.class_weight:
            losses["loss_ce"] = self.class_weight * self._class_losses(class_logits, targets, matches)
        bce, dice = self._mask_losses(output, targets, matches, sampler)
        losses["loss_mask"], losses["loss_dice"] = self.mask_weight * bce, self.dice_weight * dice
        last = len(class_logits) - 1
        return {
            name if index == last else f"{name}_{index}": loss
            for name, per_prediction in losses.items()
            for index, loss in enumerate(per_prediction.unbind())
        }

    def _class_losses(
        self, class_logits: torch.Tensor, targets: Sequence[Targets], matches: Matches
    ) -> torch.Tensor:
        """(R,): cross-entropy over all queries, unmatched ones as no-object."""
        logits = class_logits.float()
        classes = torch.full(logits.shape[:3], logits.shape[-1] - 1, device=logits.device)
        classes[matches.prediction, matches.image, matches.query] = torch.cat([t.labels for t in targets])[matches.target]
        loss = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), self.empty_weight, reduction="none")
        total = self.empty_weight[classes].flatten(1).sum(-1)
        return loss.view(len(logits), -1).sum(-1) / total

    def _mask_losses(
        self, output: DecoderOutput, targets: Sequence[Targets], matches: Matches, sampler: TargetSampler
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(R,) binary cross-entropy and (R,) dice, each summed over masks and divided by the mean number of masks of
        all ranks."""
        predictions = len(output.mask_embeddings)
        num_masks = self._mean_number_of_masks(targets, output.mask_features.device)
        embeddings = output.mask_embeddings[matches.prediction, matches.image, matches.query]  # (M, C)
        # dice sums thousands of points: fp32
        with torch.autocast(embeddings.device.type, enabled=False):
            logits = _logits_of(embeddings.float(), output.mask_features.float(), matches.per_image)
            points = self._choose_points(logits)
            sampled = sample_logits(logits[:, None], points)[:, 0]
            labels = sampler(matches.target, points)
            valid = self._valid(targets, matches, points)
            per_mask = torch.stack([mask_bce(sampled, labels, valid), mask_dice(sampled, labels, valid)], -1)
            sums = per_mask.new_zeros(predictions, 2).index_add(0, matches.prediction, per_mask)
            # without any segment the sum must still be connected to every parameter (data-parallel training)
            sums = sums + 0 * (output.mask_features.float().sum() + output.mask_embeddings.float().sum())
        return (sums / num_masks).unbind(-1)

    @staticmethod
    def _valid(targets: Sequence[Targets], matches: Matches, points: torch.Tensor) -> torch.Tensor | None:
        """(M, P) validity of the points of each pair."""
        if all(t.valid is None for t in targets):
            return None
        per_image = points.split(matches.per_image)
        rows = [valid_at([t], xy.flatten(0, 1)[None]) for t, xy in zip(targets, per_image, strict=True)]
        ones = [row if row is not None else points.new_ones(xy.shape[:2]) for row, xy in zip(rows, per_image, strict=True)]
        return torch.cat([one.view(xy.shape[:2]) for one, xy in zip(ones, per_image, strict=True)])

    @torch.no_grad()
    def _choose_points(self, logits: torch.Tensor) -> torch.Tensor:
        """(M, num_points, 2): the most uncertain of many random points, and some purely random ones."""
        count, device = len(logits), logits.device
        candidates = torch.rand(count, self.num_candidates, 2, device=device)
        uncertainty = -sample_logits(logits[:, None], candidates)[:, 0].abs()
        chosen = uncertainty.topk(self.num_uncertain, dim=1, sorted=False).indices
        points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        return torch.cat([points, torch.rand(count, self.num_points - self.num_uncertain, 2, device=device)], 1)

    @staticmethod
    def _mean_number_of_masks(targets: Sequence[Targets], device: torch.device) -> torch.Tensor | float:
        count = float(sum(len(t) for t in targets))
        world_size = comm.get_world_size()
        if world_size > 1:
            total = torch.tensor(count, device=device)
            torch.distributed.all_reduce(total)
            return (total / world_size).clamp(min=1)
        return max(count, 1.0)


def _logits_of(embeddings: torch.Tensor, features: torch.Tensor, per_image: list[int]) -> torch.Tensor:
    """(M, H, W) mask logits of (M, C) embeddings, image by image; only matched masks exist."""
    maps = [e @ f for e, f in zip(embeddings.split(per_image), features.flatten(2), strict=True)]
    return torch.cat(maps).unflatten(-1, features.shape[-2:])
