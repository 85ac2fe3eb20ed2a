"""Who is mixed with whom inside a batch."""

from __future__ import annotations

import numpy as np


def draw_partners(count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """A partner for each image of a batch: never itself, each other one as likely, and everyone is a partner once.

    One random cycle through all images (Sattolo's shuffle).

    Args:
        count: images, two or more; an image alone would mix with itself, which is no mixing.
    """
    if count < 2:
        raise ValueError("an image alone has no partner")
    order = rng.permutation(count)
    partner = np.empty(count, int)
    partner[order] = np.roll(order, 1)
    return tuple(partner.tolist())
