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
        50,
        COUNT,
        "Number of queries for regions, beside the MODEL.MASK_FORMER.NUM_QUERIES queries for seen classes. 0 trains without "
        "regions (the baseline).",
    )
    random_queries: int = option(50, COUNT, "Number of random queries that inference adds.")
    random_seed: int = option(0, SEED, "Seed of the random queries.")
    cosine_weight: float = option(
        1.0, WEIGHT, "Weight of L_cos, which pulls the class embedding of a candidate query to that of its region."
    )
    mfe_weight: float = option(
        1.0, WEIGHT, "Weight of L_MFE, the loss of an auxiliary head per pixel. 0 leaves the head out."
    )
    mfe_temperature: float = option(0.07, POSITIVE, "Divides the cosines of the auxiliary head.")
    mfe_norm: str = option(
        "GN",
        one_of("GN", "BN", "NONE"),
        'Normalisation of the auxiliary head (Tab. 4). "GN" is group norm, "BN" is batch norm over all GPUs.',
    )
    candidate_embedding: str = option(
        "cls",
        one_of("cls", "dense", "dense_mlp"),
        'Class embedding of a region (Tab. 3). "cls" is CLIP\'s embedding of the image that shows the region alone. "dense" is '
        'the mean of CLIP\'s dense features in the region. "dense_mlp" is that mean after a learned two-layer MLP.',
    )
    seen_penalty: float = option(
        0.0, WEIGHT, "Subtracted from the scores of the seen classes at inference (calibrated stacking)."
    )


@dataclass(frozen=True)
class RegionOptions(Options):
    """Regions: clusters of CLIP's features in pixels that nobody annotated."""

    SECTION: ClassVar[str] = "MODEL.SPLIT.REGIONS"

    cache: str = option("", PATH, 'Folder that `dearli regions` has filled. "" finds the regions during training.')
    image_size: int = option(512, SIDE, "Side in pixels of the square to which CLIP sees the whole image resized.")
    windows: tuple[int, ...] = option(
        (8, 16),
        Items(POSITIVE_COUNT, least=1),
        "Sides in cells of sliding windows. The means of the windows are the first centroids of K-means.",
    )
    iterations: int = option(10, POSITIVE_COUNT, "Largest number of iterations of K-means.")
    fusion: float = option(0.95, Number(-1, 1), "Two clusters are merged from this cosine of their centroids on.")
    min_area: float = option(0.01, PART, "Smallest region, as a share of the image.")
    crop_size: int = option(
        224, SIDE, 'Side in pixels of the image that shows a region alone, as CLIP embeds it. Only "cls" needs it.'
    )
