"""Normalisations: the group norm of the core, and those that a config chooses among."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.layers import NaiveSyncBatchNorm
from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """With 32 groups as published; fewer where the channels do not divide (tiny models)."""
    return nn.GroupNorm(next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0), channels)


# torch's SyncBatchNorm is for GPUs alone; detectron2's has no fp32 statistics under bf16 autocast
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "GN": group_norm,
    "BN": nn.SyncBatchNorm,
    "BN_CPU": NaiveSyncBatchNorm,
}


def norm_on(device: str, norm: str) -> str:
    """The norm for `normalised_convolution` that a config names, on a device of the kind that the config names."""
    return "BN_CPU" if norm == "BN" and not device.startswith("cuda") else norm


def normalised_convolution(dim: int, norm: str) -> list[nn.Module]:
    """A 3x3 convolution and its norm. The convolution has a bias where no norm would take it away.

    Args:
        dim: channels.
        norm: "NONE", "GN", "BN" (over all ranks where there are several) or "BN_CPU", the same for ranks without a GPU.
    """
    convolution = nn.Conv2d(dim, dim, 3, padding=1, bias=norm == "NONE")
    return [convolution] if norm == "NONE" else [convolution, _NORMS[norm](dim)]
