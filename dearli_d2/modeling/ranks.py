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


def gradient_exchange(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Context of a forward and backward pass, after which the ranks exchange their gradients or not.

    Args:
        model: in its data-parallel wrapper, if there is one.
        now: False for all but the last part of a step.
    """
    if now or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
