"""Names of published checkpoints whose decoders are those of Mask2Former: Mask2Former's own, FC-CLIP's and DEARLi's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_CONSTANT = re.compile(r"(^|\.)criterion\w*\.empty_weight$")  # follows from the config
# of Mask2Former's first files: the pixel decoder's names without its own, and the queries; of FC-CLIP's
_RENAMED = (
    (re.compile(r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)"), "sem_seg_head.pixel_decoder."),
    (re.compile(r"\bpredictor\.static_query\."), "predictor.query_feat."),
    (re.compile(r"\bpredictor\._mask_pooling_proj\."), "predictor.mask_pooling_proj."),
)


def our_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives the tensors of a published checkpoint our names; names that are ours already are kept."""
    result = {}
    for name, value in state.items():
        if _CONSTANT.search(name):
            continue
        for old, new in _RENAMED:
            name = old.sub(new, name)
        result[name] = value
    return result
