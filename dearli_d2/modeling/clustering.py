"""K-means with cosine similarity, in batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F


@torch.no_grad()
def cosine_kmeans(points: torch.Tensor, seeds: torch.Tensor, iterations: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """K-means (Lloyd) of unit vectors from given centroids, for a batch at once.

    On unit vectors distances are cosines: |x - y|^2 = 2 - 2 x y. A cluster that loses all its points keeps its centroid. The
    iterations end when no point of the batch moves.

    Args:
        points: (B, N, D) unit-norm.
        seeds: (B, S, D) unit-norm.
        iterations: largest number of iterations.

    Returns:
        (B, N) int64 the nearest centroid of each point; (B, S, D) centroids, scaled to unit norm.
    """
    batch, count, dim = seeds.shape
    offset = torch.arange(batch, device=seeds.device)[:, None] * count
    vectors, means = points.flatten(0, 1), seeds
    sums = torch.zeros(batch * count, dim, dtype=points.dtype, device=points.device)
    sizes = torch.zeros(batch * count, 1, dtype=points.dtype, device=points.device)
    assignment = _nearest(points, means)
    sums.index_add_(0, (assignment + offset).flatten(), vectors)
    sizes.index_add_(0, (assignment + offset).flatten(), torch.ones_like(vectors[:, :1]))
    for _ in range(iterations):
        means = torch.where(sizes > 0, sums / sizes.clamp(min=1), means.flatten(0, 1)).view_as(seeds)
        nearest = _nearest(points, means)
        moved = (nearest != assignment).flatten().nonzero()[:, 0]  # few, after the first step
        if not len(moved):
            break
        for labels, sign in ((assignment, -1), (nearest, 1)):
            rows = (labels + offset).flatten()[moved]
            sums.index_add_(0, rows, vectors[moved], alpha=sign)
            sizes.index_add_(0, rows, torch.ones_like(vectors[moved, :1]), alpha=sign)
        assignment = nearest
    return assignment, F.normalize(means, dim=-1)


def _nearest(points: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """(B, N) index of the nearest of the (B, S, D) means."""
    halves = means.square().sum(-1, keepdim=True) / 2
    # as (B, S, N) the product takes half the time on a CPU
    return torch.baddbmm(-halves, means, points.transpose(1, 2)).max(1).indices
