"""Mask2Former's set criterion with deep supervision, all predictions at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import nn

from ...structures import Targets
from ..ranks import over_ranks
from .losses import mask_bce, mask_dice, sample_points, sample_validity
from .matcher import HungarianMatcher, Matches
from .transformer_decoder import DecoderOutput

# masks whose candidate points are drawn at a time: few enough for a CPU's cache, many enough to fill a GPU
_BLOCK = {"cpu": 32, "gpu": 1024}


class SetCriterion(nn.Module):
    """Mask2Former's losses of all predictions at once, on sampled points.

    Args:
        num_classes: K.
        matcher: finds the pairs.
        class_weight, mask_weight, dice_weight: loss weights; 0 leaves the term out.
        no_object_weight: of the no-object class in the cross-entropy.
        num_points: points per mask (12 544 = 112^2).
        oversample_ratio: random candidates per importance-sampled point.
        importance_sample_ratio: share of the points that are the most uncertain candidates (PointRend).
    """

    mask_loss = staticmethod(mask_bce)  # what "loss_mask" is

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
        self,
        class_logits: torch.Tensor,
        output: DecoderOutput,
        targets: Sequence[Targets],
        groups: Sequence[tuple[str, int]] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Weighted losses by their published names, the final prediction without a suffix.

        Args:
            class_logits: (R, B, Q, K + 1). output: the masks. targets: on the device of the logits, all of one size.
            groups: (prefix of the names, number of images) of consecutive parts of the batch, each with losses and
                normalisers of its own; None = one group without a prefix.

        Returns:
            {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0", ..., "loss_dice_{R-2}"}: scalars.
        """
        matches = self.matcher(class_logits, output, targets)  # of all groups: one transfer to the host
        counts, losses, start = [len(t) for t in targets], {}, 0
        for prefix, size in groups or [("", len(targets))]:
            stop = start + size
            parts = output.images(start, stop), targets[start:stop], matches.images(start, stop, counts)
            for name, loss in self._losses(class_logits[:, start:stop], *parts).items():
                losses[prefix + name] = loss
            start = stop
        return losses

    def _losses(
        self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets], matches: Matches
    ) -> dict[str, torch.Tensor]:
        losses = {}
        if self.class_weight:
            losses["loss_ce"] = self.class_weight * self._class_losses(class_logits, targets, matches, output.absent)
        bce, dice = self._mask_losses(output, targets, matches)
        losses["loss_mask"], losses["loss_dice"] = self.mask_weight * bce, self.dice_weight * dice
        last = len(class_logits) - 1
        return {
            name if index == last else f"{name}_{index}": loss
            for name, per_prediction in losses.items()
            for index, loss in enumerate(per_prediction.unbind())
        }

    def _class_losses(
        self, class_logits: torch.Tensor, targets: Sequence[Targets], matches: Matches, absent: torch.Tensor | None
    ) -> torch.Tensor:
        """(R,): cross-entropy over all queries that are not absent, unmatched ones as no-object."""
        logits = class_logits.float()
        no_object = logits.shape[-1] - 1
        classes = torch.full(logits.shape[:3], no_object, device=logits.device)
        labels = torch.cat([t.labels for t in targets])
        prediction = torch.arange(len(logits), device=logits.device)[:, None, None].expand_as(matches.query)
        # a segment without a query writes into a spare column, which is cut off
        column = torch.where(matches.matched > 0, matches.query, logits.shape[2])
        classes = F.pad(classes, (0, 1), value=no_object)
        classes[prediction, matches.image[:, None].expand_as(column), column] = labels[:, None].expand_as(column)
        classes = classes[..., :-1]
        loss = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), self.empty_weight, reduction="none")
        loss, weight = loss.view_as(classes), self.empty_weight[classes]
        if absent is not None:
            loss, weight = loss.masked_fill(absent, 0), weight.masked_fill(absent, 0)
        # of all ranks, like the masks; the published code divides by those of its own rank. Weights may sum to less than 1
        return loss.flatten(1).sum(-1) / over_ranks(weight.flatten(1).sum(-1), least=torch.finfo().tiny)

    def _mask_losses(
        self, output: DecoderOutput, targets: Sequence[Targets], matches: Matches
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(R,) binary cross-entropy and (R,) dice, each averaged over the queries that a segment has, summed over segments
        and divided by the mean number of segments of all ranks."""
        predictions, total, _ = matches.query.shape
        num_masks = self._mean_number_of_masks(targets, output.mask_features.device)
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
            by_image = [p.flatten(0, 1) for p in per_target.split([len(t) for t in targets])]
            validity = sample_validity(targets, by_image)
            valid = None if validity is None else torch.cat(validity).view_as(sampled)
            weight = matches.matched / (num_masks * matches.matched.sum(-1, keepdim=True).clamp(min=1))
            bce = (_by_match(self.mask_loss(sampled, labels, valid), matches) * weight).sum((1, 2))
            dice = (_by_match(mask_dice(sampled, labels, valid), matches) * weight).sum((1, 2))
        return bce, dice

    @torch.no_grad()
    def _choose_points(self, logits: torch.Tensor) -> torch.Tensor:
        """(M, num_points, 2) for (M, 1, h, w) logits: the most uncertain of many random points, and some random ones."""
        block = _BLOCK["cpu" if logits.device.type == "cpu" else "gpu"]
        return torch.cat([self._choose_points_of(part) for part in logits.split(block)])

    def _choose_points_of(self, logits: torch.Tensor) -> torch.Tensor:
        count, device = len(logits), logits.device
        candidates = torch.rand(count, self.num_candidates, 2, device=device)
        certainty = sample_points(logits, candidates)[:, 0].abs_()
        chosen = certainty.topk(self.num_uncertain, dim=1, largest=False, sorted=False).indices
        points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        return torch.cat([points, torch.rand(count, self.num_points - self.num_uncertain, 2, device=device)], 1)

    @staticmethod
    def _mean_number_of_masks(targets: Sequence[Targets], device: torch.device) -> torch.Tensor | float:
        count = float(sum(len(t) for t in targets))
        return over_ranks(torch.tensor(count, device=device)) if comm.get_world_size() > 1 else max(count, 1.0)


def _by_match(losses: torch.Tensor, matches: Matches) -> torch.Tensor:
    """(T R G,) to (R, T, G)."""
    predictions, total, group = matches.query.shape
    return losses.view(total, predictions, group).transpose(0, 1)


def _matched_logits(output: DecoderOutput, matches: Matches, counts: list[int]) -> torch.Tensor:
    """(T, R G, h, w) mask logits of the matched queries only, in fp32."""
    embeddings = output.mask_embeddings.float()
    prediction = torch.arange(len(embeddings), device=embeddings.device)[:, None, None]
    chosen = embeddings[prediction, matches.image[:, None], matches.query]  # (R, T, G, C)
    chosen = chosen.transpose(0, 1).flatten(1, 2)
    features = output.mask_features.float()
    maps = [e @ f for e, f in zip(chosen.split(counts), features.flatten(2), strict=True)]
    return torch.cat(maps).unflatten(-1, features.shape[-2:])
