"""Options of the method: the keys of its config sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...config.options import Options, option
from ...config.values import NAME, POSITIVE, POSITIVE_COUNT, SHARE, SWITCH, Number, one_of


@dataclass(frozen=True)
class SemiDAViLOptions(Options):
    """Used where MODEL.META_ARCHITECTURE is "SemiDAViL"."""

    SECTION: ClassVar[str] = "MODEL.SEMIDAVIL"

    feature: str = option("clip_vis_dense", NAME, "map of the backbone that is classified; or res2 .. res5")
    guidance: bool = option(True, SWITCH, "DLG: pixels and caption tokens attend to each other")
    guidance_dim: int = option(256, POSITIVE_COUNT, "of its keys and values")
    captions: str = option(
        "file",
        one_of("file", "class_names"),
        'of every image, see docs/semidavil.md; or "class_names", one for all images',
    )
    head: str = option(
        "upsample",
        one_of("upsample", "dpt", "mask2former"),
        'or "dpt", or "mask2former": the core\'s queries, read out per pixel',
    )
    head_dim: int = option(256, POSITIVE_COUNT, "")
    loss: str = option(
        "dyce",
        one_of("dyce", "ce", "weighted_ce", "focal", "dual_ce", "dual_focal"),
        "of labelled pixels; or ce, weighted_ce, focal, dual_ce, dual_focal",
    )
    loss_weight: float = option(1.0, POSITIVE, "")
    hard_fraction: float = option(0.2, Number(0, 1, above=True), "h of DyCE: share of the pixels that are mined")
    omega: float = option(0.5, SHARE, "of DyCE: 1 = mean over mined pixels, 0 = sum of the means of their classes")
