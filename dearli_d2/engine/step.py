"""What a training step leaves behind beside the gradients."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

Batch = dict[str, list[dict[str, Any]]]  # streams by name, their samples


class StepRecord:
    """Losses, files and loading time of a step that may have several parts (SOLVER.ACCUMULATION_STEPS).

    Args:
        parts: number of batches whose gradients are accumulated.

    Attributes:
        names: of the losses. losses: (N,) float32, means over the parts, on their device; nothing waits for them.
        files: of all samples.
        data_time: seconds in which the step waited for its batches.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.names: list[str] = []
        self.losses = torch.zeros(0)
        self.files: list[str] = []
        self.data_time = 0.0

    def load(self, stream: Iterator[Batch]) -> Batch:
        """The next batch of a stream."""
        start = time.perf_counter()
        batch = next(stream)
        self.data_time += time.perf_counter() - start
        self.files += [x["file_name"] for samples in batch.values() for x in samples]
        return batch

    def add(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Notes the losses of a part; returns their sum as a share of the step, a scalar for the backward pass."""
        values = stacked(losses) / self.parts
        noted = values.detach()
        self.losses = self.losses + noted if self.names else noted
        self.names = list(losses)
        return values.sum()


def stacked(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(N,) float32 of N scalar losses, with their gradients. Adding them one by one would launch N kernels on a GPU."""
    return torch.stack([loss.float() for loss in losses.values()])
