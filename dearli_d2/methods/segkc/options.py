"""Options of the method: the keys of its config sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...config.model_sections import Backbone
from ...config.options import Options, option
from ...config.values import COUNT, POSITIVE, POSITIVE_COUNT, SWITCH, WEIGHT, Items, Number, one_of


@dataclass(frozen=True)
class SegKCOptions(Options):
    """Used where MODEL.META_ARCHITECTURE is "SegKC"."""

    SECTION: ClassVar[str] = "MODEL.SEGKC"

    consult: bool = option(True, SWITCH, "The senior reads the junior's features in training.")
    consult_grad: bool = option(False, SWITCH, "The senior's losses reach the junior through these features.")
    kd_weight: float = option(1.0, WEIGHT, "Weight of the distillation, which begins at SSL.START. 0 leaves it out.")
    kd_temperature: float = option(2.0, POSITIVE, "Temperature of the distillation.")
    read: str = option(
        "junior", one_of("junior", "senior"), 'Whose scores inference returns: "junior", or "senior" for a diagnosis.'
    )


@dataclass(frozen=True)
class SeniorOptions(Options):
    """The large network of SegKC; the junior is MODEL.BACKBONE."""

    SECTION: ClassVar[str] = "MODEL.SENIOR"

    pixel_mean: list[float] = option(
        [], Items(Number(0, 255), (0, 3)), "As MODEL.PIXEL_MEAN, for the senior's own weights."
    )
    pixel_std: list[float] = option([], Items(POSITIVE, (0, 3)), "As MODEL.PIXEL_STD.")
    dim: int = option(128, POSITIVE_COUNT, "As MODEL.DPT.DIM.")


@dataclass(frozen=True)
class SeniorBackbone(Backbone):
    """The senior's image network; keys as those of MODEL.BACKBONE."""

    SECTION: ClassVar[str] = "MODEL.SENIOR.BACKBONE"

    freeze_at: int = option(2, COUNT, "Stages of detectron2's ResNet that are frozen.")
