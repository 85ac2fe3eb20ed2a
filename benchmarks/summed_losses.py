"""Time and peak memory of SegKC's losses, forward and backward, with full-size logits of few images at a time, relative to those of
the whole batch at once.

    python -m benchmarks.summed_losses --images 8 --size 518 --classes 21 --rounds 3
"""

from __future__ import annotations

import argparse

import torch
from tabulate import tabulate

from dearli_d2.methods.segkc.losses import distillation_loss
from dearli_d2.modeling.per_pixel import losses as pixel_losses
from dearli_d2.modeling.per_pixel.losses import consistency_loss, supervised_loss

from .measure import Task, interleaved_seconds, peak_megabytes

LIMITS = {"few images at a time": pixel_losses.CHUNK_VALUES, "whole batch": 2**62}


def build(limit: int, images: int, size: int, classes: int) -> Task:
    """On the GPU where there is one, whose memory is then measured. A step of both networks: half of the images are labelled, half have pseudo-labels, all are distilled."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    coarse = 4 * (size // 14) * 2  # the DPT head's map for patches of 14
    senior, junior = torch.randn(2, images, classes, coarse, coarse, device=device)
    target = torch.randint(0, classes, (images, size, size), device=device)
    inside = torch.ones(images, size, size, dtype=torch.bool, device=device)
    known = images // 2

    def step() -> None:
        pixel_losses.CHUNK_VALUES = limit
        pair = senior.detach().requires_grad_(), junior.detach().requires_grad_()
        total = distillation_loss(*pair, inside, 2.0)
        for logits in pair:
            total = total + supervised_loss(logits[:known], target[:known])
            total = total + consistency_loss(logits[known:], target[known:], inside[known:])
        total.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    options = args.images, args.size, args.classes
    memory = {name: peak_megabytes(build, limit, *options) for name, limit in LIMITS.items()}
    tasks = {name: build(limit, *options) for name, limit in LIMITS.items()}
    seconds = interleaved_seconds(tasks, args.rounds)
    last = list(LIMITS)[-1]
    rows = [[n, seconds[n], seconds[n] / seconds[last], memory[n], memory[n] / memory[last]] for n in LIMITS]
    headers = [f"{args.images} images of {args.size}²", "seconds", "ratio", "peak MB", "ratio"]
    print(tabulate(rows, headers, floatfmt=("", ".2f", ".2f", ".0f", ".2f"), tablefmt="github"))


if __name__ == "__main__":
    main()
