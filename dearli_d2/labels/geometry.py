"""Masks, run lengths and polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from pycocotools import mask as coco
from scipy import ndimage

from .structures import RLE

_NEIGHBOURS = np.ones((3, 3), bool)  # parts that touch at a corner are one
_LARGEST = 1e8  # pixels
_SLACK = 1.0  # pixels by which a polygon may leave the image; tools round so


def encode(mask: np.ndarray) -> RLE:
    """The run lengths of a (H, W) mask of bools."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))


def decode(rle: RLE) -> np.ndarray:
    """(H, W) bool."""
    return coco.decode(rle).astype(bool)


def area(rle: RLE) -> int:
    """Number of pixels."""
    return int(coco.area(rle))


def union(rles: Sequence[RLE]) -> RLE:
    """The pixels of any of several regions of one image."""
    return rles[0] if len(rles) == 1 else coco.merge(list(rles))


def connected_parts(mask: np.ndarray, min_area: int = 1) -> list[np.ndarray]:
    """The connected parts of a (H, W) mask of bools that have `min_area` pixels or more."""
    parts = ndimage.label(mask, _NEIGHBOURS)[0]
    large = np.bincount(parts.ravel()) >= max(min_area, 1)
    large[0] = False  # the pixels outside
    # a noisy mask has thousands of specks; only the large parts are visited
    return [parts == part for part in np.nonzero(large)[0]]


def is_number(value: Any) -> TypeGuard[float]:
    """True for a number of a JSON file that can be a length or a place in pixels, so not for NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def polygon_problem(points: Any, size: tuple[int, int]) -> str:
    """The reason why a polygon cannot be used, or "".

    Args:
        points: flat list x0, y0, x1, y1, … in pixels.
        size: (height, width) of the image.
    """
    height, width = size
    if not all(is_number(p) for p in points) or len(points) % 2:
        return "polygons that are no list of pairs of numbers"
    if len(points) < 6:
        return "polygons with fewer than three points"
    outside = max(-min(points[::2]), -min(points[1::2]), max(points[::2]) - width, max(points[1::2]) - height)
    if outside > max(_SLACK, 0.01 * max(size)):
        return "polygons that leave the image, so they may be of another size or of another image"
    return ""


def from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> RLE:
    """The pixels inside of any of several polygons, by the rule of pycocotools. See `polygon_problem` for the points."""
    height, width = size
    return union(coco.frPyObjects([[float(v) for v in points] for points in polygons], height, width))


def from_counts(counts: Any, size: tuple[int, int]) -> RLE | None:
    """Run lengths of a COCO file, compressed text or a list of numbers; None unless they fill an image of that size."""
    height, width = size
    if isinstance(counts, (str, bytes)):
        lengths = _decompressed(counts.encode("ascii", "ignore") if isinstance(counts, str) else counts)
    elif isinstance(counts, list) and all(isinstance(c, int) and not isinstance(c, bool) for c in counts):
        lengths = counts
    else:
        return None
    # checked before pycocotools sees them: it trusts what it is given and writes beyond its memory
    if lengths is None or any(length < 0 for length in lengths) or sum(lengths) != height * width:
        return None
    return coco.frPyObjects({"size": [height, width], "counts": lengths}, height, width)


def _decompressed(text: bytes) -> list[int] | None:
    """The lengths of COCO's compressed run lengths; None for a text that is none."""
    lengths: list[int] = []
    value = shift = 0
    for byte in text:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 60:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value |= -1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return None if shift else lengths


def to_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of the parts of a (H, W) mask, each (N, 2) of x, y along the borders of pixels, at least four points.

    A hole is joined to its part by a cut, so that filling the outlines gives the mask back, up to a pixel at its border.
    """
    import cv2

    # drawn at twice the size, outlines run along the borders of pixels and not through their centres
    large = np.repeat(np.repeat(mask.astype(np.uint8), 2, 0), 2, 1)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if hierarchy is None:
        return []
    outer: dict[int, np.ndarray] = {}
    for i, (contour, (*_, parent)) in enumerate(zip(contours, hierarchy[0], strict=True)):
        if parent < 0:
            outer[i] = contour[:, 0]
    for contour, (*_, parent) in zip(contours, hierarchy[0], strict=True):
        if parent >= 0:
            outer[parent] = _with_hole(outer[parent], contour[:, 0])
    return [(points + 0.5) / 2 for points in outer.values() if len(points) >= 3]


def _with_hole(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """An outline that visits a hole by the shortest way between their points and comes back the same way."""
    distances = ((outline[:, None] - hole[None]) ** 2).sum(-1)
    i, j = np.unravel_index(int(distances.argmin()), distances.shape)
    around = np.concatenate([hole[j:], hole[: j + 1]])
    return np.concatenate([outline[: i + 1], around, outline[i:]])


def box(rle: RLE) -> list[int]:
    """[x, y, width, height] in pixels of the pixels of a region."""
    return [int(v) for v in coco.toBbox(rle)]


def joined(outlines: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 2) one outline of several, joined by lines without width, which enclose nothing."""
    if not outlines:
        return np.zeros((0, 2))
    result = outlines[0]
    for other in outlines[1:]:
        result = _with_hole(result, other)
    return result
