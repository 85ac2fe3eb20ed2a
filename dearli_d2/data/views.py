"""The geometric part of the augmentations, which all views of a sample share (DEARLi, Sec. 4 and supplement A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import cv2
import numpy as np
from detectron2.data import transforms as T
from PIL import Image

_BILINEAR = Image.Resampling.BILINEAR
_MOST_MORE = 64  # pixels; a window starts earlier by at most so many, where its place in the file is exact


@dataclass(frozen=True)
class Window:
    """The geometric transform of a view: a window of the resized image, mirrored or not. The rest of the image is not computed.

    Args:
        size: (height, width) of the file.
        resized: (height, width) of the whole image after resizing.
        corner: (top, left) of the window in the resized image.
        shape: (height, width) of the window.
        mirrored: True if left and right are exchanged.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    shape: tuple[int, int]
    mirrored: bool = False

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """The window of an (H, W, 3) uint8 image, equal to that of Pillow's antialiased bilinear resize of the whole image."""
        rows, columns = (
            _Span.of(*sides) for sides in zip(self.size, self.resized, self.corner, self.shape, strict=True)
        )
        # one side at a time, since Pillow chooses the order of the sides by the size of the result
        part = Image.fromarray(image[rows.source, columns.source])
        part = part.resize((columns.length, part.height), _BILINEAR, (columns.begin, 0, columns.end, part.height))
        part = part.crop((columns.shown.start, 0, columns.shown.stop, part.height))
        part = part.resize((part.width, rows.length), _BILINEAR, (0, rows.begin, part.width, rows.end))
        pixels = np.asarray(part)[rows.shown]
        return cv2.flip(pixels, 1) if self.mirrored else pixels

    def apply_segmentation(self, labels: np.ndarray) -> np.ndarray:
        """The window of (H, W) or (H, W, C) labels of any type, resized as Pillow does with NEAREST."""
        if labels.dtype != np.uint8 or labels.ndim > 2:
            return labels[self.rows][:, self.columns]
        return cv2.transpose(cv2.transpose(labels[self.rows])[self.columns])  # whole rows are copied faster

    @cached_property
    def rows(self) -> np.ndarray:
        """(h,) int32: the row of the file that each row of the window shows."""
        return _nearest(self.size[0], self.resized[0])[self.corner[0] :][: self.shape[0]]

    @cached_property
    def columns(self) -> np.ndarray:
        """(w,) int32: the column of the file that each column of the window shows."""
        columns = _nearest(self.size[1], self.resized[1])[self.corner[1] :][: self.shape[1]]
        return columns[::-1] if self.mirrored else columns


def _nearest(side: int, resized: int) -> np.ndarray:
    """(resized,) int32: which of `side` pixels Pillow's nearest-pixel resize takes."""
    line = Image.fromarray(np.arange(side, dtype=np.int32)[None])
    return np.asarray(line.resize((resized, 1), Image.Resampling.NEAREST))[0]


@dataclass(frozen=True)
class _Span:
    """One side of a window, and the part of it that Pillow computes.

    Args:
        source: pixels of the file that are read.
        begin, end: the part of `source` that is resized, in pixels with fractions.
        length: of the resized part, in pixels.
        shown: the window in the resized part.
    """

    source: slice
    begin: float
    end: float
    length: int
    shown: slice

    @classmethod
    def of(cls, side: int, resized: int, start: int, length: int) -> _Span:
        # Pillow stores begin and end in float32. The rounding error can change a value that lies between two levels. There is no
        # error at multiples of `step`, nor at the ends of the whole side.
        denominator = resized // gcd(side, resized)
        step = denominator // (denominator & -denominator)
        first, end = 0, resized
        if step <= _MOST_MORE:
            first, end = start // step * step, min(-(-(start + length) // step) * step, resized)
        left, right = first * side / resized, end * side / resized
        reach = int(max(side / resized, 1)) + 2  # of the filter
        read = slice(max(int(left) - reach, 0), min(int(right) + reach + 1, side))
        shown = slice(start - first, start - first + length)
        return cls(read, left - read.start, right - read.start, end - first, shown)


@dataclass(frozen=True)
class View:
    """One geometric view of a sample: `image` (H, W, 3) uint8 RGB and the window that it shows, for its labels."""

    image: np.ndarray
    transform: Window


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
        self.resize = ResizeShortSide(self.short_sides, max_size, sample_style="choice")
        self.crop = T.RandomCrop("absolute", (crop_size, crop_size))
        self.flip = T.RandomFlip() if flip else None

    def __call__(self, image: np.ndarray) -> View:
        """`image`: (H, W, 3) uint8."""
        window = self.draw(image.shape[:2])
        return View(window.apply_image(image), window)

    def draw(self, size: tuple[int, int]) -> Window:
        """Draws a window of an image of (height, width) as detectron2's augmentations do."""
        resize = self.resize.get_transform(_blank(size))
        resized = (resize.new_h, resize.new_w) if isinstance(resize, T.ResizeTransform) else size
        crop = self.crop.get_transform(_blank(resized))
        mirrored = self.flip is not None and isinstance(
            self.flip.get_transform(_blank((crop.h, crop.w))), T.HFlipTransform
        )
        return Window(size, resized, (crop.y0, crop.x0), (crop.h, crop.w), mirrored)


def _blank(size: tuple[int, int]) -> np.ndarray:
    """An image that takes no memory, for augmentations that read only its shape."""
    return np.broadcast_to(np.uint8(0), (*size, 3))


def scale_steps(low: float, high: float, step: float = 0.1) -> list[float]:
    """`low`, `low + step`, ..., `high`."""
    return [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]
