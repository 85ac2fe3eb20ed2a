"""Means over the ranks of data-parallel training. All tensors stay on their device, since NCCL takes none on the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean of `values` over all ranks, elementwise; not finite where the value of any rank is not."""
    ranks = comm.get_world_size()
    if ranks == 1:
        return values
    values = values.detach().clone()
    torch.distributed.all_reduce(values)
    return values / ranks


def over_ranks(count: torch.Tensor, least: float = 1.0) -> torch.Tensor:
    """Mean of counts over all ranks, the divisor of a sum of losses.

    With it the mean gradient of the ranks is that of one process with the joint batch.

    Args:
        count: of any shape.
        least: lower limit of the sum over the ranks.
    """
    return mean_over_ranks(count.detach().float()).clamp(min=least / comm.get_world_size())


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """(ranks, N) of the (N,) values of each rank, without a gradient."""
    ranks = comm.get_world_size()
    if ranks == 1:
        return values.detach()[None]
    rows = values.new_zeros(ranks, len(values))
    rows[comm.get_rank()] = values.detach()
    torch.distributed.all_reduce(rows)  # a sum: each row is of one rank
    return rows


def kth_largest(values: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """The k-th largest of the values of all ranks, a scalar; with several ranks nothing waits for the device.

    Args:
        values: (N,) fp32, 0 or more; negative ones count as smaller than all others.
        k: 1 to the number of those that are 0 or more.
    """
    if comm.get_world_size() == 1:
        return values.topk(int(k), sorted=False).values.min()
    bits = values.detach().contiguous().view(torch.int32)  # of positive numbers in the order of the numbers
    found = bits.new_zeros(())
    for bit in range(30, -1, -1):
        trial = found | (1 << bit)
        count = (bits >= trial).sum()
        torch.distributed.all_reduce(count)
        found = torch.where(count >= k, trial, found)
    return found.view(torch.float32)


def gradient_exchange(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Context of a forward and backward pass, after which the ranks exchange their gradients or not.

    Args:
        model: in its data-parallel wrapper, if there is one.
        now: False for all but the last part of a step.
    """
    if now or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
