"""Time of the per-pixel losses, forward and backward, relative to torch's cross-entropy.

python -m benchmarks.dyce --size 8 19 512 512 --rounds 5
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from dearli_d2.modeling.per_pixel.losses import LOSSES, PixelLoss

from .measure import interleaved_seconds


def step(loss: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> None:
    """Loss and its gradient."""
    logits.grad = None
    loss(logits, target).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, nargs=4, default=(8, 19, 512, 512))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    batch, classes, height, width = args.size
    logits = torch.randn(*args.size, device=args.device, requires_grad=True)
    target = torch.randint(0, classes, (batch, height, width), device=args.device)
    target[torch.rand(target.shape, device=args.device) < 0.1] = 255
    losses = {"torch cross-entropy": partial(F.cross_entropy, ignore_index=255)}
    losses |= {name: PixelLoss(name, classes).to(args.device) for name in LOSSES}
    tasks = {name: partial(step, loss, logits, target) for name, loss in losses.items()}
    seconds = interleaved_seconds(tasks, args.rounds)
    base = seconds["torch cross-entropy"]
    rows = [[name, f"{value:.3f}", f"{value / base:.2f}"] for name, value in seconds.items()]
    size = " x ".join(map(str, args.size))
    print(tabulate(rows, [f"{size}, {args.device}", "s", "ratio"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
