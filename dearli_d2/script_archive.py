"""Reads the tensors of a TorchScript archive, such as OpenAI's own CLIP files, without running its code.

`torch.jit.load` would run code of the file. Here only its list of tensors is read.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_CODE = "code/"
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Module:
    """Stands for an object of the archive's own classes; `kind` is its class's name, `entries` are its attributes."""

    kind = ""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.entries = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (_Module,), {"kind": f"{module}.{name}", "__init__": _Module.__init__})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":
            return lambda *values: values  # lists of numbers, which are no weights
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")

    def persistent_load(self, pid: tuple) -> torch.Tensor:
        _, dtype, key, *_ = pid
        data = bytearray(self.archive.read(f"{self.root}data/{int(key)}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    if not math.prod(size):
        return storage.new_empty(size)
    return storage.as_strided(size, stride, offset).clone()


def is_script_archive(path: str | Path) -> bool:
    """True if a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_script_archive(path: str | Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, on the CPU, as `torch.jit.load(path).state_dict()` would give them."""
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).removesuffix(
            "constants.pkl"
        )
        weights = _weights_of_classes(archive, root)
        return dict(_named(_Unpickler(archive, root).load(), weights))


def _named(module: _Module, weights: dict[str, set[str]], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in module.entries.items():
        if isinstance(value, _Module):
            yield from _named(value, weights, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor) and name in weights.get(module.kind, ()):
            yield prefix + name, value


def _weights_of_classes(archive: zipfile.ZipFile, root: str) -> dict[str, set[str]]:
    """The names of the parameters and buffers of each class. Other tensors among its attributes are no weights."""
    result: dict[str, set[str]] = {}
    for name in archive.namelist():
        if not (name.startswith(root + _CODE) and name.endswith(".py")):
            continue
        module = name.removeprefix(root + _CODE).removesuffix(".py").replace("/", ".")
        for part in re.split(r"^class ", archive.read(name).decode(), flags=re.MULTILINE)[1:]:
            lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*?)\]", part, flags=re.MULTILINE | re.DOTALL)
            class_name = re.split(r"[(:]", part, maxsplit=1)[0]
            result[f"{module}.{class_name}"] = set(re.findall(r'"([^"]*)"', " ".join(lists)))
    return result
