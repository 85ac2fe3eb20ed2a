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

    feature: str = option(
        "clip_vis_dense", NAME, "Map of the backbone that is classified: clip_vis_dense, or res2 to res5."
    )
    guidance: bool = option(True, SWITCH, "Language guides the features of pixels (Sec. 3.2).")
    attention: str = option(
        "dlg",
        one_of("dlg", "vlga", "wpct"),
        'How it does. "dlg" lets pixels and caption tokens attend to each other. The other two read the names of the classes in place of captions (supplement B): "wpct" their correlations with the pixels, "vlga" what SemiVL\'s decoder makes of these.',
    )
    guidance_dim: int = option(256, POSITIVE_COUNT, "Channels of its keys and values.")
    captions: str = option(
        "file",
        one_of("file", "class_names"),
        '"file" reads a caption for each image, "class_names" makes one for all images.',
    )
    head: str = option(
        "upsample",
        one_of("upsample", "dpt", "mask2former"),
        '"upsample", "dpt", or "mask2former", whose queries are read out for each pixel.',
    )
    head_dim: int = option(256, POSITIVE_COUNT, "Channels of the head.")
    loss: str = option(
        "dyce",
        one_of("dyce", "ce", "weighted_ce", "focal", "dual_ce", "dual_focal"),
        "Loss of labelled pixels: DyCE (Sec. 3.4) or one that the paper compares it with (supplement D).",
    )
    loss_weight: float = option(1.0, POSITIVE, "Weight of that loss.")
    hard_fraction: float = option(0.2, Number(0, 1, above=True), "h of DyCE: share of the pixels that are mined.")
    omega: float = option(
        0.5, SHARE, "omega of DyCE: 1 is the mean over mined pixels, 0 the sum of the means of their classes."
    )

    @property
    def reads_captions(self) -> bool:
        """True if images need captions of their own."""
        return self.guidance and self.attention == "dlg" and self.captions == "file"
