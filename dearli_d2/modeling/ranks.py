"""Sums over the ranks of data-parallel training."""

from __future__ import annotations

import torch
from detectron2.utils import comm


def over_ranks(count: torch.Tensor) -> torch.Tensor:
    """Mean of a scalar count over all ranks, never 0: what a sum of losses is divided by so that the mean gradient of the
    ranks is that of one process with the joint batch."""
    count = count.detach().float().clone()
    ranks = comm.get_world_size()
    if ranks > 1:
        torch.distributed.all_reduce(count)
    return count.clamp(min=1) / ranks
