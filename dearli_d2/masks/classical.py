"""Class-agnostic masks without a network: graph-based segmentation (Felzenszwalb and Huttenlocher 2004) at two scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from skimage.segmentation import felzenszwalb

from ..data.sizes import resize_labels
from .generator import MaskGenerator
from .storage import encode

LONG_SIDE = 1024
"""Larger images are segmented at this size, as SAM's are; 12 megapixels of noise took three minutes."""


class ClassicalGenerator(MaskGenerator[np.ndarray]):
    """Makes masks without SAM's weights, by Felzenszwalb's segmentation.

    Args:
        scales: of the segmentation; larger ones give larger regions.
        sigma: of the smoothing before the segmentation, in pixels.
        min_share: least area of a region, as a share of the image.
        same: masks with a larger intersection over union than this are one mask.
    """

    def __init__(
        self,
        scales: Sequence[float] = (300.0, 1000.0),
        sigma: float = 0.8,
        min_share: float = 0.006,
        same: float = 0.85,
    ) -> None:
        self.scales, self.sigma, self.min_share, self.same = tuple(scales), sigma, min_share, same

    def settings(self) -> dict:
        """The entries of the manifest that the masks depend on."""
        options = {"scales": list(self.scales), "sigma": self.sigma, "min_share": self.min_share, "same": self.same}
        return {"generator": "felzenszwalb", "options": options}

    def find(self, images: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The images; `annotations` does all of the work, which needs no device."""
        return images

    def annotations(self, found: np.ndarray) -> list[dict]:
        """(H, W, 3) uint8 RGB image to its annotations."""
        image, size = found, found.shape[:2]
        if max(size) > LONG_SIDE:
            picture = Image.fromarray(image)
            picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.BILINEAR)
            image = np.asarray(picture)
        masks: list[np.ndarray] = []
        least = max(1, round(self.min_share * image.shape[0] * image.shape[1]))
        for scale in self.scales:
            regions = felzenszwalb(image, scale=scale, sigma=self.sigma, min_size=least, channel_axis=-1)
            for region in range(regions.max() + 1):
                mask = regions == region
                if not any(_iou(mask, other) > self.same for other in masks):
                    masks.append(mask)
        return [_annotation(resize_labels(mask, size)) for mask in masks]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def _annotation(mask: np.ndarray) -> dict:
    """Annotation of a (H, W) bool mask that is not empty. There are no scores, so they are 1."""
    rows, columns = np.nonzero(mask)
    return {
        "segmentation": encode(mask),
        "area": len(rows),
        "bbox": [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
        "predicted_iou": 1.0,
        "stability_score": 1.0,
    }
