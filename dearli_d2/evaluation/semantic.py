"""Mean intersection over union from one confusion matrix."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.panoptic_png import read_panoptic, segment_ids
from ..data.sizes import enlarge_read_out
from ..data.taxonomy import Taxonomy

IGNORE = 255


def confusion(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) counts, rows ground truth, columns prediction; ground truth outside 0..K-1 is ignored."""
    valid = (truth >= 0) & (truth < num_classes)
    index = truth[valid].astype(np.int64) * num_classes + predicted[valid]
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """(K,) IoU in percent from a confusion matrix; NaN for classes in neither ground truth nor prediction."""
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    with np.errstate(invalid="ignore"):
        iou: np.ndarray = 100 * hits / union
    return iou


def mean_iou(matrix: np.ndarray) -> float:
    """Mean IoU in percent over the classes of the ground truth (as benchmarks count)."""
    present = matrix.sum(1) > 0
    return float(class_iou(matrix)[present].mean()) if present.any() else float("nan")


def seen_and_unseen(matrix: np.ndarray, unseen: Collection[int]) -> dict[str, float]:
    """Mean IoU of the seen and of the unseen classes that the ground truth has, and their harmonic mean, 0 if one is 0."""
    present, iou = matrix.sum(1) > 0, class_iou(matrix)
    is_unseen = np.isin(np.arange(len(matrix)), list(unseen))
    seen_iou, unseen_iou = (
        float(iou[present & group].mean()) if (present & group).any() else float("nan")
        for group in (~is_unseen, is_unseen)
    )
    total = seen_iou + unseen_iou
    harmonic = 2 * seen_iou * unseen_iou / total if total != 0 else 0.0
    return {"hIoU": harmonic, "sIoU": seen_iou, "uIoU": unseen_iou}


def read_semantic(dataset_dict: dict[str, Any]) -> np.ndarray:
    """(H, W) contiguous class ids, 255 = ignore: the semantic PNG, or the panoptic one without it."""
    if "sem_seg_file_name" in dataset_dict:
        return read_panoptic(dataset_dict["sem_seg_file_name"])[..., 0]
    ids = segment_ids(read_panoptic(dataset_dict["pan_seg_file_name"]))
    semantic = np.full(ids.shape, IGNORE, dtype=np.uint8)
    for segment in dataset_dict["segments_info"]:
        semantic[ids == segment["id"]] = segment["category_id"]
    return semantic


class SemanticEvaluator(DatasetEvaluator):
    """Mean IoU of "sem_seg" outputs (K, H, W).

    With `unseen` classes it also gives their mean, that of the others, and the harmonic mean of both.
    """

    def __init__(self, taxonomy: Taxonomy, unseen: Collection[int] = ()) -> None:
        self.taxonomy, self.unseen = taxonomy, unseen
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self.matrix = np.zeros((len(self.taxonomy), len(self.taxonomy)), dtype=np.int64)
        self.images: list[tuple[str, float]] = []  # file and mean IoU

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds the "sem_seg" outputs of a batch."""
        for given, output in zip(inputs, outputs, strict=True):
            truth, predicted = read_semantic(given), output["sem_seg"].argmax(0).cpu().numpy()
            image = confusion(enlarge_read_out(predicted, truth.shape), truth, len(self.taxonomy))
            self.matrix += image
            self.images.append((given["file_name"], mean_iou(image)))

    def evaluate(self) -> dict[str, Any] | None:
        """The scores of all images, on the main process.

        Returns:
            {"semantic": {"mIoU", "pixel_accuracy", "per_class": {name: {"IoU"}}, "per_image": [(file, mIoU)], "confusion": K rows of
            K pixel counts, rows ground truth, columns prediction}}.
        """
        parts, images = comm.gather(self.matrix), comm.gather(self.images)
        if not comm.is_main_process():
            return None
        matrix = sum(parts)
        rows = {n: {"IoU": float(v)} for n, v in zip(self.taxonomy.main_names, class_iou(matrix), strict=True)}
        accuracy = 100 * float(np.diag(matrix).sum() / max(matrix.sum(), 1))
        zero_shot = seen_and_unseen(matrix, self.unseen) if self.unseen else {}
        scores = {"mIoU": mean_iou(matrix), **zero_shot, "pixel_accuracy": accuracy, "per_class": rows}
        per_image = [entry for part in images for entry in part]
        return {"semantic": {**scores, "per_image": per_image, "confusion": matrix.tolist()}}
