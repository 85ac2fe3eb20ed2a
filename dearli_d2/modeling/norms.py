"""Normalisations: the group norm of the core, and those that a config chooses among."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """With 32 groups as published; fewer where the channels do not divide (tiny models)."""
    return nn.GroupNorm(next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0), channels)


class RankBatchNorm(NaiveSyncBatchNorm):
    """detectron2's batch norm over all ranks, with the unbiased running variance of torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), normalised."""
        ranks = comm.get_world_size()
        if ranks == 1 or not self.training:
            return super().forward(x)
        before = self.running_var.clone()
        result = super().forward(x)
        count = ranks * x.numel() // x.shape[1]
        # running_var is now (1 - m) before + m var
        self.running_var += (self.running_var - (1 - self.momentum) * before) / max(count - 1, 1)
        return result


class RankBatchNormAct(RankBatchNorm):
    """A `RankBatchNorm` with the activation behind it that timm has in its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), normalised and activated."""
        return self.act(self.drop(super().forward(x)))


# torch's SyncBatchNorm is for GPUs alone; detectron2's has no fp32 statistics under bf16 autocast
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "GN": group_norm,
    "BN": nn.SyncBatchNorm,
    "BN_CPU": RankBatchNorm,
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


def share_statistics(model: nn.Module) -> None:
    """Lets the batch norms of a model that are trained have the statistics of all ranks, as its losses and other norms have.

    The batch norms are replaced in place, and keep their parameters, buffers and names. Those of a frozen network stay as they are.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.BatchNorm2d) or isinstance(child, NaiveSyncBatchNorm):
                continue
            if any(p.requires_grad for p in child.parameters()):
                on_cpu = next(child.parameters()).device.type == "cpu"
                setattr(parent, name, _of_cpu_ranks(child) if on_cpu else convert_sync_batchnorm(child))


def _of_cpu_ranks(norm: nn.BatchNorm2d) -> nn.Module:
    kind = RankBatchNormAct if isinstance(norm, BatchNormAct2d) else RankBatchNorm
    new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new.train(norm.training)
    for part in (norm._parameters, norm._buffers, norm._modules):
        for name, value in part.items():
            setattr(new, name, value)
    return new
