"""Class-agnostic masks without a network: graph-based segmentation (Felzenszwalb and Huttenlocher 2004) at two scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from skimage.segmentation import felzenszwalb

from ..data.sizes import resize_labels
from .storage import encode

LONG_SIDE = 1024
"""Larger images are segmented at this size, as SAM's are; 12 megapixels of noise took three minutes."""


class ClassicalGenerator:
    """Makes masks without SAM's weights, by Felzenszwalb's segmentation. It has the interface of `SamGenerator`.

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

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[dict]]:
        """(H, W, 3) uint8 RGB images to the annotations of each, see `MaskFolder`."""
        return [self._annotations(image) for image in images]

    def _annotations(self, image: np.ndarray) -> list[dict]:
        size = image.shape[:2]
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
        return [annotation(resize_labels(mask, size)) for mask in masks]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def annotation(mask: np.ndarray, predicted_iou: float = 1.0, stability_score: float = 1.0) -> dict:
    """Annotation of a (H, W) bool mask that is not empty."""
    rows, columns = np.nonzero(mask)
    return {
        "segmentation": encode(mask),
        "area": len(rows),
        "bbox": [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
        "predicted_iou": predicted_iou,
        "stability_score": stability_score,
    }
