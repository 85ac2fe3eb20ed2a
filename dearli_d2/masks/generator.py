"""What all generators of masks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

Found = TypeVar("Found")


class MaskGenerator(ABC, Generic[Found]):
    """Makes the masks of images in two steps, so that the second one may run beside the next images' first one.

    A mask's annotation is {"segmentation" (compressed RLE), "area", "bbox" (x, y, w, h), "predicted_iou", "stability_score"}.
    """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The entries of the manifest that the masks depend on."""

    @abstractmethod
    def find(self, images: Sequence[np.ndarray]) -> Sequence[Found]:
        """The first step, on the device: (H, W, 3) uint8 RGB images to what was found in each."""

    @abstractmethod
    def annotations(self, found: Found) -> list[dict[str, Any]]:
        """The second step, on the host and in any thread: the annotations of an image."""

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        """Both steps: images to the annotations of each."""
        return [self.annotations(found) for found in self.find(images)]
