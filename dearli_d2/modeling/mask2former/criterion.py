"""Set criteria with deep supervision: queries are matched with segments, all predictions at once (Mask2Former)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Sized
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import nn

from ...structures import Targets
from ..ranks import over_ranks
from .mask_losses import PointMaskLosses, point_options
from .matcher import Matcher, Matches, build_matcher, loss_weights
from .transformer_decoder import DecoderOutput

Target = TypeVar("Target", bound=Sized)
"""What is known of an image; its length is the number of segments."""


class Criterion(nn.Module, ABC, Generic[Target]):
    """Matches the queries of a whole batch, then computes the losses of each group of its images.

    A subclass says in `losses` what they are.

    Args:
        num_classes: K.
        matcher: finds the pairs of queries and segments.
    """

    def __init__(self, num_classes: int, matcher: Matcher[Target]) -> None:
        super().__init__()
        self.num_classes, self.matcher = num_classes, matcher

    def forward(
        self,
        class_logits: torch.Tensor,
        output: DecoderOutput,
        targets: Sequence[Target],
        groups: Sequence[tuple[str, int]] | None = None,
        matches: Matches | None = None,
    ) -> dict[str, torch.Tensor]:
        """Weighted losses by their published names, the final prediction without a suffix.

        Args:
            class_logits: (R, B, Q, columns); which columns there are is up to the subclass.
            output: the masks.
            targets: one per image, on the device of the logits, all of one size.
            groups: (prefix of the names, number of images) of consecutive parts of the batch, each with losses and
                normalisers of its own; None = one group without a prefix.
            matches: queries of the targets; None = `matcher` finds them.

        Returns:
            Scalars: for each name of `losses`, say "loss_ce", "loss_ce_0" to "loss_ce_{R-2}" and "loss_ce".
        """
        if matches is None:
            matches = self.matcher(class_logits, output, targets)  # of all groups together, so the host waits only here
        counts, losses, start = [len(t) for t in targets], {}, 0
        for prefix, size in groups or [("", len(targets))]:
            stop = start + size
            parts = output.images(start, stop), targets[start:stop], matches.images(start, stop, counts)
            for name, loss in _by_prediction(self.losses(class_logits[:, start:stop], *parts)).items():
                losses[prefix + name] = loss
            start = stop
        return losses

    @abstractmethod
    def losses(
        self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Target], matches: Matches
    ) -> dict[str, torch.Tensor]:
        """Weighted losses of a group of images.

        Args:
            class_logits: (R, B, Q, columns).
            output: the masks.
            targets: of the B images.
            matches: of their segments.

        Returns:
            (R,) each, one value per prediction.
        """


class SetCriterion(Criterion[Targets]):
    """Mask2Former's losses: cross-entropy of the classes, binary cross-entropy and dice of the masks on sampled points.

    Args:
        num_classes: K.
        matcher: finds the pairs.
        class_weight: weight of the cross-entropy; 0 leaves the term out.
        mask_weight: weight of the binary cross-entropy.
        dice_weight: weight of the dice loss.
        no_object_weight: of the no-object class in the cross-entropy.
        num_points: see `PointMaskLosses`.
        oversample_ratio: see `PointMaskLosses`.
        importance_sample_ratio: see `PointMaskLosses`.
    """

    empty_weight: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: Matcher[Targets],
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ) -> None:
        super().__init__(num_classes, matcher)
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.masks = PointMaskLosses(
            num_points=num_points, oversample_ratio=oversample_ratio, importance_sample_ratio=importance_sample_ratio
        )
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("empty_weight", weight, persistent=False)  # derived, so not part of a checkpoint

    def losses(
        self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets], matches: Matches
    ) -> dict[str, torch.Tensor]:
        """See `Criterion.losses`; the columns are K classes and no object."""
        losses = {}
        if self.class_weight:
            losses["loss_ce"] = self.class_weight * self._class_losses(class_logits, targets, matches, output.absent)
        bce, dice = self.masks(output, targets, matches)
        return {**losses, "loss_mask": self.mask_weight * bce, "loss_dice": self.dice_weight * dice}

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


def build_criterion(cfg: CfgNode, matcher: Matcher[Targets] | None = None) -> SetCriterion:
    """The criterion of a config.

    Args:
        cfg: the config.
        matcher: None = `build_matcher` of the config.
    """
    return SetCriterion(
        cfg.MODEL.NUM_CLASSES,
        build_matcher(cfg) if matcher is None else matcher,
        **loss_weights(cfg),
        **point_options(cfg),
        no_object_weight=cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT,
    )


def _by_prediction(losses: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """(R,) losses to scalars, the last one without a suffix."""
    return {
        name if index == len(values) - 1 else f"{name}_{index}": value
        for name, values in losses.items()
        for index, value in enumerate(values.unbind())
    }
