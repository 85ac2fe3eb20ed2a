"""Mask2Former (Cheng et al., CVPR 2022) with a linear classifier, or without classes for the warm-up on masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Rules, class_loss_rules, panoptic_teaching_rules, query_rules

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ...modeling.segmenter import Segmenter


class Mask2Former(Method):
    """See the module; its options are those of the shared core, MODEL.MASK_FORMER and MODEL.PIXEL_DECODER."""

    architecture = "MaskFormer"

    def takes(self, cfg: CfgNode) -> bool:
        return super().takes(cfg) and cfg.MODEL.CLASSIFIER != "text"

    def segmenter(self) -> type[Segmenter]:
        from . import model

        return model.MaskFormer

    def rules(self, cfg: CfgNode) -> Rules:
        return [*query_rules(cfg), *class_loss_rules(cfg), *panoptic_teaching_rules(cfg)]


METHOD = Mask2Former()
