"""`Targets`: what a loss learns from, whether annotated or pseudo-labelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Targets:
    """Segments of one image.

    `labels`: (N,) int64 contiguous class ids. `masks`: (N, H, W) bool; may overlap.
    `valid`: (H, W) bool, False = no loss there (padding, ignore); None = valid everywhere.
    """

    labels: torch.Tensor
    masks: torch.Tensor
    valid: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.labels.dim() != 1 or self.masks.dim() != 3 or len(self.labels) != len(self.masks):
            raise ValueError(f"labels {tuple(self.labels.shape)} and masks {tuple(self.masks.shape)} do not fit")
        if self.masks.dtype != torch.bool:
            raise ValueError(f"masks must be bool, not {self.masks.dtype}")
        if self.valid is not None and self.valid.shape != self.masks.shape[1:]:
            raise ValueError(f"valid {tuple(self.valid.shape)} and masks {tuple(self.masks.shape)} do not fit")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on `device`."""
        valid = None if self.valid is None else self.valid.to(device, non_blocking=True)
        return Targets(self.labels.to(device, non_blocking=True), self.masks.to(device, non_blocking=True), valid)

    def padded(self, height: int, width: int) -> Targets:
        """Padded on the right and at the bottom to (height, width); padding is not valid."""
        h, w = self.masks.shape[-2:]
        if (h, w) == (height, width):
            return self
        masks = self.masks.new_zeros(len(self), height, width)
        masks[:, :h, :w] = self.masks
        valid = masks.new_zeros(height, width)
        valid[:h, :w] = True if self.valid is None else self.valid
        return replace(self, masks=masks, valid=valid)

    def semantic(self, ignore: int = 255) -> torch.Tensor:
        """(H, W) int64 class of each pixel; `ignore` where there is no mask or the pixel is not valid.

        Where masks overlap the first one counts.
        """
        if not len(self):
            return self.labels.new_full(self.masks.shape[1:], ignore)
        known = self.masks.any(0) if self.valid is None else self.masks.any(0) & self.valid
        return torch.where(known, self.labels[self.masks.byte().argmax(0)], ignore)

    def panoptic(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(H, W) int32 map of segment ids 1, 2, ... (0 = none), and segments {"id", "category_id"}.

        Where masks overlap the later one shows.
        """
        ids = np.zeros(self.masks.shape[1:], np.int32)
        for number, mask in enumerate(self.masks.cpu().numpy(), start=1):
            ids[mask] = number
        return ids, [{"id": i, "category_id": c} for i, c in enumerate(self.labels.tolist(), start=1)]
