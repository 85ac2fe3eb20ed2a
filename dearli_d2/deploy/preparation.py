"""From an image to the input of an exported graph, as `metadata.Preparation` says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ..data.sizes import short_side_size, window_starts
from .metadata import Preparation
from .resizing import Size, resize


def resized_image(image: np.ndarray, preparation: Preparation) -> np.ndarray:
    """(H, W, 3) uint8 RGB at the size that the model wants it."""
    height, width = image.shape[:2]
    if preparation.static is not None:
        scale = min(side / length for side, length in zip(preparation.static, (height, width), strict=True))
        size = max(round(scale * height), 1), max(round(scale * width), 1)
    else:
        size = short_side_size(height, width, preparation.min_size, preparation.max_size)
    if size == (height, width):
        return image
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], Image.Resampling.BILINEAR))


def input_size(size: Size, preparation: Preparation) -> Size:
    """The size of the graph's input for a resized image, or a window of it."""
    if preparation.static is not None:
        return preparation.static
    divisor = preparation.divisor
    if preparation.fit == "resize":
        height, width = (max(1, (2 * side + divisor) // (2 * divisor)) * divisor for side in size)
    else:
        height, width = (-(-max(side, preparation.least) // divisor) * divisor for side in size)
    return height, width


def network_input(image: np.ndarray, preparation: Preparation) -> np.ndarray:
    """(h, w, 3) uint8 RGB to the (1, 3, H, W) float32 input of the graph."""
    channels = image if preparation.channels == "RGB" else image[..., ::-1]
    mean, std, pad = (np.array(x, np.float32) for x in (preparation.mean, preparation.std, preparation.pad))
    normalized = ((channels.astype(np.float32) - mean) / std).transpose(2, 0, 1)
    size = input_size(image.shape[:2], preparation)
    if preparation.fit == "resize":
        return np.ascontiguousarray(resize(normalized, size))[None]
    padded = np.empty((1, 3, *size), np.float32)
    padded[:] = ((pad - mean) / std)[:, None, None]
    padded[0, :, : image.shape[0], : image.shape[1]] = normalized
    return padded


def windows(image: np.ndarray, preparation: Preparation) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the windows over a resized image."""
    for top in window_starts(image.shape[0], preparation.window, preparation.window_stride):
        for left in window_starts(image.shape[1], preparation.window, preparation.window_stride):
            yield slice(top, top + preparation.window), slice(left, left + preparation.window)
