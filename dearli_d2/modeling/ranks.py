"""Sums and means over the ranks of data-parallel training. All tensors stay where they are: NCCL takes none on the CPU."""

from __future__ import annotations

import torch
from detectron2.utils import comm


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean of `values` over all ranks, elementwise; not finite where the value of any rank is not."""
    ranks = comm.get_world_size()
    if ranks == 1:
        return values
    values = values.detach().clone()
    torch.distributed.all_reduce(values)
    return values / ranks


def over_ranks(count: torch.Tensor, least: float = 1.0) -> torch.Tensor:
    """Mean of counts over all ranks: what a sum of losses is divided by so that the mean gradient of the ranks is that of one
    process with the joint batch.

    Args:
        count: any shape. least: lower limit of the sum over the ranks.
    """
    return mean_over_ranks(count.detach().float()).clamp(min=least / comm.get_world_size())
