"""Quality of targets, above all of pseudo-labels, measured against the annotations of data-set dicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.panoptic_png import read_panoptic, segment_ids
from ..data.sizes import resize_labels
from ..data.taxonomy import Taxonomy
from ..structures import Targets
from .panoptic import PanopticQuality
from .semantic import confusion, mean_iou, read_semantic


class PanopticLabelQuality:
    """PQ of targets that do not overlap, at their own size, against the annotations of data-set dicts."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.things, self.quality = taxonomy.thing_ids, PanopticQuality(len(taxonomy))

    def add(self, targets: Targets, truth: dict[str, Any]) -> None:
        """Counts the segments of one image."""
        ids = resize_labels(segment_ids(read_panoptic(truth["pan_seg_file_name"])), targets.masks.shape[1:])
        self.quality.add(*targets.panoptic(), ids, truth["segments_info"])

    def merge(self, other: PanopticLabelQuality) -> None:
        """Adds the counts of another rank."""
        self.quality.merge(other.quality)

    def scores(self) -> dict[str, float]:
        """PQ, SQ, RQ in percent."""
        summary = self.quality.summary(self.things)
        return {name: summary[name] for name in ("PQ", "SQ", "RQ")}


class SemanticLabelQuality:
    """Mean IoU of one mask a class on the annotated pixels that are valid, and their share of all annotated pixels."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.matrix = np.zeros((len(taxonomy), len(taxonomy)), dtype=np.int64)
        self.annotated = 0

    def add(self, targets: Targets, truth: dict[str, Any]) -> None:
        """Counts the pixels of one image."""
        semantic = resize_labels(read_semantic(truth), targets.masks.shape[1:])
        ids, segments = targets.panoptic()
        classes = np.array([0, *(s["category_id"] for s in segments)])
        known = semantic < len(self.matrix)
        chosen = known & (ids > 0)
        self.matrix += confusion(classes[ids[chosen]], semantic[chosen], len(self.matrix))
        self.annotated += int(known.sum())

    def merge(self, other: SemanticLabelQuality) -> None:
        """Adds the counts of another rank."""
        self.matrix += other.matrix
        self.annotated += other.annotated

    def scores(self) -> dict[str, float]:
        """Mean IoU and coverage in percent."""
        return {"mIoU": mean_iou(self.matrix), "coverage": 100 * float(self.matrix.sum()) / max(self.annotated, 1)}
