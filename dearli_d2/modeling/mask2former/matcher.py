"""Bipartite matching of queries and segments (Mask2Former; DETR, Sec. 3.1), for all layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from scipy.optimize import linear_sum_assignment

from ...structures import Targets
from ..linear import product
from .losses import image_of_target, random_points, sample_points, sample_validity, softplus_sums
from .transformer_decoder import DecoderOutput

CHUNK_VALUES = {"cpu": 2**21, "gpu": 2**27}
"""Mask logits compared at a time: 8 MB, whose passes stay in a CPU's cache (benchmarks/matching.py); 512 MB on a GPU, where
every chunk costs some twenty kernel launches, and the host solves the assignments of one chunk while the next is computed."""


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

    @classmethod
    def of(cls, image: torch.Tensor, query: torch.Tensor, device: torch.device) -> Matches:
        """The matches of Hungarian matching, brought to the device in one transfer.

        Args:
            image: (T,) on the CPU.
            query: (R, T) int64 on the CPU, as `assign` returns it.
            device: of the result.
        """
        table = torch.cat([image[None], query]).to(device, non_blocking=True)
        query = table[1:, :, None]
        return cls(table[0], query.clamp(min=0), (query >= 0).float())

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
        """Matches all predictions of a batch.

        The host solves the assignments of some images while the device computes the costs of the others.

        Args:
            class_logits: (R, B, Q, K + 1).
            output: the masks.
            targets: of the B images, all of one size.
        """
        return self.of_each([(class_logits, output)], targets)[0]

    @torch.no_grad()
    def of_each(
        self, outputs: Sequence[tuple[torch.Tensor, DecoderOutput]], targets: Sequence[Targets]
    ) -> list[Matches]:
        """Matches several outputs for the same images, each with mask features of its own.

        Args:
            outputs: class logits and masks; see `__call__`.
            targets: of the B images.
        """
        counts, predictions = [len(t) for t in targets], [len(logits) for logits, _ in outputs]
        # all copies are started before the host waits for the first
        sent = [[(images, OnHost(cost)) for images, cost in self._costs(*output, targets)] for output in outputs]
        query = [torch.cat([assign(cost.numpy(), counts[images]) for images, cost in parts], 1) for parts in sent]
        found = Matches.of(image_of_target(targets), torch.cat(query), outputs[0][0].device)
        parts = zip(found.query.split(predictions), found.matched.split(predictions), strict=True)
        return [Matches(found.image, query, matched) for query, matched in parts]

    def class_cost(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, Q, K + 1) logits and (B, N) labels to (B, Q, N), weighted."""
        probability = logits.float().softmax(-1)
        return -self.class_weight * probability.gather(-1, labels[:, None].expand(-1, logits.shape[1], -1))

    def mask_cost(self, logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B, Q, P) logits, (B, N, P) masks, (B, P) validity to (B, Q, N), weighted."""
        return pairwise_mask_cost(logits, masks, valid, self.mask_weight, self.dice_weight)

    def costs(self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets]) -> torch.Tensor:
        """(R, B, Q, N) fp32 with N the largest number of segments in an image; finite everywhere."""
        return torch.cat([cost for _, cost in self._costs(class_logits, output, targets)], 1)

    def _costs(
        self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets]
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yields the costs of a few images at a time: a slice of the batch, and its (R, images, Q, N) costs."""
        device, counts = class_logits.device, [len(t) for t in targets]
        predictions, batch, queries = class_logits.shape[:3]
        width = max(counts)
        if not width:
            yield slice(0, batch), class_logits[..., :0].float()
            return
        # costs are differences of sums over thousands of points: fp32
        with torch.autocast(device.type, enabled=False):
            points = random_points(batch, self.num_points, device)
            features = sample_points(output.mask_features.float(), points)  # (B, C, P)
            column = torch.from_numpy(np.concatenate([np.arange(n, dtype=np.int64) for n in counts]))
            image, column = torch.stack([image_of_target(targets), column]).to(device, non_blocking=True)
            masks = features.new_zeros(batch, width, self.num_points)
            every_mask = torch.cat([t.masks for t in targets])[:, None].float()
            masks[image, column] = sample_points(every_mask, points[image])[:, 0]
            valid = sample_validity(targets, points)
            class_cost = None
            if self.class_weight:
                labels = torch.zeros(batch, width, dtype=torch.int64, device=device)
                labels[image, column] = torch.cat([t.labels for t in targets])
                class_cost = self.class_cost(class_logits.flatten(0, 1), labels.repeat(predictions, 1))
                class_cost = class_cost.view(predictions, batch, queries, width)
            # (B, R Q, C): one product for the queries of all predictions of an image
            embeddings = output.mask_embeddings.transpose(0, 1).flatten(1, 2).float()
            limit = max(1, CHUNK_VALUES["cpu" if device.type == "cpu" else "gpu"] // self.num_points)
            at_once, rows = (
                _equal_parts(batch, limit // (predictions * queries)),
                _equal_parts(predictions * queries, limit),
            )
            for start in range(0, batch, at_once):
                images = slice(start, start + at_once)
                parts = [
                    self.mask_cost(
                        product(part, features[images]), masks[images], None if valid is None else valid[images]
                    )
                    for part in embeddings[images].split(rows, 1)
                ]
                cost = torch.cat(parts, 1).unflatten(1, (predictions, queries)).transpose(0, 1)
                if class_cost is not None:
                    cost = cost + class_cost[:, images]
                # a diverged model must fail at its loss with a name, not inside the solver
                yield images, torch.nan_to_num(cost, nan=0.0, posinf=1e6, neginf=-1e6)


class OnHost:
    """Values that are being copied to the host. `numpy` waits for them."""

    def __init__(self, values: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda and torch.cuda.is_available():
            self._values = values.to("cpu", non_blocking=True)  # to pinned memory
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.cpu()

    def numpy(self) -> np.ndarray:
        """The values, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.numpy()


def _equal_parts(count: int, limit: int) -> int:
    """Size of equal parts of `count`, at most `limit` but at least 1. The last part may be smaller."""
    return -(-count // max(1, -(-count // max(limit, 1))))


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


def assign(costs: np.ndarray, counts: Sequence[int]) -> torch.Tensor:
    """The cheapest assignment of each prediction and image.

    Args:
        costs: (R, B, Q, N).
        counts: number of segments of each image; they are its first columns.

    Returns:
        (R, T) int64 on the CPU: the query of each segment, -1 where there is none.
    """
    query = np.full((len(costs), sum(counts)), -1, np.int64)
    start = 0
    for image, count in enumerate(counts):
        for own, found in zip(costs[:, image, :, :count], query[:, start : start + count], strict=True):
            queries, segments = linear_sum_assignment(own)
            found[segments] = queries
        start += count
    return torch.from_numpy(query)


def pairwise_mask_cost(
    logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None, bce_weight: float, dice_weight: float
) -> torch.Tensor:
    """Weighted binary cross-entropy and dice of every query with every segment.

    Args:
        logits: (B, Q, P).
        masks: (B, N, P) in 0..1.
        valid: (B, P) 0 or 1, or None.
        bce_weight, dice_weight: of the two terms.

    Returns:
        (B, Q, N).
    """
    # bce(x, t) = softplus(x) - x t. A last column of ones gives the sums over the points in the same products
    weight = torch.ones_like(masks[:, :1]) if valid is None else valid[:, None]
    points: torch.Tensor | int = logits.shape[-1] if valid is None else weight.sum(-1, keepdim=True).clamp(min=1)
    columns = torch.cat([masks if valid is None else masks * weight, weight], 1).mT
    probability = logits.sigmoid()
    softplus = softplus_sums(logits, probability, None if valid is None else weight)
    bce = (softplus[..., None] - product(logits, columns[..., :-1])) / points
    overlap = product(probability, columns)
    sizes = overlap[..., -1:] + columns[..., :-1].sum(1, keepdim=True)
    dice = 1 - (2 * overlap[..., :-1] + 1) / (sizes + 1)
    return bce_weight * bce + dice_weight * dice
