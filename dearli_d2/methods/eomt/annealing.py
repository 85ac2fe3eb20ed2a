"""Mask annealing: masked attention fades out during training, one block after the other (EoMT, Sec. 3.3)."""

from __future__ import annotations


def mask_probabilities(progress: float, blocks: int, start: float, end: float, power: float) -> list[float]:
    """Computes the probability that a query is masked, for each block.

    The blocks take turns: each has an equal part of the interval from `start` to `end`. In its part the probability of a
    block falls from 1 to 0 as (1 - t)^power.

    Args:
        progress: share of the training that is done.
        blocks: number of blocks that read the queries.
        start, end: interval of the annealing, in shares of the training.
        power: of the fall.
    """
    part = (end - start) / blocks
    return [_anneal(progress, start + i * part, start + (i + 1) * part, power) for i in range(blocks)]


def _anneal(progress: float, start: float, end: float, power: float) -> float:
    if progress >= end:
        return 0.0
    return (1 - (progress - start) / (end - start)) ** power if progress > start else 1.0
