"""SegKC (Than et al.): a large and a small network teach each other, and the small one is the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Network, Rules, linear_rules, semantic_rules
from .options import SegKCOptions, SeniorBackbone, SeniorOptions

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ...modeling.segmenter import Segmenter


class SegKC(Method):
    """See the module. The junior is the network of MODEL.BACKBONE, the senior that of MODEL.SENIOR."""

    architecture = "SegKC"
    options = (SegKCOptions, SeniorOptions, SeniorBackbone)
    networks = (Network(), Network("MODEL.SENIOR", "senior's backbone"))
    memory_keys = ("MODEL.SENIOR.BACKBONE.CHECKPOINT_BLOCKS",)
    exports = {"junior": "the junior alone, a plain DPT segmenter; writes its config beside it, as .yaml"}
    teaching = "junior and senior, of each other"

    def segmenter(self) -> type[Segmenter]:
        from . import model

        return model.SegKC

    def rules(self, cfg: CfgNode) -> Rules:
        return [
            *semantic_rules(cfg, "SegKC"),
            *linear_rules(cfg, "SegKC"),
            (
                cfg.TEST.WEIGHTS == "student",
                "SegKC has no EMA teacher: TEST.WEIGHTS must be student; MODEL.SEGKC.READ senior evaluates the senior",
            ),
            (not cfg.SSL.TEACHER_WEIGHTS, "SegKC has no EMA teacher: SSL.TEACHER_WEIGHTS must be empty"),
        ]

    def export(self, part: str, content: dict, source: str) -> dict:
        from .export import junior_of

        return junior_of(content, source)


METHOD = SegKC()
