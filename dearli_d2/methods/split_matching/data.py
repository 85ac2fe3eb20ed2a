"""Training images, with the views that regions need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from ...data.compact import SegmentMap
from ...data.mappers import PanopticTrainMapper, read_image, semantic_targets
from ...data.panoptic_png import read_panoptic, segment_ids
from ...data.views import WeakGeometry, Window
from ...errors import DatasetError
from .region_folder import RegionFolder


def unannotated_pixels(dataset_dict: dict) -> np.ndarray:
    """(H, W) bool: the pixels that belong to no listed segment."""
    ids = segment_ids(read_panoptic(dataset_dict["pan_seg_file_name"]))
    return ~np.isin(ids, [s["id"] for s in dataset_dict["segments_info"]])


def whole_image(dataset_dict: dict, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads an image as a square.

    Args:
        dataset_dict: the image and its annotation.
        size: side in pixels.

    Returns:
        (3, size, size) uint8; (size, size) bool, the pixels that nobody annotated.
    """
    image = square(read_image(dataset_dict["file_name"]), size)
    return (
        torch.from_numpy(image.transpose(2, 0, 1).copy()),
        torch.from_numpy(square(unannotated_pixels(dataset_dict), size)),
    )


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image or a mask to a square.

    Args:
        image: (H, W, 3) uint8, or (H, W) bool, which is resized by the nearest pixel.
        size: side in pixels.
    """
    if image.dtype == bool:
        return np.array(Image.fromarray(image.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)).astype(
            bool
        )
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def zero_shot_targets(ids: np.ndarray, segments_info: list[dict], window: Window | None = None) -> SegmentMap:
    """Makes `semantic_targets` in which pixels without annotation count as pixels of none of the classes."""
    return replace(semantic_targets(ids, segments_info, window), ignores=False)


class ZeroShotTrainMapper(PanopticTrainMapper):
    """Reads labelled images of the seen classes, and what regions need.

    Args:
        geometry, color, pad_to, pad_value: see `PanopticTrainMapper`.
        unseen: ids that no label may have.
        size: side in pixels of the whole image as CLIP sees it.
        cache: folder of regions; None = they are found during training.
    """

    def __init__(
        self,
        geometry: WeakGeometry,
        color: Callable[[np.ndarray], np.ndarray] | None,
        pad_to: int,
        pad_value: int = 128,
        *,
        unseen: tuple[int, ...],
        size: int,
        cache: RegionFolder | None = None,
    ) -> None:
        super().__init__(geometry, color, pad_to, pad_value, targets=zero_shot_targets)
        self.unseen, self.size, self.cache = set(unseen), size, cache

    def __call__(self, dataset_dict: dict) -> dict:
        """Reads a sample.

        Returns:
            The sample of `PanopticTrainMapper` and "pixels" (S, S) int32, the pixel of the whole image as a square behind
            each pixel of the view (-1 = padding). Also "regions" from the cache, or "whole_image" (3, s, s) uint8 and
            "unannotated" (s, s) bool.

        Raises:
            DatasetError: labels of an unseen class.
        """
        left = {s["category_id"] for s in dataset_dict["segments_info"]} & self.unseen
        if left:
            raise DatasetError(
                f"{dataset_dict['file_name']}: its labels hold the unseen class {min(left)}; training on it is refused"
            )
        sample, view = self.sample_and_view(dataset_dict)
        height, width = dataset_dict["height"], dataset_dict["width"]
        rows, columns = np.arange(height) * self.size // height, np.arange(width) * self.size // width
        moved = view.transform.apply_segmentation(rows[:, None] * self.size + columns)
        pixels = np.full((self.pad_to, self.pad_to), -1, np.int32)
        pixels[: moved.shape[0], : moved.shape[1]] = moved
        sample["pixels"] = torch.from_numpy(pixels)
        cached = None if self.cache is None else self.cache.read(dataset_dict["file_name"])
        if cached is not None:
            return {**sample, "regions": cached}
        whole, unannotated = whole_image(dataset_dict, self.size)
        return {**sample, "whole_image": whole, "unannotated": unannotated}
