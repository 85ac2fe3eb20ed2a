"""Options of the method: the keys of its config sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...config.options import Options, option
from ...config.values import POSITIVE, POSITIVE_COUNT, SHARE, SWITCH, WEIGHT, one_of


@dataclass(frozen=True)
class HVLOptions(Options):
    """Used where MODEL.META_ARCHITECTURE is "HVL"."""

    SECTION: ClassVar[str] = "MODEL.HVL"

    textual_queries: bool = option(
        True, SWITCH, "Makes queries from class names (HTQG). False leaves the free queries alone, as in Mask2Former."
    )
    hierarchy: bool = option(
        True,
        SWITCH,
        "Makes the queries of each level by an MLP of its own. False makes one query of a class for all levels, which leaves "
        "L_div nothing to keep apart.",
    )
    refinement: bool = option(
        True, SWITCH, "Lets the textual queries exchange information with the pixels inside the pixel decoder (PTRM)."
    )
    joint_decoder: bool = option(
        True, SWITCH, "Lets textual and free queries attend to each other in the transformer decoder (DQTD)."
    )
    prompt_tokens: int = option(8, POSITIVE_COUNT, "Number of learnable tokens in front of a class name.")
    per_class_prompts: bool = option(
        False, SWITCH, "Gives every class learnable tokens of its own. False shares one prompt among all classes."
    )
    presence: str = option(
        "image",
        one_of("image", "dense", "all"),
        "Decides which classes are present in an image without ground truth. "
        '"image" asks CLIP\'s view of the whole image, as in the paper. "dense" asks CLIP\'s cells. "all" takes every class. '
        "A class that is called background is always present.",
    )
    presence_threshold: float = option(
        0.05,
        SHARE,
        "A class is present from this zero-shot posterior on. The posterior is divided by that of the best class.",
    )
    inference: str = option(
        "marginal",
        one_of("marginal", "argmax"),
        'Says how a pixel gets its class. "marginal" sums class times mask probability over all queries. "argmax" takes the '
        "class of the strongest mask, as in the paper.",
    )
    diversity_weight: float = option(
        1.0,
        WEIGHT,
        "Weight of L_div. The paper gives no weights of L_div, L_prompt, L_align and L_mask. With the defaults each of them has "
        "about a tenth of the gradient of the segmentation losses at the parameters that it is for "
        "(benchmarks/hvl_gradients.py).",
    )
    prompt_weight: float = option(0.4, WEIGHT, "Weight of L_prompt, the sum of L_topo and L_anchor.")
    anchor_beta: float = option(1.0, WEIGHT, "Weight of the separating part of L_anchor.")
    vl_weight: float = option(0.15, WEIGHT, "Weight of L_vl, which is ALIGN_WEIGHT * L_align + MASK_WEIGHT * L_mask.")
    align_weight: float = option(1.0, WEIGHT, "Weight of L_align inside L_vl.")
    mask_weight: float = option(15.0, WEIGHT, "Weight of L_mask inside L_vl, lambda_mask in the paper.")
    temperature: float = option(0.07, POSITIVE, "Divides the cosines of L_align.")
    entropy_weight: float = option(
        0.01, WEIGHT, "Weight of the entropy of the class probabilities in unlabelled images."
    )
