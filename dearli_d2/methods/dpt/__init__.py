"""A backbone with a DPT head (Ranftl et al., ICCV 2021): UniMatch V2's network, and the junior of SegKC alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Rules, linear_rules, semantic_rules

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ...modeling.segmenter import Segmenter


class DPT(Method):
    """See the module; its options are those of the shared head, MODEL.DPT."""

    architecture = "DPTSegmenter"

    def segmenter(self) -> type[Segmenter]:
        from ...modeling.per_pixel.dpt_segmenter import DPTSegmenter

        return DPTSegmenter

    def rules(self, cfg: CfgNode) -> Rules:
        return [*semantic_rules(cfg, self.architecture), *linear_rules(cfg, self.architecture)]


METHOD = DPT()
