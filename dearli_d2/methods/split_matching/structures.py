"""`Regions` of an image, and what the losses learn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...structures import Targets


@dataclass(frozen=True)
class Regions:
    """Regions of un-annotated pixels of one image.

    Args:
        cells: (h, w) uint8 over the whole image, 0 = none, 1..U.
        embeddings: (U, E) fp32, of unit norm.
        size: side in pixels of the square to which the image was resized.
    """

    cells: torch.Tensor
    embeddings: torch.Tensor
    size: int

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True)
class SplitTargets:
    """The targets of one image: annotated segments and regions.

    Args:
        seen: annotated segments, with labels 0..N_s - 1.
        candidates: regions; label j is row j of `embeddings`.
        embeddings: (U, E), unit norm.
    """

    seen: Targets
    candidates: Targets
    embeddings: torch.Tensor

    def __len__(self) -> int:
        return len(self.seen) + len(self.candidates)

    def joint(self, num_seen: int) -> Targets:
        """The segments and then the regions, which get the labels N_s + j.

        Args:
            num_seen: N_s.
        """
        labels = torch.cat([self.seen.labels, self.candidates.labels + num_seen])
        return Targets(labels, torch.cat([self.seen.masks, self.candidates.masks]), self.seen.valid)
