"""Split matching: annotated segments and discovered regions are matched with two groups of queries (Split Matching, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from ...modeling.linear import product
from ...modeling.mask2former.criterion import Criterion
from ...modeling.mask2former.losses import image_of_target, mask_iou, sigmoid_focal
from ...modeling.mask2former.mask_losses import PointMaskLosses, mean_number_of_masks
from ...modeling.mask2former.matcher import HungarianMatcher, Matches, assign
from ...modeling.mask2former.pixel_decoder import PixelFeatures
from ...modeling.mask2former.transformer_decoder import DecoderOutput
from ...modeling.norms import normalised_convolution
from ...modeling.ranks import over_ranks
from ...structures import Targets
from .structures import SplitTargets


class FocalIoUMatcher(HungarianMatcher):
    """A matcher whose costs are those of independent (sigmoid) classes and of the soft IoU, which `mask_weight` weighs."""

    def class_cost(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Focal loss of saying yes less that of saying no; see `HungarianMatcher.class_cost`."""
        logits = logits.float()
        yes = sigmoid_focal(logits, torch.ones_like(logits))
        no = sigmoid_focal(logits, torch.zeros_like(logits))
        return self.class_weight * (yes - no).gather(-1, labels[:, None].expand(-1, logits.shape[1], -1))

    def mask_cost(self, logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        probability = logits.sigmoid()
        if valid is not None:
            probability, masks = probability * valid[:, None], masks * valid[:, None]
        overlap = product(probability, masks.mT)
        sizes = probability.sum(-1, keepdim=True) + masks.sum(-1)[:, None]
        dice = 1 - (2 * overlap + 1) / (sizes + 1)
        iou = 1 - (overlap + 1) / (sizes - overlap + 1)
        return self.mask_weight * iou + self.dice_weight * dice


class SplitMatcher:
    """Matches the first queries with annotated segments and the other queries with regions.

    Args:
        matcher: computes the costs.
        num_seen_queries: K_s, the number of queries for segments; all queries where there are no candidate queries.
    """

    def __init__(self, matcher: FocalIoUMatcher, num_seen_queries: int) -> None:
        self.matcher, self.num_seen_queries = matcher, num_seen_queries

    @torch.no_grad()
    def __call__(self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[SplitTargets]) -> Matches:
        """Matches the joint targets of a batch; see `Matcher`.

        Args:
            class_logits: (R, B, Q, N_s + U); the labels of the joint targets are its columns.
            output: the masks.
            targets: one per image.
        """
        num_seen = class_logits.shape[-1] - max(len(t.embeddings) for t in targets)
        groups = (
            (slice(0, self.num_seen_queries), [t.seen for t in targets]),
            (slice(self.num_seen_queries, None), [t.joint(num_seen) for t in targets]),
        )
        costs, shapes = [], []
        for index, (queries, group) in enumerate(groups):
            if index:  # regions alone, with their columns as labels
                group = [
                    Targets(j.labels[len(t.seen) :], j.masks[len(t.seen) :], j.valid)
                    for j, t in zip(group, targets, strict=True)
                ]
            logits = class_logits[:, :, queries]
            counts = [len(t) for t in group]
            part = replace(output, mask_embeddings=output.mask_embeddings[:, :, queries])
            cost = self.matcher.costs(logits, part, group) if sum(counts) else logits[..., :0].float()
            costs.append(cost.flatten())
            shapes.append((cost.shape, counts))
        host = torch.cat(costs).cpu().numpy()  # one transfer
        results, start = [], 0
        for shape, counts in shapes:
            size = int(torch.Size(shape).numel())
            results.append(assign(host[start : start + size].reshape(shape), counts))
            start += size
        return self._joined(results, targets, class_logits.device)

    def _joined(self, results: list[torch.Tensor], targets: Sequence[SplitTargets], device: torch.device) -> Matches:
        """Puts the matches of an image's segments and regions one after another."""
        seen, candidate = results
        candidate = torch.where(candidate < 0, -1, candidate + self.num_seen_queries)
        pairs = zip(
            seen.split([len(t.seen) for t in targets], 1),
            candidate.split([len(t.candidates) for t in targets], 1),
            strict=True,
        )
        query = torch.cat([part for pair in pairs for part in pair], 1)
        return Matches.of(image_of_target(targets), query, device)


class SplitCriterion(Criterion[SplitTargets]):
    """Focal loss of the classes, soft IoU and dice of the masks, of both groups; unmatched queries are of no class at all.

    Args:
        num_classes: N_s, the number of seen classes.
        matcher: finds the pairs.
        class_weight: weight of the focal loss.
        mask_weight: weight of the soft IoU.
        dice_weight: weight of the dice loss.
        cosine_weight: weight of L_cos, see `candidate_cosine`; 0 leaves the term out.
        num_points: see `PointMaskLosses`.
        oversample_ratio: see `PointMaskLosses`.
        importance_sample_ratio: see `PointMaskLosses`.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: SplitMatcher,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        cosine_weight: float = 0.0,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ) -> None:
        super().__init__(num_classes, matcher)
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.cosine_weight = cosine_weight
        self.masks = PointMaskLosses(mask_iou, num_points, oversample_ratio, importance_sample_ratio)

    def losses(
        self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[SplitTargets], matches: Matches
    ) -> dict[str, torch.Tensor]:
        """See `Criterion.losses`; the columns are N_s seen classes and U regions, -inf where an image has fewer."""
        joint = [t.joint(self.num_classes) for t in targets]
        focal = focal_classes(class_logits, joint, matches)
        iou, dice = self.masks(output, joint, matches)
        losses = {
            "loss_ce": self.class_weight * focal,
            "loss_mask": self.mask_weight * iou,
            "loss_dice": self.dice_weight * dice,
        }
        if self.cosine_weight:
            losses["loss_cosine"] = self.cosine_weight * candidate_cosine(output.class_outputs, targets, matches)
        return losses


def focal_classes(logits: torch.Tensor, targets: Sequence[Targets], matches: Matches) -> torch.Tensor:
    """Focal loss of independent classes: the sum over queries and classes, divided by the mean number of segments.

    Args:
        logits: (R, B, Q, N); columns at -inf carry no loss.
        targets: their labels are columns.
        matches: of these segments.

    Returns:
        (R,).
    """
    wanted = torch.zeros_like(logits, dtype=torch.float32)
    labels = torch.cat([t.labels for t in targets])
    row = torch.arange(len(logits), device=logits.device)[:, None, None].expand_as(matches.query)
    image, label = (x[:, None].expand_as(matches.query) for x in (matches.image, labels))
    # a segment without a query writes 0 over a 0, unless its place is taken
    wanted.index_put_((row, image, matches.query, label), matches.matched, accumulate=True)
    exists = torch.isfinite(logits)
    loss = sigmoid_focal(logits.masked_fill(~exists, 0), wanted.clamp(max=1)) * exists
    return loss.flatten(1).sum(1) / mean_number_of_masks(targets, logits.device)


def candidate_cosine(vectors: torch.Tensor, targets: Sequence[SplitTargets], matches: Matches) -> torch.Tensor:
    """L_cos: mean of 1 - cosine between matched candidate queries and the embeddings of their regions, over all ranks.

    Args:
        vectors: (R, B, Q, E) class embeddings of the queries.
        targets: one per image.
        matches: of the joint targets.

    Returns:
        (R,), 0 without regions.
    """
    is_region = torch.cat([torch.tensor([False] * len(t.seen) + [True] * len(t.candidates)) for t in targets])
    rows = is_region.nonzero()[:, 0].to(vectors.device, non_blocking=True)
    query, matched = matches.query[:, rows, 0], matches.matched[:, rows, 0]
    total = over_ranks(matched.sum(1))  # before any return: the other ranks wait for it
    if not len(rows):
        return 0 * vectors.float().sum((1, 2, 3))
    wanted = torch.cat([t.embeddings[t.candidates.labels] for t in targets])
    prediction = torch.arange(len(vectors), device=vectors.device)[:, None]
    with torch.autocast(vectors.device.type, enabled=False):
        chosen = F.normalize(vectors[prediction, matches.image[rows], query].float(), dim=-1)
        distance = 1 - (chosen * wanted).sum(-1)
        return (distance * matched).sum(1) / total


class MultiScaleEnhancement(nn.Module):
    """MFE: an auxiliary head that sums the pixel decoder's levels from coarse to fine. Inference does not run it.

    Args:
        dim: channels of the levels.
        embedding_dim: E, channels of the output.
        levels: number of levels.
        norm: norm of the convolutions, see `normalised_convolution`.
    """

    def __init__(self, dim: int, embedding_dim: int, levels: int = 3, norm: str = "GN") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(*normalised_convolution(dim, norm), nn.ReLU()) for _ in range(levels))
        self.embed = nn.Conv2d(dim, embedding_dim, 1)

    def forward(self, pixels: PixelFeatures) -> torch.Tensor:
        """Returns (B, E, h, w) at the size of the finest level."""
        fused = None
        for block, level in zip(self.blocks, pixels.multi_scale, strict=True):
            refined = block(level)
            if fused is not None:
                refined = refined + F.interpolate(fused, size=level.shape[-2:], mode="bilinear", align_corners=False)
            fused = refined
        return self.embed(fused)


def pixel_losses(logits: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """L_MFE: cross-entropy plus softmax focal loss, mean over the labelled pixels of all ranks; 0 without any.

    Args:
        logits: (B, N, h, w), absent classes at -inf.
        labels: (B, h, w) int64, -1 = none.
        gamma: exponent of the focal loss.
    """
    loss = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="none")
    focal = (1 - (-loss).exp()).clamp(min=0).pow(gamma) * loss
    known = labels >= 0
    return ((loss + focal) * known).sum() / over_ranks(known.sum())


def label_map(targets: Sequence[Targets], size: Sequence[int]) -> torch.Tensor:
    """Class of each pixel, by the nearest pixel of the masks, which must not overlap.

    Args:
        targets: one per image.
        size: height and width of the map.

    Returns:
        (B, *size) int64; -1 = no mask, or not valid.
    """
    maps = []
    for target in targets:
        labels = torch.full(target.masks.shape[1:], -1, device=target.masks.device)
        for label, mask in zip(target.labels, target.masks, strict=True):
            labels = torch.where(mask, label, labels)
        if target.valid is not None:
            labels = torch.where(target.valid, labels, -1)
        maps.append(labels)
    resized = F.interpolate(torch.stack(maps)[:, None].float(), size=tuple(size), mode="nearest")
    return resized[:, 0].long()
