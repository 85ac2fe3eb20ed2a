"""Losses of per-pixel classification: DyCE (SemiDAViL, Sec. 3.4) and those it is compared with (its supplement D)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import nn

from ..errors import ConfigError

IGNORE = 255


def pixel_cross_entropy(logits: torch.Tensor, target: torch.Tensor, ignore_index: int = IGNORE) -> torch.Tensor:
    """(B, C, H, W) logits and (B, H, W) classes to (B, H, W) cross-entropy in fp32, 0 where ignored."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits.float(), target, ignore_index=ignore_index, reduction="none")


def dyce_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    hard_fraction: float = 0.2,
    omega: float = 0.5,
    ignore_index: int = IGNORE,
) -> torch.Tensor:
    """Dynamic cross-entropy: that of the hardest pixels, weighted by how rare their classes are among them (SemiDAViL,
    eq. 9).

    L = sum over hard pixels i of n_H^-omega n_c(i)^-(1 - omega) l_i, with n_H the hard pixels and n_c those of class c; so
    omega 1 is their mean, omega 0 the sum of the means of their classes. No gradient passes through the choice or the
    counts. Each rank chooses its own hard pixels, the counts are those of all ranks.

    Args:
        logits: (B, C, H, W). target: (B, H, W) int64. hard_fraction: share of the valid pixels that count as hard, at least
            one pixel. omega: 0..1.

    Returns:
        A scalar in fp32; exactly 0, with a graph, where no pixel is valid.
    """
    losses = pixel_cross_entropy(logits, target, ignore_index).flatten()
    labels = target.flatten()
    with torch.no_grad():
        valid = labels != ignore_index
        count = valid.sum()
        wanted = (count * hard_fraction).round().clamp(min=1).minimum(count)
        # sorted, so that the number of hard pixels need not be known on the host
        most = max(1, round(hard_fraction * labels.numel()))
        order = torch.where(valid, losses, -1.0).topk(min(most, labels.numel())).indices
        hard = torch.arange(len(order), device=order.device) < wanted
        classes = torch.where(hard, labels[order], logits.shape[1])  # the others into a spare class
        counts = torch.zeros(logits.shape[1] + 1, device=logits.device)
        counts.index_add_(0, classes, torch.ones_like(classes, dtype=counts.dtype))
        counts[-1] = hard.sum()  # from here on n_H
        ranks = comm.get_world_size()
        if ranks > 1:
            torch.distributed.all_reduce(counts)
        of_class = counts[:-1].clamp(min=1) ** (omega - 1) * counts[-1].clamp(min=1) ** -omega
        # data-parallel training averages the gradients of the ranks; this is a sum over them
        weights = ranks * F.pad(of_class, (0, 1))[classes]
    return (losses[order] * weights).sum()


def cross_entropy_loss(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, ignore_index: int = IGNORE
) -> torch.Tensor:
    """Mean over valid pixels; with class weights (C,) the weighted mean. 0 where no pixel is valid."""
    losses = pixel_cross_entropy(logits, target, ignore_index)
    valid = target != ignore_index
    if weight is None:
        return losses.sum() / valid.sum().clamp(min=1)
    of_pixel = torch.where(valid, F.pad(weight, (0, 1))[target.clamp(max=len(weight))], 0.0)
    return (losses * of_pixel).sum() / of_pixel.sum().clamp(min=1e-6)


def focal_loss(
    logits: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, ignore_index: int = IGNORE
) -> torch.Tensor:
    """Cross-entropy times (1 - p)^gamma of the true class (Lin et al. 2017), mean over valid pixels."""
    losses = pixel_cross_entropy(logits, target, ignore_index)
    wrong = -torch.expm1(-losses)
    return (wrong.clamp(min=0) ** gamma * losses).sum() / (target != ignore_index).sum().clamp(min=1)


def dual_cross_entropy_loss(
    logits: torch.Tensor, target: torch.Tensor, alpha: float = 1.0, beta: float = 1.0, ignore_index: int = IGNORE
) -> torch.Tensor:
    """Cross-entropy plus beta times the sum of log(alpha + p) over the wrong classes (Li et al. 2019), mean over valid
    pixels."""
    probability, one_hot, valid = _distributions(logits, target, ignore_index)
    wrong = ((alpha + probability).log() * (1 - one_hot)).sum(1)
    losses = pixel_cross_entropy(logits, target, ignore_index) + beta * wrong
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def dual_focal_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    rho: float = 1.0,
    ignore_index: int = IGNORE,
) -> torch.Tensor:
    """Cross-entropy plus alpha |y - p|^gamma over all classes, less beta log(rho - p) over the wrong ones (Hossain et al.
    2021), mean over valid pixels."""
    probability, one_hot, valid = _distributions(logits, target, ignore_index)
    distance = (one_hot - probability).abs().clamp(min=1e-6) ** gamma
    wrong = (rho - probability).clamp(min=1e-6).log() * (1 - one_hot)
    losses = pixel_cross_entropy(logits, target, ignore_index) + (alpha * distance - beta * wrong).sum(1)
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def _distributions(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, C, H, W) probabilities in fp32, (B, C, H, W) true classes as 0 and 1, (B, H, W) valid."""
    valid = target != ignore_index
    one_hot = torch.zeros_like(logits, dtype=torch.float32)
    one_hot.scatter_(1, torch.where(valid, target, 0)[:, None], 1.0)
    return logits.float().softmax(1), one_hot, valid


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "dyce": dyce_loss,
    "ce": cross_entropy_loss,
    "weighted_ce": cross_entropy_loss,
    "focal": focal_loss,
    "dual_ce": dual_cross_entropy_loss,
    "dual_focal": dual_focal_loss,
}


class PixelLoss(nn.Module):
    """One of `LOSSES` as a drop-in for cross-entropy: (B, C, H, W) logits, (B, H, W) classes, 255 = ignore.

    Args:
        name: key of `LOSSES`. num_classes: C. options: of the function.
    """

    def __init__(self, name: str, num_classes: int, **options: float) -> None:
        super().__init__()
        if name not in LOSSES:
            raise ConfigError(f"there is no pixel loss {name!r}; it can be {', '.join(LOSSES)}")
        self.name, self.options = name, options
        if name == "weighted_ce":  # in the checkpoint, so that a resumed run has the same
            self.register_buffer("class_weight", torch.ones(num_classes))

    def weigh(self, pixels: torch.Tensor) -> None:
        """Class weights from (C,) counts of annotated pixels: one over the frequency, scaled to mean 1 over the classes that
        occur; the others get the largest."""
        present = pixels > 0
        weight = 1 / pixels.clamp(min=1).double()
        weight = torch.where(present, weight, weight[present].max())
        self.class_weight.copy_(weight / weight[present].mean())

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        weight = {"weight": self.class_weight} if self.name == "weighted_ce" else {}
        return LOSSES[self.name](logits, target, **weight, **self.options)
