"""Mask annealing: masked attention fades out during training, one block after the other (EoMT, Sec. 3.3)."""

from __future__ import annotations


def mask_probabilities(progress: float, blocks: int, start: float, end: float, power: float) -> list[float]:
    """The probability that a query is masked, of each block.

    The blocks take turns: each has an equal part of the interval from `start` to `end`. In its part the probability of a
    block falls from 1 to 0 as (1 - t)^power.

    Args:
        progress: share of the training that is done. start, end: shares of the training.
    """
    part = (end - start) / blocks
    return [_anneal(progress, start + i * part, start + (i + 1) * part, power) for i in range(blocks)]


def _anneal(progress: float, start: float, end: float, power: float) -> float:
    if progress <= start:
        return 1.0
    return (1 - (progress - start) / (end - start)) ** power if progress < end else 0.0
