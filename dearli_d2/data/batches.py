"""Packs all tensors of a batch into one buffer, which goes from a loader process to the device.

A batch then takes one block of shared memory, one block of pinned memory, and one copy to the GPU.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch

from .compact import unpacked

_ALIGNMENT = 64  # bytes; a multiple of the size of every element


class PackedBatch:
    """The samples of a batch, with their tensors in one buffer.

    Args:
        samples: any values that can be pickled, with tensors on the CPU among them.
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
        """Moves the buffer to pinned memory, from which the GPU copies without blocking the host. torch's DataLoader calls this."""
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
    """(size,) uint8. In a loader process it is shared memory, so the training process needs no copy."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


def _pickled(samples: Sequence[Any], tensors: list[torch.Tensor]) -> bytes:
    """Pickles the samples without their tensors, and appends these to `tensors`."""

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
