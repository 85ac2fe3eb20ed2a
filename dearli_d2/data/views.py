"""Augmentations (DEARLi, Sec. 4 and supplement A).

All views of a sample share the geometric part. The photometric parts are those of labelled images (SSD) and of the strong view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from torchvision.transforms import v2


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


class ColorAugmentation:
    """SSD colour distortion: brightness, contrast, saturation, hue, each with probability 0.5."""

    def __init__(self) -> None:
        self.transform = ColorAugSSDTransform(img_format="RGB")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Changes the colours of an (H, W, 3) uint8 image."""
        return self.transform.apply_image(image)


class StrongPhotometry:
    """Colour jitter, greyscale and blur of the strong view.

    CutMix, the last part of the strong view, works on batches (`engine.cutmix`). With INPUT.JITTER the jitter alone also
    changes labelled images.

    Args:
        jitter: brightness, contrast, saturation (relative) and hue (turns, at most 0.5).
        grey_probability, blur_probability, jitter_probability: of each of the three.
        blur_sigma: range in pixels.
    """

    def __init__(
        self,
        jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2),
        grey_probability: float = 0.2,
        blur_probability: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        jitter_probability: float = 1.0,
    ) -> None:
        self.reach = int(np.ceil(3 * blur_sigma[1]))  # of the blur, in pixels
        colors = v2.ColorJitter(*jitter)
        self.transform = v2.Compose(
            [
                colors if jitter_probability == 1 else v2.RandomApply([colors], jitter_probability),
                v2.RandomGrayscale(grey_probability),
                v2.RandomApply([v2.GaussianBlur(2 * self.reach + 1, blur_sigma)], blur_probability),
            ]
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """`image`: (H, W, 3) uint8; no pixel moves."""
        height, width = image.shape[:2]
        # the blur mirrors the border, which a strip narrower than its reach does not have enough of
        missing = [(0, max(self.reach + 1 - side, 0)) for side in (height, width)]
        padded = np.pad(image, (*missing, (0, 0)), mode="edge") if np.any(missing) else image
        pixels = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))
        return self.transform(pixels).numpy().transpose(1, 2, 0)[:height, :width]


def scale_steps(low: float, high: float, step: float = 0.1) -> list[float]:
    """`low`, `low + step`, ..., `high`."""
    return [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]
