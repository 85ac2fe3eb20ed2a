"""Options of the method: the keys of its config section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...config.options import Options, option
from ...config.values import COUNT, POSITIVE, POSITIVE_COUNT, SHARE, Number


@dataclass(frozen=True)
class EoMTOptions(Options):
    """Used where MODEL.META_ARCHITECTURE is "EoMT"; the defaults are those of the authors' code."""

    SECTION: ClassVar[str] = "MODEL.EOMT"

    blocks: int = option(4, POSITIVE_COUNT, "Number of the last blocks of the ViT that read the queries too (L2).")
    patch_size: int = option(
        16, POSITIVE_COUNT, "Side of a patch in pixels. Weights of a ViT with other patches are resized."
    )
    annealing_start: float = option(
        1 / 6, SHARE, "Share of the training after which the masks of the first of these blocks fade out."
    )
    annealing_end: float = option(5 / 6, SHARE, "Share of the training after which no block has masks any more.")
    annealing_power: float = option(0.9, POSITIVE, "Power with which the probability of a mask falls from 1 to 0.")
    layer_decay: float = option(
        0.8, Number(0, 1, above=True), "Factor of the learning rate from each block of the ViT to the one before it."
    )
    backbone_delay: int = option(
        500, COUNT, "First steps in which the ViT keeps its weights and only the new parts learn."
    )
    backbone_warmup: int = option(1000, COUNT, "Steps after that in which the learning rate of the ViT rises.")
