"""The geometric part of the augmentations, which all views of a sample share (DEARLi, Sec. 4 and supplement A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import transforms as T


@dataclass(frozen=True)
class View:
    """One geometric view of a sample: `image` (H, W, 3) uint8 RGB and the transform that made it, for its labels."""

    image: np.ndarray
    transform: T.TransformList


class ResizeShortSide(T.ResizeShortestEdge):
    """Detectron2's, with at least one pixel a side: the long side's limit leaves nothing of a strip of 5000 x 2."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform of one image; no side of its result is 0."""
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
        return transform


class WeakGeometry:
    """Random scale, random crop, random flip.

    Args:
        crop_size: side of the crop in pixels.
        scales: short sides as multiples of `crop_size`, one is drawn.
        max_size: limit of the long side in pixels.
        flip: horizontal flip with probability 0.5.
    """

    def __init__(self, crop_size: int, scales: Sequence[float], max_size: int, flip: bool = True) -> None:
        self.short_sides = [int(scale * crop_size + 1e-6) for scale in scales]  # 0.7 x 640 is 448
        self.augmentations = [
            ResizeShortSide(self.short_sides, max_size, sample_style="choice"),
            T.RandomCrop("absolute", (crop_size, crop_size)),
        ]
        if flip:
            self.augmentations.append(T.RandomFlip())

    def __call__(self, image: np.ndarray) -> View:
        """`image`: (H, W, 3) uint8."""
        inputs = T.AugInput(image)
        transform = T.AugmentationList(self.augmentations)(inputs)
        return View(inputs.image, transform)


def scale_steps(low: float, high: float, step: float = 0.1) -> list[float]:
    """`low`, `low + step`, ..., `high`."""
    return [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]
