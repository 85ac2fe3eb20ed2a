"""The doubtful regions of an image: where they are, and between which classes the model wavers."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ..labels.geometry import decode, encode
from .signals import Doubts

_PART = 0.2  # of the pixels, as the score has it
_SMOOTH = 5  # cells
_MOST = 3  # regions


def doubtful_regions(doubts: Doubts) -> list[dict[str, Any]]:
    """At most three regions, the largest sum of doubt first.

    Returns:
        Dicts for JSON: "size" and "counts", run lengths of the map's size; "classes", the two likeliest classes there, each
        with its mean probability.
    """
    doubt = torch.stack(list(doubts.maps.values())).mean(0)
    smooth = F.avg_pool2d(doubt[None, None], _SMOOTH, 1, _SMOOTH // 2, count_include_pad=False)[0, 0].cpu().numpy()
    marked = smooth >= max(np.quantile(smooth, 1 - _PART), 1e-6)
    _, labels = cv2.connectedComponents(marked.astype(np.uint8))
    weights = np.bincount(labels.ravel(), smooth.ravel())
    weights[0] = 0
    found = []
    for number in np.argsort(-weights, kind="stable")[:_MOST]:
        if weights[number] > 0:
            mask = labels == number
            mean = doubts.probability[:, torch.from_numpy(mask).to(doubts.probability.device)].mean(1).cpu()
            best = mean.topk(min(2, len(mean)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            counts = encode(mask)["counts"].decode()
            found.append({"size": list(mask.shape), "counts": counts, "classes": [[i, round(p, 4)] for i, p in pairs]})
    return found


def mask_of(region: dict[str, Any]) -> np.ndarray:
    """(h, w) bool of one of `doubtful_regions`."""
    return decode({"size": region["size"], "counts": region["counts"].encode()})
