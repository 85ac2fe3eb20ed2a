"""A batch on its way from a loader process to the device: all tensors of its samples in one buffer.

So a batch is one block of shared memory, one of pinned memory, and one copy to the GPU.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch

from .compact import unpacked

_ALIGNMENT = 64  # bytes; at least that of the largest element


class PackedBatch:
    """The samples of a batch.

    Args:
        samples: hold tensors of the CPU, and what else can be pickled.
    """

    def __init__(self, samples: Sequence[Any]) -> None:
        tensors: list[torch.Tensor] = []
        self.content = _pickled(samples, tensors)
        self.places, size = [], 0
        for tensor in tensors:
            self.places.append((size, tensor.dtype, tensor.shape))
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.buffer = _new_buffer(size)
        for tensor, view in zip(tensors, self._views(self.buffer), strict=True):
            view.copy_(tensor)

    def pin_memory(self) -> PackedBatch:
        """The batch in memory from which a GPU copies by itself. torch's DataLoader calls it."""
        self.buffer = self.buffer.pin_memory()
        return self

    def samples(self, device: torch.device | str = "cpu") -> list[Any]:
        """The samples, `unpacked` on `device`."""
        views = self._views(self.buffer.to(device, non_blocking=True))
        found = _Unpickler(io.BytesIO(self.content), views).load()
        return [unpacked(sample, device) if isinstance(sample, dict) else sample for sample in found]

    def _views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        return [
            buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for start, dtype, shape in self.places
        ]


def _new_buffer(size: int) -> torch.Tensor:
    """(size,) uint8; in a loader process in shared memory, so that nothing is copied on the way to the training process."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


def _pickled(samples: Sequence[Any], tensors: list[torch.Tensor]) -> bytes:
    """Pickles the samples without their tensors, which are added to a list."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> int | None:
            if not isinstance(part, torch.Tensor):
                return None
            tensors.append(part)
            return len(tensors) - 1

    content = io.BytesIO()
    Pickler(content, pickle.HIGHEST_PROTOCOL).dump(list(samples))
    return content.getvalue()


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(content)
        self.tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self.tensors[number]
