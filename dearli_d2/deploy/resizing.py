"""Bilinear resizing of maps with numpy, as torch's `interpolate` does it: half-pixel centres, no antialiasing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Size = tuple[int, int]


def axis_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) float64 weights that resize an axis."""
    if source == target:
        return np.eye(source)
    row = np.arange(target)
    # float32 as in torch: at pixel 2000 its positions are wrong by up to 1e-4 pixels
    scale = np.float32(source) / np.float32(target)
    position = np.maximum(scale * (row.astype(np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = np.minimum(position.astype(np.int64), source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (row, low), 1 - (position - low))
    np.add.at(matrix, (row, np.minimum(low + 1, source - 1)), position - low)
    return matrix


@dataclass(frozen=True)
class Resize:
    """A chain of resizes and cuts of (N, h, w) maps, done at once, since each step is linear and treats rows and columns apart.

    Attributes:
        rows: (H, h) float32 weights.
        columns: (taps, W) int64 columns that are read, and
        weights: (taps, W) float32, what each counts.
    """

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray

    @staticmethod
    def chain(source: Size, *steps: tuple[Size, Size]) -> Resize:
        """Makes the chain.

        Args:
            source: (h, w).
            steps: sizes to resize to, each with the size (height, width) that is then kept, from the upper left corner.
        """
        matrices = []
        for axis in (0, 1):
            matrix = np.eye(source[axis])
            for resized, kept in steps:
                matrix = axis_matrix(len(matrix), resized[axis])[: kept[axis]] @ matrix
            matrices.append(matrix)
        taps = int((matrices[1] != 0).sum(1).max())
        columns = np.argsort(matrices[1] == 0, axis=1, kind="stable")[:, :taps]
        weights = np.take_along_axis(matrices[1], columns, 1)
        return Resize(matrices[0].astype(np.float32), columns.T.copy(), weights.T.astype(np.float32))

    @property
    def size(self) -> Size:
        """(H, W) of the result."""
        return len(self.rows), self.columns.shape[1]

    def __call__(self, maps: np.ndarray, top: int = 0, bottom: int | None = None) -> np.ndarray:
        """(N, h, w) float32 to rows `top` to `bottom` of the result, (N, bottom - top, W)."""
        rows = self.rows[top:bottom]
        first, end = used(rows)
        part = maps[:, first:end]
        wide = self.weights[0] * part.take(self.columns[0], 2)
        for columns, weights in zip(self.columns[1:], self.weights[1:], strict=True):
            wide += weights * part.take(columns, 2)
        result: np.ndarray = rows[:, first:end] @ wide
        return result


def used(rows: np.ndarray) -> tuple[int, int]:
    """The first of the source's rows that weights (H, h) read, and the one behind the last."""
    places = np.flatnonzero(rows.any(0))
    return int(places[0]), int(places[-1]) + 1


def resize(maps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(N, h, w) float32 to (N, *size)."""
    if maps.shape[1:] == tuple(size):
        return maps
    target = (size[0], size[1])
    return Resize.chain(maps.shape[1:], (target, target))(maps)
