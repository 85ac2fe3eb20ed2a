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

    textual_queries: bool = option(True, SWITCH, "HTQG; False = free queries alone, as in Mask2Former")
    refinement: bool = option(True, SWITCH, "PTRM")
    joint_decoder: bool = option(True, SWITCH, "DQTD: textual and free queries attend to each other")
    prompt_tokens: int = option(8, POSITIVE_COUNT, "")
    per_class_prompts: bool = option(False, SWITCH, "")
    presence: str = option(
        "image",
        one_of("image", "dense", "all"),
        'where there is no ground truth a class is present by CLIP\'s view of the "image" (the paper), of its "dense" cells, or always, "all"; a class that is called background always is',
    )
    presence_threshold: float = option(0.05, SHARE, "of the zero-shot posterior, relative to the best class's")
    inference: str = option(
        "marginal",
        one_of("marginal", "argmax"),
        'over queries, or "argmax": the class of the strongest mask (the paper)',
    )
    diversity_weight: float = option(
        1.0,
        WEIGHT,
        "the paper gives no weights of L_div, L_prompt, L_align and L_mask: with these each has about a tenth of the gradient of the segmentation losses at the parameters that it is for (benchmarks/hvl_gradients.py) L_div",
    )
    prompt_weight: float = option(0.4, WEIGHT, "L_prompt = L_topo + L_anchor")
    anchor_beta: float = option(1.0, WEIGHT, "of the separating part of L_anchor")
    vl_weight: float = option(0.15, WEIGHT, "L_vl = ALIGN_WEIGHT L_align + MASK_WEIGHT L_mask")
    align_weight: float = option(1.0, WEIGHT, "")
    mask_weight: float = option(15.0, WEIGHT, "lambda_mask")
    temperature: float = option(0.07, POSITIVE, "of L_align")
    entropy_weight: float = option(0.01, WEIGHT, "of unlabelled images")
