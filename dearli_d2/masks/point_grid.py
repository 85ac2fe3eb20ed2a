"""Class-agnostic masks by a network that segments what a point lies on: a grid of points, filtered by quality.

This is the automatic generator of Segment Anything (Kirillov et al. 2023) and of SAM 2 (Ravi et al. 2024) on the whole image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid, calculate_stability_score
from torchvision.ops import batched_nms

from .generator import MaskGenerator
from .run_lengths import RunLengths

_LARGE = 64  # masks at the size of the image at a time
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Features = TypeVar("Features")


class PointNetwork(ABC, Generic[Features]):
    """A network that makes masks from points. `PointGridGenerator` calls it under autocast.

    Attributes:
        package: that the network comes from.
        predicted_iou: least quality of a mask by default, as the network's authors have it.
        mask_threshold: of the logits.
        device: of the weights.
    """

    package: ClassVar[str]
    predicted_iou: ClassVar[float]
    mask_threshold: float = 0.0
    device: torch.device

    @abstractmethod
    def encode(self, images: Sequence[np.ndarray]) -> list[Features]:
        """The features of each of several (H, W, 3) uint8 RGB images, which are computed together."""

    @abstractmethod
    def decode(self, features: Features, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of points.

        Args:
            features: of one image.
            points: (P, 2) float64, x and y as shares of the image's width and height.

        Returns:
            (P, N, h, w) logits and (P, N) predicted IoU. An embedding of the points is fp32 also under autocast: bf16 moves
            them by pixels.
        """

    @abstractmethod
    def enlarge(self, logits: torch.Tensor, features: Features) -> torch.Tensor:
        """(M, h, w) logits in the size of the image."""


@dataclass(frozen=True)
class FoundMasks:
    """The masks of one image.

    Args:
        masks: M masks.
        boxes: (M, 4) x and y of the first and the last pixel.
        scores: predicted IoU of each.
        stability: stability score of each.
    """

    masks: RunLengths
    boxes: np.ndarray
    scores: list[float]
    stability: list[float]


class PointGridGenerator(MaskGenerator[FoundMasks]):
    """Makes masks of a grid of points on the whole image, in less time and memory than the published generators, and equal to them.

    The images of a call are encoded together, many points are decoded at a time, and only masks of good predicted quality are
    brought to the size of the image.

    Args:
        network: makes masks from points.
        points_per_side: of the grid.
        prompts: number of points decoded at a time.
        predicted_iou: least quality of a mask; None = as the network's authors have it.
        stability: least stability of a mask.
        offset: of the logits in the stability score.
        nms: box IoU above which the worse of two masks is dropped.
        precision: of the network, one of `PRECISIONS`; filters are fp32.
        name, digest: model and checksum of its weights, for the manifest.
    """

    def __init__(
        self,
        network: PointNetwork[Any],
        points_per_side: int = 32,
        prompts: int = 256,
        predicted_iou: float | None = None,
        stability: float = 0.95,
        offset: float = 1.0,
        nms: float = 0.7,
        precision: str = "fp32",
        name: str = "",
        digest: str = "",
    ) -> None:
        self.network, self.prompts = network, prompts
        self.predicted_iou = network.predicted_iou if predicted_iou is None else predicted_iou
        self.points_per_side, self.stability = points_per_side, stability
        self.offset, self.nms, self.precision = offset, nms, precision
        self.name, self.digest = name, digest
        self.points = torch.from_numpy(build_point_grid(points_per_side)).to(network.device)

    def settings(self) -> dict[str, Any]:
        """The entries of the manifest that the masks depend on."""
        names = ("points_per_side", "predicted_iou", "stability", "offset", "nms")
        return {
            "generator": self.network.package,
            "model": self.name,
            "weights_sha256": self.digest,
            "options": {name: getattr(self, name) for name in names},
            "precision": self.precision,
        }

    @torch.no_grad()
    def find(self, images: Sequence[np.ndarray]) -> list[FoundMasks]:
        """See `MaskGenerator`."""
        with self._autocast():
            features = self.network.encode(images)
        return [self._found(f, image.shape[:2]) for f, image in zip(features, images, strict=True)]

    def annotations(self, found: FoundMasks) -> list[dict[str, Any]]:
        """See `MaskGenerator`."""
        texts, areas = found.masks.encoded()
        return [
            {
                "segmentation": {"size": list(found.masks.size), "counts": text},
                "area": area,
                "bbox": [left, top, right - left + 1, bottom - top + 1],
                "predicted_iou": score,
                "stability_score": stable,
            }
            for text, area, (left, top, right, bottom), score, stable in zip(
                texts, areas, found.boxes.tolist(), found.scores, found.stability, strict=True
            )
        ]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.network.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32", cache_enabled=True
        )

    def _found(self, features: Any, size: tuple[int, int]) -> FoundMasks:
        parts = [self._good(features, points) for points in self.points.split(self.prompts)]
        logits, scores, stability, boxes = (torch.cat(values) for values in zip(*parts, strict=True))
        kept = batched_nms(boxes.float(), scores, torch.zeros_like(scores), self.nms)
        large = (self.network.enlarge(part, features) for part in logits[kept].split(_LARGE))
        masks = RunLengths.joined([RunLengths.of(part > self.network.mask_threshold) for part in large], size)
        return FoundMasks(masks, boxes[kept].cpu().numpy(), scores[kept].tolist(), stability[kept].tolist())

    def _good(
        self, features: Any, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The good masks of (P, 2) points: (M, h, w) logits, (M,) predicted IoU, (M,) stability, (M, 4) boxes.

        The logits keep the decoder's size. Thousands of masks at the size of a photograph would need gigabytes.
        """
        with self._autocast():
            logits, quality = self.network.decode(features, points)
        good = quality.float() > self.predicted_iou  # bringing masks to full size is most of the work
        logits, scores = logits[good].float(), quality[good].float()
        stability, boxes, full = [scores[:0]], [points.new_zeros(0, 4, dtype=torch.long)], [good.new_zeros(0)]
        for part in logits.split(_LARGE):
            large = self.network.enlarge(part, features)
            stability.append(calculate_stability_score(large, self.network.mask_threshold, self.offset))
            mask = large > self.network.mask_threshold
            boxes.append(batched_mask_to_box(mask))
            full.append(mask.flatten(1).any(1))
        all_stability = torch.cat(stability)
        chosen = (all_stability >= self.stability) & torch.cat(full)
        return logits[chosen], scores[chosen], all_stability[chosen], torch.cat(boxes)[chosen]
