"""Options of the method: the keys of its config sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...config.options import Options, option
from ...config.values import COUNT, PART, PATH, POSITIVE, POSITIVE_COUNT, SEED, SIDE, WEIGHT, Items, Number, one_of


@dataclass(frozen=True)
class SplitOptions(Options):
    """Used where MODEL.META_ARCHITECTURE is "SplitMatching"."""

    SECTION: ClassVar[str] = "MODEL.SPLIT"

    candidate_queries: int = option(
        50, COUNT, "beside the MODEL.MASK_FORMER.NUM_QUERIES seen ones; 0 = no regions (baseline)"
    )
    random_queries: int = option(50, COUNT, "at inference only")
    random_seed: int = option(0, SEED, "")
    cosine_weight: float = option(1.0, WEIGHT, "L_cos")
    mfe_weight: float = option(1.0, WEIGHT, "L_MFE; 0 = no such head")
    mfe_temperature: float = option(0.07, POSITIVE, "of its cosines")
    mfe_norm: str = option("GN", one_of("GN", "BN", "NONE"), 'or "BN" (over all GPUs), "NONE" (Tab. 4)')
    candidate_embedding: str = option(
        "cls",
        one_of("cls", "dense", "dense_mlp"),
        'class embedding of a region: "cls" of the image that shows it alone, the mean of CLIP\'s "dense" features in it, or "dense_mlp", that mean through a learned two-layer MLP (Tab. 3)',
    )
    seen_penalty: float = option(0.0, WEIGHT, "taken from the seen classes' scores at inference (calibrated stacking)")


@dataclass(frozen=True)
class RegionOptions(Options):
    """Clusters of CLIP's features in un-annotated pixels."""

    SECTION: ClassVar[str] = "MODEL.SPLIT.REGIONS"

    cache: str = option("", PATH, 'folder of `dearli regions`; "" = made in training')
    image_size: int = option(512, SIDE, "pixels; the whole image as a square")
    windows: tuple[int, ...] = option(
        (8, 16), Items(POSITIVE_COUNT, least=1), "cells; their means are the first centroids"
    )
    iterations: int = option(10, POSITIVE_COUNT, "of K-means, at most")
    fusion: float = option(0.95, Number(-1, 1), "cosine from which on two clusters are one")
    min_area: float = option(0.01, PART, "of the image")
    crop_size: int = option(224, SIDE, "pixels; masked images as CLIP embeds them")
