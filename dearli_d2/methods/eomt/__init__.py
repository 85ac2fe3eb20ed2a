"""EoMT (Kerssies et al., CVPR 2025): a plain ViT whose last blocks also read queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Rules, class_loss_rules, linear_rules, panoptic_teaching_rules, query_rules
from .options import EoMTOptions

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ...modeling.segmenter import Segmenter


class EoMT(Method):
    """EoMT and its options."""

    architecture = "EoMT"
    options = (EoMTOptions,)

    def segmenter(self) -> type[Segmenter]:
        """Imports the model."""
        from . import model

        return model.EoMT

    def rules(self, cfg: CfgNode) -> Rules:
        """Lists what a config must satisfy."""
        options, backbone = EoMTOptions.of(cfg), cfg.MODEL.BACKBONE
        return [
            *linear_rules(cfg, "EoMT"),
            *query_rules(cfg),
            *class_loss_rules(cfg),
            *panoptic_teaching_rules(cfg),
            (
                backbone.NAME == "TimmBackbone",
                f"EoMT needs a plain ViT of timm: MODEL.BACKBONE.NAME TimmBackbone, not {backbone.NAME}",
            ),
            (
                not backbone.FREEZE and backbone.TRAINABLE_BLOCKS == -1,
                "EoMT trains the whole ViT, whose blocks read the queries: MODEL.BACKBONE.FREEZE False, TRAINABLE_BLOCKS -1",
            ),
            (
                not backbone.LAYERS and not backbone.FREEZE_NORM,
                "EoMT has no feature pyramid and no batch norm: MODEL.BACKBONE.LAYERS (), FREEZE_NORM False",
            ),
            (
                cfg.INPUT.CROP_SIZE % options.patch_size == 0,
                f"INPUT.CROP_SIZE {cfg.INPUT.CROP_SIZE} must be a multiple of MODEL.EOMT.PATCH_SIZE {options.patch_size}",
            ),
            (
                options.annealing_start <= options.annealing_end,
                f"MODEL.EOMT.ANNEALING_START {options.annealing_start:g} is after ANNEALING_END {options.annealing_end:g}",
            ),
        ]


METHOD = EoMT()
