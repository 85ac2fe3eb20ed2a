"""Chooses images of which the model is unsure, and that differ from each other and from the labelled ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

WAYS = ("both", "uncertainty", "random")


def uncertainty(parts: Sequence[Mapping[str, float]]) -> np.ndarray:
    """(N,) the mean over the signals of N images, each signal divided by its mean over all images, so that all count alike."""
    names = list(parts[0])
    values = np.array([[p[name] for name in names] for p in parts], np.float64)
    return (values / values.mean(0).clip(1e-12)).mean(1)


def rarity(shown: Sequence[Collection[int]], labeled: Sequence[Collection[int]]) -> np.ndarray:
    """(N,) factors >= 1 that lift images with predicted classes that few labelled images show.

    A class that n of the L labelled images show counts sqrt((L + 1) / (n + 1)). The factor is the mean over the image's classes.

    Args:
        shown: predicted classes of N images.
        labeled: classes of the L labelled images.
    """
    count = len(labeled) + 1
    images = {c: 1 + sum(c in classes for classes in labeled) for c in {c for classes in shown for c in classes}}
    return np.array([np.mean([math.sqrt(count / images[c]) for c in classes]) if classes else 1.0 for classes in shown])


def spread_choice(
    scores: np.ndarray, features: np.ndarray, known: np.ndarray, count: int
) -> tuple[list[int], list[float]]:
    """Greedy k-centre, weighted: each time the image with the largest product of score and distance.

    The distance is that to the nearest labelled or chosen image. A longer choice begins with a shorter one.

    Args:
        scores: (N,), not negative.
        features: (N, C).
        known: (M, C) of the labelled images; M may be 0, then the first choice is by score alone.
        count: how many to choose, at most N.

    Returns:
        Indices, and the distance of each when it was chosen (infinite where there was nothing to compare with).
    """
    nearest = np.full(len(features), np.inf)
    for feature in known:
        nearest = np.minimum(nearest, np.linalg.norm(features - feature, axis=1))
    free, chosen, distances = np.ones(len(features), bool), [], []
    for _ in range(min(count, len(features))):
        value = scores * (nearest if np.isfinite(nearest[0]) else 1.0)
        best = int(np.where(free, value, -1.0).argmax())
        free[best] = False
        chosen.append(best)
        distances.append(float(nearest[best]))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[best], axis=1))
    return chosen, distances


def random_order(names: Sequence[str], seed: int = 0) -> list[int]:
    """Indices in an order that depends on the names and the seed alone."""
    return sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{seed} {names[i]}".encode()).digest())
