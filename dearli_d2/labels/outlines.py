"""Outlines of shapes that tools describe by a few numbers: rectangles and ellipses, perhaps rotated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import geometry
from .structures import RLE

_CORNERS = 72  # of an ellipse


def rectangle(left: float, top: float, width: float, height: float, degrees: float = 0.0, about: str = "corner") -> list[float]:  # fmt: skip
    """Corners x0, y0, x1, y1, … of a rectangle.

    Args:
        left: of the rectangle before it is rotated, in pixels, as all lengths here.
        top: likewise.
        width: likewise.
        height: likewise.
        degrees: by which it is rotated clockwise, as one sees it.
        about: the point that stays where it is, "corner" (left, top) or "centre".
    """
    fixed = (left, top) if about == "corner" else (left + width / 2, top + height / 2)
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    return _rotated(np.array(corners), fixed, degrees)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> list[float]:
    """Points x0, y0, x1, y1, … of an ellipse around (x, y) that is rotated clockwise, as one sees it."""
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    points = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], 1)
    return _rotated(points, (x, y), degrees)


def _rotated(points: np.ndarray, fixed: tuple[float, float], degrees: float) -> list[float]:
    angle = math.radians(degrees) if geometry.is_number(degrees) else math.nan
    cos, sin = math.cos(angle), math.sin(angle)
    turned: list[float] = ((points - fixed) @ np.array([[cos, sin], [-sin, cos]]) + fixed).ravel().tolist()
    return turned


def problem(points: list[float], size: tuple[int, int]) -> str:
    """The reason why a rectangle or an ellipse cannot be drawn, or "". Unlike a polygon it may leave the image in part.

    Args:
        points: flat list x0, y0, x1, y1, … in pixels.
        size: (height, width) of the image.
    """
    height, width = size
    if not all(geometry.is_number(v) for v in points):
        return "rectangles or ellipses with something that is no number"
    xs, ys = points[::2], points[1::2]
    if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height:
        return "rectangles or ellipses outside of the image"
    if max(xs) - min(xs) > 3 * max(size) or max(ys) - min(ys) > 3 * max(size):
        return "rectangles or ellipses much larger than the image"
    return ""


def fills(lengths: list[int], box: Sequence[int], size: tuple[int, int]) -> bool:
    """True if run lengths fill a box that lies in the image; the arguments are those of `from_row_runs`."""
    left, top, width, height = box
    inside = min(left, top) >= 0 and min(width, height) > 0 and left + width <= size[1] and top + height <= size[0]
    return inside and min(lengths, default=-1) >= 0 and sum(lengths) == width * height


def from_row_runs(lengths: list[int], box: Sequence[int], size: tuple[int, int]) -> RLE:
    """The region of run lengths that go along the rows of a box, first of pixels outside. They must fill it, see `fills`.

    Args:
        lengths: of the runs.
        box: (left, top, width, height) in pixels.
        size: (height, width) of the image, which holds the box.
    """
    left, top, width, height = box
    mask = np.zeros(size, bool)
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    mask[top : top + height, left : left + width] = inside.reshape(height, width)
    return geometry.encode(mask)


def row_runs(mask: np.ndarray) -> list[int]:
    """Run lengths along the rows of a (H, W) mask, first of pixels outside (perhaps 0)."""
    flat = np.concatenate([[False], mask.ravel(), [not mask.ravel()[-1]]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(changes, prepend=0).tolist()
    return lengths
