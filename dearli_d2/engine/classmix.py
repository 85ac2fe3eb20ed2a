"""ClassMix (Olsson et al. 2021) inside a batch: half of the classes of a partner's pseudo-label are pasted, with their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..structures import Targets
from .partners import draw_partners


@dataclass(frozen=True)
class ClassMixPlan:
    """A `CutMixPlan` with any region: `regions[i]` (H, W) bool on the device; None leaves image i as it is."""

    partner: tuple[int, ...]
    regions: tuple[torch.Tensor | None, ...]

    def inside(self, index: int, height: int, width: int, device: torch.device | str) -> torch.Tensor:
        """(H, W) bool: the region of one image."""
        region = self.regions[index]
        return torch.zeros(height, width, dtype=torch.bool, device=device) if region is None else region

    def changes(self, index: int) -> bool:
        """True if anything is pasted into this image."""
        return self.partner[index] != index and self.regions[index] is not None


class ClassMix:
    """Draws which classes of other images of a batch are pasted (Olsson et al. 2021).

    Args:
        probability: of a paste, per image.
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def plan_for(self, targets: Sequence[Targets], rng: np.random.Generator) -> ClassMixPlan:
        """Draws partners (see `draw_partners`) and half of the segments of each, rounded up.

        A partner without segments gives nothing.
        """
        partner = draw_partners(len(targets), rng)
        return ClassMixPlan(partner, tuple(self._region(targets[i], rng) for i in partner))

    def _region(self, target: Targets, rng: np.random.Generator) -> torch.Tensor | None:
        count = len(target)
        chosen = sorted(rng.permutation(count)[: (count + 1) // 2].tolist())
        if rng.random() >= self.probability or not chosen:
            return None
        return target.masks[torch.tensor(chosen).to(target.masks.device, non_blocking=True)].any(0)
