"""Sizes of images and labels on their way through a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

READ_OUT_PIXELS = 2**22  # twice those of a Cityscapes image


def short_side_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The size (height, width) of an image whose short side gets `min_size` pixels, and whose long side at most `max_size`.

    It is that of Detectron2's `ResizeShortestEdge`, but no side is 0, which the limit of the long side would make of a strip of
    5000 x 2. `min_size` 0 keeps the size.
    """
    if not min_size:
        return height, width
    scale = min_size / min(height, width)
    sides = (float(min_size), scale * width) if height < width else (scale * height, float(min_size))
    if max(sides) > max_size:
        scale = max_size / max(sides)
        sides = sides[0] * scale, sides[1] * scale
    return max(int(sides[0] + 0.5), 1), max(int(sides[1] + 0.5), 1)


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Starts of sliding windows over an axis of `size` pixels; the last one is moved back to end at the border."""
    last = max(size - window, 0)
    return [*range(0, last, stride), last]


def read_out_size(height: int, width: int, limit: int = 0) -> tuple[int, int]:
    """The size at which masks of all queries and scores of all classes are read out.

    It is the size of the image, limited to `limit` pixels, or to `READ_OUT_PIXELS`: at the size of a 12-megapixel photograph the
    masks of 200 queries alone take 9.6 GB.
    """
    scale = math.sqrt((limit or READ_OUT_PIXELS) / (height * width))
    return (height, width) if scale >= 1 else (max(round(height * scale), 1), max(round(width * scale), 1))


def resize_labels(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The nearest pixel's label, (H, W) to `size`."""
    height, width = size
    if labels.shape == (height, width):
        return labels
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    return labels[rows][:, columns]


def enlarge_read_out(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Labels of each pixel that were read out for an image of `size`, at that size.

    Raises:
        ValueError: they have another size than `read_out_size` says.
    """
    if labels.shape != read_out_size(*size):
        raise ValueError(f"an image of {tuple(size)} is read out at {read_out_size(*size)}, not at {labels.shape}")
    return resize_labels(labels, size)
