"""Panoptic quality (Kirillov et al. 2019, eq. 1), streaming over images in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.panoptic_png import read_panoptic, segment_ids
from ..data.sizes import enlarge_read_out
from ..data.taxonomy import Taxonomy


@dataclass
class PanopticQuality:
    """Counts per class; add images, merge ranks, read scores. All arrays are (K,)."""

    num_classes: int
    iou: np.ndarray = field(init=False)
    tp: np.ndarray = field(init=False)
    fp: np.ndarray = field(init=False)
    fn: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.iou = np.zeros(self.num_classes)
        self.tp, self.fp, self.fn = (np.zeros(self.num_classes, dtype=np.int64) for _ in range(3))

    def add(
        self,
        predicted: np.ndarray,
        predicted_segments: Iterable[dict[str, Any]],
        truth: np.ndarray,
        truth_segments: Iterable[dict[str, Any]],
    ) -> None:
        """Counts the segments of one image.

        Args:
            predicted, truth: (H, W) segment ids, 0 = none (void in the ground truth).
            predicted_segments, truth_segments: dicts with "id" and contiguous "category_id"; ground truth also "iscrowd".
        """
        predicted_class = {s["id"]: s["category_id"] for s in predicted_segments}
        truth_info = {s["id"]: s for s in truth_segments}
        base = int(predicted.max()) + 1
        pairs, areas = np.unique(truth.astype(np.int64) * base + predicted, return_counts=True)
        overlap = {(int(p // base), int(p % base)): int(a) for p, a in zip(pairs, areas, strict=True)}
        truth_area, predicted_area = _sums(overlap, 0), _sums(overlap, 1)
        # pixels of ids without an entry are void too
        void_ids = {t for t in truth_area if t not in truth_info}
        void = {p: sum(overlap.get((t, p), 0) for t in void_ids) for p in predicted_area}

        matched_truth: set[int] = set()
        matched_predicted: set[int] = set()
        for (t, p), area in overlap.items():
            if t not in truth_info or p not in predicted_class or truth_info[t]["iscrowd"]:
                continue
            category = truth_info[t]["category_id"]
            if category != predicted_class[p]:
                continue
            iou = area / (truth_area[t] + predicted_area[p] - area - void[p])
            if iou > 0.5:  # at most one such pair per segment
                self.tp[category] += 1
                self.iou[category] += iou
                matched_truth.add(t)
                matched_predicted.add(p)

        crowd_of_class: dict[int, int] = {}
        for t, segment in truth_info.items():
            if segment["iscrowd"]:
                crowd_of_class[segment["category_id"]] = t
            elif t not in matched_truth:
                self.fn[segment["category_id"]] += 1
        for p, category in predicted_class.items():
            if p in matched_predicted or p not in predicted_area:
                continue
            crowd = crowd_of_class.get(category)
            ignored = void[p] + (0 if crowd is None else overlap.get((crowd, p), 0))
            if ignored / predicted_area[p] <= 0.5:  # mostly on void or crowd: neither right nor wrong
                self.fp[category] += 1

    def merge(self, other: PanopticQuality) -> None:
        """Adds the counts of another rank."""
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn

    def per_class(self) -> np.ndarray:
        """(K, 3) PQ, SQ, RQ in percent; NaN rows for classes in neither ground truth nor prediction."""
        denominator = self.tp + 0.5 * self.fp + 0.5 * self.fn
        with np.errstate(invalid="ignore", divide="ignore"):
            pq, rq = self.iou / denominator, self.tp / denominator
            sq = np.where(self.tp > 0, self.iou / self.tp, 0.0)
        sq = np.where(denominator > 0, sq, np.nan)
        return 100 * np.stack([pq, sq, rq], -1)

    def summary(self, thing_ids: Collection[int]) -> dict[str, float]:
        """Means over the classes that occur: PQ, SQ, RQ, and with suffix _th and _st for things and stuff."""
        table = self.per_class()
        is_thing = np.isin(np.arange(self.num_classes), list(thing_ids))
        result = {}
        for suffix, chosen in (("", np.ones_like(is_thing)), ("_th", is_thing), ("_st", ~is_thing)):
            rows = table[chosen & ~np.isnan(table[:, 0])]
            for name, value in zip(("PQ", "SQ", "RQ"), rows.mean(0) if len(rows) else (float("nan"),) * 3, strict=True):
                result[name + suffix] = float(value)
        return result


def _sums(overlap: dict[tuple[int, int], int], axis: int) -> dict[int, int]:
    result: dict[int, int] = {}
    for pair, area in overlap.items():
        result[pair[axis]] = result.get(pair[axis], 0) + area
    return result


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic quality of "panoptic_seg" outputs against the data set's PNG files."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self.quality = PanopticQuality(len(self.taxonomy))
        self.images: list[tuple[str, float]] = []  # file and PQ

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds the "panoptic_seg" outputs of a batch."""
        for given, output in zip(inputs, outputs, strict=True):
            panoptic, segments = output["panoptic_seg"]
            truth = segment_ids(read_panoptic(given["pan_seg_file_name"]))
            predicted = enlarge_read_out(panoptic.cpu().numpy(), truth.shape)
            image = PanopticQuality(len(self.taxonomy))
            image.add(predicted, segments, truth, given["segments_info"])
            self.quality.merge(image)
            self.images.append((given["file_name"], image.summary(self.taxonomy.thing_ids)["PQ"]))

    def evaluate(self) -> dict[str, Any] | None:
        """{"panoptic": {"PQ", ..., "per_class": {name: {"PQ", "SQ", "RQ"}}, "per_image": [(file, PQ)]}} on the main process."""
        parts, images = comm.gather(self.quality), comm.gather(self.images)
        if not comm.is_main_process():
            return None
        total = PanopticQuality(len(self.taxonomy))
        for part in parts:
            total.merge(part)
        rows = {
            name: dict(zip(("PQ", "SQ", "RQ"), map(float, row), strict=True))
            for name, row in zip(self.taxonomy.main_names, total.per_class(), strict=True)
        }
        scores = total.summary(self.taxonomy.thing_ids)
        return {"panoptic": {**scores, "per_class": rows, "per_image": [entry for part in images for entry in part]}}
