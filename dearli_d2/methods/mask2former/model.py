"""Mask2Former with a linear classifier, or without one for class-agnostic masks."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable

from ...data.taxonomy import Taxonomy
from ...modeling.mask2former.segmenter import MaskFormerSegmenter


class MaskFormer(MaskFormerSegmenter):
    """Mask2Former (Cheng et al., CVPR 2022)."""

    @configurable
    def __init__(self, **core: Any) -> None:
        super().__init__(**core)

    @classmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict[str, Any]:
        return cls.linear_arguments(cfg, taxonomy)
