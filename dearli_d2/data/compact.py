"""Compact targets: what a training sample carries from the loader to the device, in a fraction of the bytes of bool masks.

`unpacked` turns them into tensors and `Targets` on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..structures import Targets
from .views import Window


@dataclass(frozen=True)
class Inside:
    """The part of a square sample that is not padding. It is at the upper left.

    Args:
        height, width: of this part, in pixels.
        side: of the square, in pixels.
    """

    height: int
    width: int
    side: int

    def unpacked(self, device: torch.device | str) -> torch.Tensor:
        """(side, side) bool on `device`."""
        if self.height == self.width == self.side:
            return torch.ones(self.side, self.side, dtype=torch.bool, device=device)
        inside = torch.zeros(self.side, self.side, dtype=torch.bool, device=device)
        inside[: self.height, : self.width] = True
        return inside


@dataclass(frozen=True)
class SegmentMap:
    """Targets that do not overlap, as a map with the number of the segment of each pixel.

    Args:
        labels: (N,) int64 classes of the segments.
        numbers: (H, W) uint8, int16 or int32. 1..N is the segment of the pixel, 0 is no segment.
        ignores: True if pixels of no segment are not valid. Otherwise only padding is not valid.
        side: of the square to which the targets are padded at the right and at the bottom, in pixels; None = no padding.
    """

    labels: torch.Tensor
    numbers: torch.Tensor
    ignores: bool
    side: int | None = None

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        classes: Sequence[int],
        row_of: Mapping[int, int],
        ignores: bool,
        window: Window | None = None,
    ) -> SegmentMap:
        """The targets that are visible in a map of ids.

        Args:
            ids: (H, W) integers, at least 0.
            classes: of all targets.
            row_of: the row in `classes` for each id. Other ids belong to no target.
            ignores: see the class.
            window: the part that is read; None = all.
        """
        kinds = (np.uint8, np.int16, np.int32)
        kind = next(k for k in kinds if len(classes) <= np.iinfo(k).max)
        # up to 2^24 entries, but zeros take no memory before they are read or written
        table = np.zeros(int(ids.max(initial=0)) + 1, kind)
        known = [(i, row + 1) for i, row in row_of.items() if i < len(table)]
        table[[i for i, _ in known]] = [number for _, number in known]
        numbers = table[ids]
        if window is not None:
            numbers = window.apply_segmentation(numbers)
        seen = _seen(numbers, len(classes))
        if not seen.all():
            numbers = np.concatenate([[0], np.cumsum(seen)]).astype(kind)[numbers]
        labels = [c for c, shown in zip(classes, seen.tolist(), strict=True) if shown]
        return cls(torch.tensor(labels, dtype=torch.int64), torch.from_numpy(numbers), ignores)

    def unpacked(self, device: torch.device | str) -> Targets:
        """The targets on `device`."""
        numbers, inside = _squared(self.numbers.to(device, non_blocking=True), self.side)
        rows = torch.arange(1, len(self.labels) + 1, dtype=numbers.dtype, device=numbers.device)
        masks, valid = numbers == rows[:, None, None], numbers != 0 if self.ignores else inside
        return Targets(self.labels.to(device, non_blocking=True), masks, valid)


def _seen(numbers: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: which of the numbers 1..count occur."""
    # a sixteenth of the pixels shows most of them
    seen = np.bincount(numbers[::4, ::4].reshape(-1), minlength=count + 1)[1:] > 0
    missing = np.flatnonzero(~seen)
    if len(missing) > 16:
        return np.bincount(numbers.reshape(-1), minlength=count + 1)[1:] > 0
    seen[missing] = [(numbers == number + 1).any() for number in missing]
    return seen


@dataclass(frozen=True)
class MaskBits:
    """Class-agnostic targets that may overlap, as one bit for each mask and pixel.

    Args:
        bits: (ceil(N / 8), H, W) uint8. Mask 8 p + k is bit k of plane p.
        count: N, the number of masks.
        side: see `SegmentMap`.
    """

    bits: torch.Tensor
    count: int
    side: int | None = None

    def unpacked(self, device: torch.device | str) -> Targets:
        """The targets on `device`, all of class 0."""
        bits, inside = _squared(self.bits.to(device, non_blocking=True), self.side)
        weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)[:, None, None]
        # bytes 0 and 1 are bools, so nothing is copied
        masks = (bits[:, None] & weights).ne_(0).view(torch.bool).flatten(0, 1)[: self.count]
        return Targets(torch.zeros(self.count, dtype=torch.int64, device=bits.device), masks, inside)


def _squared(pixels: torch.Tensor, side: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(..., H, W) padded with zeros to (..., side, side), and (side, side) bool of the part that is not padding, None if all is."""
    height, width = pixels.shape[-2:]
    if side is None or height == width == side:
        return pixels, None
    padded = F.pad(pixels, (0, side - width, 0, side - height))
    return padded, Inside(height, width, side).unpacked(pixels.device)


def unpacked(sample: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """A sample of a mapper in the form that a model takes: tensors on `device`, targets as `Targets`, "inside" as (S, S) bool."""
    return {key: _unpacked(value, device) for key, value in sample.items()}


def _unpacked(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return value.unpacked(device) if isinstance(value, Inside | SegmentMap | MaskBits) else value
