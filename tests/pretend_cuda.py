"""A device that is called CUDA and computes on the CPU: finds tensors on the wrong device, and waits for the device, where there
is no GPU. The backward pass needs a real one."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
_COPIES = (aten.copy_.default, aten._to_copy.default)
_INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
_WAITS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)


class DeviceMix(RuntimeError):
    """An operation on tensors of different devices."""


class CudaTensor(torch.Tensor):
    """A tensor on the pretended device; `inner` is the one on the CPU that holds the values."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> CudaTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CUDA,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"CudaTensor({self.inner!r})"

    def tolist(self) -> Any:
        """torch has none for subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendCuda(TorchDispatchMode):
    """Within it "cuda" is a device. `waits` counts by operation how often the host waited for the device: for its values, or in a copy
    to it that blocks until all work before it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._fake = FakeTensorMode()  # while one is active, torch does not look for a GPU; it computes nothing here

    def __enter__(self) -> PretendCuda:
        self._cudnn, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False  # has operations of its own
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)
        torch.backends.cudnn.enabled = self._cudnn

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            self.waits[str(func)] += 1
        return _run(func, args, kwargs)


def _waits(func: Any, args: tuple, kwargs: dict) -> bool:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    if func in _COPIES and not kwargs.get("non_blocking", func is aten.copy_.default and len(args) > 2 and args[2]):
        sources = args[1:2] if func is aten.copy_.default else args[:1]
        there = isinstance(args[0], CudaTensor) if func is aten.copy_.default else _named(kwargs) == "cuda"
        if there and not any(isinstance(x, CudaTensor) for x in sources):
            return True
    if not any(isinstance(x, CudaTensor) for x in tensors):
        return False
    if func in _INDEXING:
        return any(i is not None and i.dtype == torch.bool for i in args[1])
    if func is aten.copy_.default:
        return not isinstance(args[0], CudaTensor)
    return func in _WAITS or (func is aten._to_copy.default and _named(kwargs) == "cpu")


def _named(kwargs: dict) -> str | None:
    device = kwargs.get("device")
    return None if device is None else torch.device(device).type


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, CudaTensor) for x in tensors)
    if there and func not in _COPIES:
        _check(func, args, [x for x in tensors if not isinstance(x, CudaTensor) and x.dim()])
    named = _named(kwargs)
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, CudaTensor) else x, (args, kwargs))
    if named == "cuda":
        inner_kwargs["device"] = torch.device("cpu")
    with _disable_current_modes():
        result = func(*inner_args, **inner_kwargs)
        on_cuda = isinstance(args[0], CudaTensor) if func is aten.copy_.default else there
        if not (named == "cuda" if named else on_cuda):
            return result
        wrapped = tree_map(lambda x: CudaTensor(x) if isinstance(x, torch.Tensor) else x, result)
        return wrapped if named else return_and_correct_aliasing(func, args, kwargs, wrapped)


def _check(func: Any, args: tuple, on_cpu: list[torch.Tensor]) -> None:
    """Indices may be on the CPU, numbers too; all else must not."""
    if func in _INDEXING:
        if not isinstance(args[0], CudaTensor):
            raise DeviceMix(f"{func}: indices on CUDA into a tensor on the CPU")
        on_cpu = [x for x in on_cpu if not any(x is index for index in args[1])]
    if on_cpu:
        raise DeviceMix(f"{func}: besides tensors on CUDA some on the CPU, {[tuple(x.shape) for x in on_cpu]}")


def move(module: nn.Module) -> None:
    """Parameters and buffers to the pretended device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(CUDA), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.detach().to(CUDA)


class TwoRanks:
    """As if a second process had the same tensors and NCCL joined them: collectives refuse tensors on the CPU, and what is sent as an
    object must hold none on the device, which the receiver does not have. `calls` counts collectives of tensors; `other` is what
    the other rank has instead, if set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.other = 0, None
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "all_reduce", self._all_reduce)
        # detectron2's batch norm asks here; the means of two equal ranks are those of one
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 1)
        for name in ("all_gather", "broadcast", "reduce", "gather", "scatter", "all_gather_into_tensor"):
            monkeypatch.setattr(torch.distributed, name, self._unknown)
        for name in ("all_gather", "gather"):
            monkeypatch.setattr(comm, name, self._objects)

    def _all_reduce(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "cpu":
            raise RuntimeError("No backend type associated with device type cpu")
        self.calls += 1
        tensor.add_(tensor.clone() if self.other is None else self.other)

    @staticmethod
    def _unknown(*_: Any, **__: Any) -> None:
        raise AssertionError("a collective that no test has seen before")

    @staticmethod
    def _objects(value: Any) -> list[Any]:
        class Refusing(pickle.Pickler):
            def persistent_id(self, part: Any) -> None:
                if isinstance(part, torch.Tensor) and part.device.type != "cpu":
                    raise AssertionError("a tensor on the device inside of an object that is sent to other ranks")

        Refusing(io.BytesIO()).dump(value)
        return [value, value]
