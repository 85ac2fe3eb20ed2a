"""DEARLi: semi-supervised panoptic segmentation with a text classifier over a frozen CLIP, and CLIP ensembling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Rules, class_loss_rules, panoptic_teaching_rules, query_rules

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ...cli.base import Group
    from ...modeling.segmenter import Segmenter


class DEARLi(Method):
    """Mask2Former whose classes are texts; see the module. Its options are MODEL.TEXT and MODEL.ENSEMBLE."""

    architecture = "MaskFormer"

    def takes(self, cfg: CfgNode) -> bool:
        return super().takes(cfg) and cfg.MODEL.CLASSIFIER == "text"

    def segmenter(self) -> type[Segmenter]:
        from . import model

        return model.DEARLi

    def rules(self, cfg: CfgNode) -> Rules:
        return [*query_rules(cfg), *class_loss_rules(cfg), *panoptic_teaching_rules(cfg)]

    def add_commands(self, dearli: Group) -> None:
        from .cli import zero_shot

        dearli.add_command(zero_shot)


METHOD = DEARLi()
