"""Augmentations (DEARLi, supplement A): the geometric part of a view, and the photometric part of labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform


@dataclass(frozen=True)
class View:
    """One geometric view of a sample: `image` (H, W, 3) uint8 RGB and the transform that made it, for its labels."""

    image: np.ndarray
    transform: T.TransformList


class WeakGeometry:
    """Random scale, random crop, random flip.

    Args:
        crop_size: side of the crop in pixels.
        scales: short sides as multiples of `crop_size`, one is drawn.
        max_size: limit of the long side in pixels.
        flip: horizontal flip with probability 0.5.
    """

    def __init__(self, crop_size: int, scales: Sequence[float], max_size: int, flip: bool = True) -> None:
        short_sides = [int(scale * crop_size) for scale in scales]
        self.augmentations = [
            T.ResizeShortestEdge(short_sides, max_size, sample_style="choice"),
            T.RandomCrop("absolute", (crop_size, crop_size)),
        ]
        if flip:
            self.augmentations.append(T.RandomFlip())

    def __call__(self, image: np.ndarray) -> View:
        """`image`: (H, W, 3) uint8."""
        inputs = T.AugInput(image)
        transform = T.AugmentationList(self.augmentations)(inputs)
        return View(inputs.image, transform)


class ColorAugmentation:
    """SSD colour distortion: brightness, contrast, saturation, hue, each with probability 0.5."""

    def __init__(self) -> None:
        self.transform = ColorAugSSDTransform(img_format="RGB")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.transform.apply_image(image)


def scale_steps(low: float, high: float, step: float = 0.1) -> list[float]:
    """`low`, `low + step`, ..., `high`."""
    return [round(low + i * step, 4) for i in range(round((high - low) / step) + 1)]
