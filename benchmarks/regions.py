"""Batched K-means of unit vectors against scikit-learn's K-means from the same seeds, on the same cores.

    python -m benchmarks.regions --images 16 --side 32 --rounds 5

Unit vectors of CLIP's width on a side x side grid, seeds as Split Matching takes them (windows of 8 and 16 cells); whether
both find the same clusters is part of the table.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from tabulate import tabulate

from dearli_d2.methods.split_matching.regions import window_seeds
from dearli_d2.modeling.clustering import cosine_kmeans

from .measure import interleaved_seconds

ITERATIONS, WIDTH = 10, 512


def scenes(images: int, side: int) -> torch.Tensor:
    """(B, E, h, w): smooth fields with noise, so that neighbours are alike, as features of an image are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(images, WIDTH, side // 4, side // 4, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    return F.normalize(smooth + 0.3 * torch.randn(images, WIDTH, side, side, generator=generator), dim=1)


def scikit(points: torch.Tensor, seeds: torch.Tensor) -> list:
    """One model an image."""
    return [
        KMeans(len(s), init=s.numpy(), n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd").fit(p.numpy()).labels_
        for p, s in zip(points, seeds, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    dense = scenes(args.images, args.side)
    points = dense.flatten(2).transpose(1, 2).contiguous()
    rows = []
    for window in (8, 16):
        seeds = window_seeds(dense, window)
        tasks = {
            "scikit-learn": lambda s=seeds: scikit(points, s),
            "batched": lambda s=seeds: cosine_kmeans(points, s, ITERATIONS),
        }
        seconds = interleaved_seconds(tasks, args.rounds)
        theirs, ours = scikit(points, seeds), tasks["batched"]()[0]
        equal = [_same(torch.as_tensor(a).long(), b) for a, b in zip(theirs, ours, strict=True)]
        rows += [
            [window, seeds.shape[1], name, f"{1000 * value / args.images:.2f}", f"{seconds['scikit-learn'] / value:.1f}",
             f"{sum(equal)} of {len(equal)}"]
            for name, value in seconds.items()
        ]  # fmt: skip
    headers = ["window", "seeds", "", "ms an image", "times faster", "images with equal clusters"]
    print(tabulate(rows, headers, tablefmt="github"))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two labelings are the same partition."""
    pairs = torch.stack([a, b], 1).unique(dim=0)
    return len(pairs) == len(a.unique()) == len(b.unique())


if __name__ == "__main__":
    main()
