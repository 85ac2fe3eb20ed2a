"""HVL (Nadeem et al.): queries from class names beside free queries; semi-supervised semantic segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Rules, class_loss_rules, linear_rules, semantic_rules
from .options import HVLOptions

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ...modeling.segmenter import Segmenter


class HVL(Method):
    """See the module."""

    architecture = "HVL"
    options = (HVLOptions,)

    def segmenter(self) -> type[Segmenter]:
        from . import model

        return model.HVL

    def rules(self, cfg: CfgNode) -> Rules:
        options, free = HVLOptions.of(cfg), cfg.MODEL.MASK_FORMER.NUM_QUERIES
        textual = options.textual_queries
        return [
            *semantic_rules(cfg, "HVL"),
            *linear_rules(cfg, "HVL"),
            (
                not textual or free > 0 or options.presence != "image",
                "without free queries (MODEL.MASK_FORMER.NUM_QUERIES 0) a class that CLIP does not see in the whole image cannot "
                "be predicted at all: set MODEL.HVL.PRESENCE to dense or all",
            ),
            (textual or free > 0, "HVL without MODEL.HVL.TEXTUAL_QUERIES needs MODEL.MASK_FORMER.NUM_QUERIES"),
            (
                not textual or options.hierarchy or not options.diversity_weight,
                "without MODEL.HVL.HIERARCHY the queries of a class are equal: set MODEL.HVL.DIVERSITY_WEIGHT to 0",
            ),
            *class_loss_rules(cfg),
            (
                not textual or cfg.MODEL.PIXEL_DECODER.DIM == cfg.MODEL.MASK_FORMER.HIDDEN_DIM,
                "textual queries pass both decoders: MODEL.PIXEL_DECODER.DIM must equal MODEL.MASK_FORMER.HIDDEN_DIM",
            ),
            (
                not (textual and options.vl_weight) or (not cfg.MODEL.BACKBONE.FREEZE and not cfg.MODEL.TEXT.ENCODER),
                "MODEL.HVL.VL_WEIGHT trains the image tower of CLIP: it needs an OpenCLIP backbone with MODEL.BACKBONE.FREEZE "
                "False; else set it to 0",
            ),
        ]


METHOD = HVL()
