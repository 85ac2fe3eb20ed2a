"""SemiDAViL: semi-supervised domain adaptation with language guidance and a dynamic cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Rules, linear_rules, semantic_rules
from .options import SemiDAViLOptions

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ...modeling.segmenter import Segmenter


class SemiDAViL(Method):
    """See the module."""

    architecture = "SemiDAViL"
    options = (SemiDAViLOptions,)

    def segmenter(self) -> type[Segmenter]:
        from . import model

        return model.SemiDAViL

    def rules(self, cfg: CfgNode) -> Rules:
        return [*semantic_rules(cfg, "SemiDAViL"), *linear_rules(cfg, "SemiDAViL")]

    def reads_captions(self, cfg: CfgNode) -> bool:
        return SemiDAViLOptions.of(cfg).reads_captions


METHOD = SemiDAViL()
