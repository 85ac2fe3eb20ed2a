"""From a data-set dict to what a model takes: read, one geometric view, targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T

from ..errors import DatasetError
from ..masks.bits import mask_bits
from ..masks.storage import MaskFolder
from .compact import Inside, MaskBits, SegmentMap
from .images import read_image
from .panoptic_png import read_panoptic, segment_ids
from .sizes import read_out_size
from .views import ResizeShortSide, View, WeakGeometry, Window


def panoptic_targets(ids: np.ndarray, segments_info: list[dict], window: Window | None = None) -> SegmentMap:
    """Targets of the segments that are visible in `ids` (H, W), or in a window of it. Crowds are left out."""
    chosen = [s for s in segments_info if not s["iscrowd"]]
    row_of = {s["id"]: row for row, s in enumerate(chosen)}
    return SegmentMap.of(ids, [s["category_id"] for s in chosen], row_of, False, window)


def semantic_targets(ids: np.ndarray, segments_info: list[dict], window: Window | None = None) -> SegmentMap:
    """One mask for each class that is visible in `ids` (H, W), or in a window of it.

    Pixels of no segment, and of crowds, are not valid.
    """
    chosen = [s for s in segments_info if not s["iscrowd"]]
    classes = sorted({s["category_id"] for s in chosen})
    row_of = {s["id"]: classes.index(s["category_id"]) for s in chosen}
    return SegmentMap.of(ids, classes, row_of, True, window)


class PanopticTrainMapper:
    """Labelled training images.

    Args:
        geometry: the weak view.
        color: photometric augmentation of the view's image, or None.
        pad_to: side in pixels to which the view is padded on the right and at the bottom, without a loss there.
        pad_value: 0..255.
        targets: `panoptic_targets` or `semantic_targets`.
    """

    def __init__(
        self,
        geometry: WeakGeometry,
        color: Callable[[np.ndarray], np.ndarray] | None,
        pad_to: int,
        pad_value: int = 128,
        targets: Callable[[np.ndarray, list[dict], Window], SegmentMap] = panoptic_targets,
    ) -> None:
        self.geometry, self.color, self.pad_to, self.pad_value = geometry, color, pad_to, pad_value
        self.targets = targets

    def __call__(self, dataset_dict: dict) -> dict:
        """Reads and transforms one image.

        Returns:
            "image" (3, S, S) uint8, "targets" (S x S), "inside" (False = padding), and the keys of `passed_on`. `unpacked` turns
            targets and "inside" into tensors.
        """
        return self.sample_and_view(dataset_dict)[0]

    def sample_and_view(self, dataset_dict: dict) -> tuple[dict, View]:
        """The sample, and the view with its transform."""
        image, rgb = read_image(dataset_dict["file_name"]), read_panoptic(dataset_dict["pan_seg_file_name"])
        if image.shape != rgb.shape:
            raise DatasetError(
                f"{dataset_dict['file_name']} is {image.shape[1]} x {image.shape[0]} but its label "
                f"{dataset_dict['pan_seg_file_name']} is {rgb.shape[1]} x {rgb.shape[0]} pixels"
            )
        view = self.geometry(image)
        targets = self.targets(segment_ids(rgb), dataset_dict["segments_info"], view.transform)
        pixels = view.image if self.color is None else self.color(view.image)
        sample = {
            "image": pad_image(pixels, self.pad_to, self.pad_value),
            "targets": replace(targets, side=self.pad_to),
            "inside": Inside(pixels.shape[0], pixels.shape[1], self.pad_to),
            **passed_on(dataset_dict),
        }
        return sample, view


class MaskTrainMapper:
    """Training images of the decoder warm-up: every class-agnostic mask is a target of class 0; masks may overlap.

    Args:
        masks: the folder of the masks.
        geometry, color, pad_to, pad_value: see `PanopticTrainMapper`.
    """

    def __init__(
        self,
        masks: MaskFolder,
        geometry: WeakGeometry,
        color: Callable[[np.ndarray], np.ndarray] | None,
        pad_to: int,
        pad_value: int = 128,
    ) -> None:
        self.masks, self.geometry, self.color = masks, geometry, color
        self.pad_to, self.pad_value = pad_to, pad_value

    def __call__(self, dataset_dict: dict) -> dict:
        """Reads and transforms one image.

        Returns:
            "image" (3, S, S) uint8, "targets" (S x S), and the keys of `passed_on`. `unpacked` turns targets into tensors.
        """
        file_name = dataset_dict["file_name"]
        image = read_image(file_name)
        codes = self.masks.codes(file_name, image.shape[:2])[1]
        view = self.geometry(image)
        bits, count = mask_bits(codes, view.transform.rows, view.transform.columns)
        pixels = view.image if self.color is None else self.color(view.image)
        return {
            "image": pad_image(pixels, self.pad_to, self.pad_value),
            "targets": MaskBits(torch.from_numpy(bits), count, self.pad_to),
            **passed_on(dataset_dict),
        }


class UnlabeledTrainMapper:
    """Unlabelled training images: a weak view for the teacher and a strong one for the student, pixel on pixel.

    Args:
        geometry: the geometric part, which both views share.
        strong: photometric augmentation of the strong view.
        pad_to, pad_value: see `PanopticTrainMapper`.
        strong_views: number of strong views, V.
    """

    def __init__(
        self,
        geometry: WeakGeometry,
        strong: Callable[[np.ndarray], np.ndarray],
        pad_to: int,
        pad_value: int = 128,
        strong_views: int = 1,
    ) -> None:
        self.geometry, self.strong, self.strong_views = geometry, strong, strong_views
        self.pad_to, self.pad_value = pad_to, pad_value

    def __call__(self, dataset_dict: dict) -> dict:
        """Reads and transforms one image.

        Returns:
            "image" (3, S, S) uint8, the weak view; "strong" (V, 3, S, S) uint8; "inside" (False = padding); and the keys of
            `passed_on`. `unpacked` turns "inside" into a tensor.
        """
        view = self.geometry(read_image(dataset_dict["file_name"]))
        strong = [pad_image(self.strong(view.image), self.pad_to, self.pad_value) for _ in range(self.strong_views)]
        return {
            "image": pad_image(view.image, self.pad_to, self.pad_value),
            "strong": torch.stack(strong),
            "inside": Inside(view.image.shape[0], view.image.shape[1], self.pad_to),
            **passed_on(dataset_dict),
        }


def passed_on(dataset_dict: dict) -> dict:
    """The part of a data-set dict that its sample keeps: "file_name", "image_id", and "caption" where there is one."""
    return {key: dataset_dict[key] for key in ("file_name", "image_id", "caption") if key in dataset_dict}


def pad_image(image: np.ndarray, size: int, value: int) -> torch.Tensor:
    """(H, W, 3) uint8 to (3, size, size), padded on the right and at the bottom."""
    height, width = image.shape[:2]
    padded = np.empty((3, size, size), np.uint8)
    if image.shape[:2] != (size, size):
        padded[:] = value
    for plane, channel in zip(padded, cv2.split(image), strict=True):
        plane[:height, :width] = channel
    return torch.from_numpy(padded)


class TestMapper:
    """Images for inference, with the short side resized to `min_size` and the long side at most `max_size`.

    The output has the size of the file, or that of `read_out_size`.
    """

    __test__ = False  # not a pytest class

    def __init__(self, min_size: int, max_size: int) -> None:
        self.resize = ResizeShortSide([min_size, min_size], max_size)

    def __call__(self, dataset_dict: dict) -> dict:
        """The dict with what `prepare` gives for its file."""
        return {**dataset_dict, **self.prepare(read_image(dataset_dict["file_name"]))}

    def prepare(self, image: np.ndarray) -> dict:
        """Resizes an (H, W, 3) uint8 RGB image: "image" (3, h, w) uint8, and "height" and "width" of the output."""
        height, width = read_out_size(*image.shape[:2])
        inputs = T.AugInput(image)
        self.resize(inputs)
        pixels = torch.from_numpy(inputs.image.transpose(2, 0, 1).copy())
        return {"image": pixels, "height": height, "width": width}
