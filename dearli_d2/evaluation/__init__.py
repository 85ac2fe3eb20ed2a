"""Evaluators: panoptic quality and mean IoU, streaming, mergeable over ranks; and their tables."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators

from ..data.taxonomy import Taxonomy
from ..data.zero_shot import unseen_classes
from .panoptic import PanopticEvaluator, PanopticQuality
from .semantic import SemanticEvaluator, mean_iou

__all__ = ["PanopticEvaluator", "PanopticQuality", "SemanticEvaluator", "build_evaluator", "mean_iou"]


def build_evaluator(cfg: CfgNode, taxonomy: Taxonomy) -> DatasetEvaluators:
    """The evaluators of the outputs that `TEST.*_ON` asks for."""
    evaluators = []
    if cfg.TEST.PANOPTIC_ON:
        evaluators.append(PanopticEvaluator(taxonomy))
    if cfg.TEST.SEMANTIC_ON:
        unseen = unseen_classes(cfg.DATASETS.UNSEEN_CLASSES, taxonomy) if cfg.DATASETS.UNSEEN_CLASSES else ()
        evaluators.append(SemanticEvaluator(taxonomy, unseen))
    return DatasetEvaluators(evaluators)
