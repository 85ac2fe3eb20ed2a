"""Losses of per-pixel classification: DyCE (SemiDAViL, Sec. 3.4) and those it is compared with (its supplement D)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError
from ..mask2former.inference import resize_logits
from ..ranks import gather_rows, kth_largest, over_ranks

IGNORE = 255
# number of full-size logits that a summed loss holds at once, 64 MB in fp32
CHUNK_VALUES = 2**24


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
    """Dynamic cross-entropy of the hardest pixels; rare classes among them weigh more (SemiDAViL, eq. 9).

    L = sum over hard pixels i of n_H^-omega n_c(i)^-(1 - omega) l_i, where n_H counts the hard pixels and n_c those of class c.
    With omega 1 it is their mean, with omega 0 the sum of the means of their classes. No gradient passes through the choice or
    the counts. The hard pixels are those of all ranks. Their number goes to the host.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) int64.
        hard_fraction: share of the valid pixels that count as hard, at least one pixel.
        omega: 0..1.
        ignore_index: class of the pixels without a loss.

    Returns:
        A scalar in fp32; exactly 0, with a graph, where no pixel is valid.
    """
    losses, labels = pixel_cross_entropy(logits, target, ignore_index).flatten(), target.flatten()
    with torch.no_grad():
        valid = labels != ignore_index
        hard = _hardest(torch.where(valid, losses, -1.0), valid, hard_fraction)
        classes = labels[hard]
        counts = torch.zeros(logits.shape[1] + 1, device=logits.device)  # the last one is n_H
        counts[:-1] = torch.bincount(classes, minlength=logits.shape[1])
        counts[-1].fill_(len(classes))
        ranks = comm.get_world_size()
        if ranks > 1:
            torch.distributed.all_reduce(counts)
        counts = counts.clamp(min=1)
        # data-parallel training averages the gradients of the ranks; this is a sum over them
        weights = ranks * (counts[:-1] ** (omega - 1) * counts[-1] ** -omega)[classes]
    return (losses[hard] * weights).sum()


def _hardest(losses: torch.Tensor, valid: torch.Tensor, fraction: float) -> torch.Tensor:
    """Indices of the valid pixels of this rank that are among the hardest `fraction` of all ranks, at least one of them.

    Args:
        losses: (N,), 0 or more where `valid`, -1 elsewhere.
    """
    if comm.get_world_size() == 1:
        count = int(valid.sum())
        return losses.topk(min(max(1, round(fraction * count)), count), sorted=False).indices
    total = gather_rows(valid.sum()[None]).sum()
    wanted = torch.minimum((fraction * total.double()).round().long().clamp(min=1), total)
    least = kth_largest(losses, wanted)
    above, equal = losses > least, losses == least
    counts = gather_rows(torch.stack([above.sum(), equal.sum()]))
    # of pixels with the same loss the first ranks take theirs first
    left = wanted - counts[:, 0].sum() - counts[: comm.get_rank(), 1].sum()
    return (above | (equal & (equal.cumsum(0) <= left))).nonzero()[:, 0]


def cross_entropy_loss(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, ignore_index: int = IGNORE
) -> torch.Tensor:
    """Mean over the valid pixels of all ranks; with class weights (C,) the weighted mean. 0 where no pixel is valid."""
    losses = pixel_cross_entropy(logits, target, ignore_index)
    valid = target != ignore_index
    if weight is None:
        return losses.sum() / over_ranks(valid.sum())
    of_pixel = torch.where(valid, F.pad(weight, (0, 1))[target.clamp(max=len(weight))], 0.0)
    return (losses * of_pixel).sum() / over_ranks(of_pixel.sum(), least=1e-6)


def focal_loss(
    logits: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, ignore_index: int = IGNORE
) -> torch.Tensor:
    """Cross-entropy times (1 - p)^gamma of the true class (Lin et al. 2017), mean over the valid pixels of all ranks."""
    losses = pixel_cross_entropy(logits, target, ignore_index)
    wrong = -torch.expm1(-losses)
    return (wrong.clamp(min=0) ** gamma * losses).sum() / over_ranks((target != ignore_index).sum())


def dual_cross_entropy_loss(logits: torch.Tensor, target: torch.Tensor, ignore_index: int = IGNORE) -> torch.Tensor:
    """Cross-entropy plus the sum of log(1 + p) over the wrong classes (Li et al. 2019, alpha and beta 1).

    It is the mean over the valid pixels of all ranks.
    """
    losses = pixel_cross_entropy(logits, target, ignore_index)
    return _mean_with(losses, _over_wrong_classes(torch.log1p, logits, target, ignore_index), target, ignore_index)


def dual_focal_loss(logits: torch.Tensor, target: torch.Tensor, ignore_index: int = IGNORE) -> torch.Tensor:
    """Cross-entropy plus |y - p| over all classes, less log(1 - p) over the wrong ones (Hossain et al. 2021).

    All constants are 1. It is the mean over the valid pixels of all ranks.
    """
    losses = pixel_cross_entropy(logits, target, ignore_index)
    distance = -2 * torch.expm1(-losses)  # 1 - p of the true class, and as much over the wrong ones
    wrong = _over_wrong_classes(_log_of_complement, logits, target, ignore_index)
    return _mean_with(losses, distance - wrong, target, ignore_index)


def _log_of_complement(probability: torch.Tensor) -> torch.Tensor:
    return (1 - probability).clamp(min=1e-6).log()


def _over_wrong_classes(
    function: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor, target: torch.Tensor, ignore_index: int
) -> torch.Tensor:
    """(B, H, W) sum over the classes but the true one of a function of their probability, in fp32."""
    with torch.autocast(logits.device.type, enabled=False):
        values = function(logits.float().softmax(1))
    own = target.masked_fill(target == ignore_index, 0)
    return values.sum(1) - values.gather(1, own[:, None])[:, 0]


def _mean_with(losses: torch.Tensor, more: torch.Tensor, target: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Mean of the sum of both over the valid pixels of all ranks."""
    valid = target != ignore_index
    return ((losses + more) * valid).sum() / over_ranks(valid.sum())


def summed_loss(
    loss: Callable[..., torch.Tensor], logits: Sequence[torch.Tensor], maps: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Sum over all pixels of a loss that needs one image at a time.

    The logits of a large batch at full size can take more memory than the network itself. They are brought to full size for a
    few images at a time, and again in the backward pass.

    Args:
        loss: takes logits and maps of b images, and gives (b, H, W).
        logits: tensors (B, C, h, w), resized to the maps.
        maps: tensors (B, H, W).
    """
    size = maps[0].shape[-2:]

    def of_some(*tensors: torch.Tensor) -> torch.Tensor:
        full = (resize_logits(x.float(), size) for x in tensors[: len(logits)])
        return loss(*full, *tensors[len(logits) :]).sum()

    images, classes = logits[0].shape[:2]
    count = max(1, CHUNK_VALUES // (classes * size.numel()))
    with torch.autocast(logits[0].device.type, enabled=False):
        if count >= images:
            return of_some(*logits, *maps)
        parts = zip(*(x.split(count) for x in (*logits, *maps)), strict=True)
        sums = (checkpoint(of_some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts)
        return reduce(torch.add, sums)


def supervised_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, mean over the annotated pixels of all ranks; 0 where there are none.

    Args:
        logits: (B, C, h, w), resized to the target.
        target: (B, H, W), 255 = ignore.
    """
    return summed_loss(pixel_cross_entropy, (logits,), (target,)) / over_ranks((target != IGNORE).sum())


@torch.no_grad()
def hard_targets(logits: torch.Tensor, target: torch.Tensor, keep: int, below: float = 0.7) -> torch.Tensor:
    """The target without its easy pixels (online hard example mining, as in UniMatch V2 on Cityscapes).

    Hard are the pixels whose true class has at most the probability `below`, and the `keep` hardest of each image on average
    over all ranks.

    Args:
        logits: (B, C, h, w), resized to the target.
        target: (B, H, W), 255 = ignore.
        keep: pixels of an image.
        below: 0..1.

    Returns:
        (B, H, W), 255 = ignore or easy.
    """
    size = target.shape[-2:]
    pairs = zip(logits.split(1), target.split(1), strict=True)
    losses = torch.cat([pixel_cross_entropy(resize_logits(x.float(), size), of_one) for x, of_one in pairs])
    count = min(keep * len(target), target.numel())
    # ignored pixels have the loss 0, so they are among the hardest only where all others are too
    hardest = kth_largest(losses.flatten(), comm.get_world_size() * count)
    return target.masked_fill(losses < hardest.clamp(max=-math.log(max(below, 1e-6))), IGNORE)


def consistency_loss(logits: torch.Tensor, target: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the confident pixels, divided by the number of all pixels without padding (UniMatch).

    The number is that of all ranks.

    Args:
        logits: (B, C, h, w), resized to the target.
        target: (B, H, W), 255 = not confident.
        inside: (B, H, W) bool, False = padding.
    """
    return summed_loss(pixel_cross_entropy, (logits,), (target,)) / over_ranks(inside.sum())


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
        name: key of `LOSSES`.
        num_classes: C.
        options: of the function.
    """

    class_weight: torch.Tensor

    def __init__(self, name: str, num_classes: int, **options: float) -> None:
        super().__init__()
        if name not in LOSSES:
            raise ConfigError(f"there is no pixel loss {name!r}; it can be {', '.join(LOSSES)}")
        self.name, self.options = name, options
        if name == "weighted_ce":  # in the checkpoint, so that a resumed run has the same
            self.register_buffer("class_weight", torch.ones(num_classes))

    def weigh(self, pixels: torch.Tensor) -> None:
        """Sets the class weights from (C,) counts of annotated pixels.

        They are one over the frequency, scaled to mean 1 over the classes that occur. The other classes get the largest.
        """
        present = pixels > 0
        weight = 1 / pixels.clamp(min=1).double()
        weight = torch.where(present, weight, weight[present].max())
        self.class_weight.copy_(weight / weight[present].mean())

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar; see the class."""
        weight = {"weight": self.class_weight} if self.name == "weighted_ce" else {}
        return LOSSES[self.name](logits, target, **weight, **self.options)
