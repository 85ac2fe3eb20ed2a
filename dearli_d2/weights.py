"""Reads and writes weight files, and never runs code from a file.

It reads safetensors, torch files (weights only), TorchScript archives and the published pickles of numpy arrays. It writes torch
files.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from .errors import WeightsError
from .files import write_atomically
from .script_archive import is_script_archive, read_script_archive

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".pkl")
_LFS = b"version https://git-lfs"
_NUMPY_GLOBALS = {
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "collections")
    for name in ("ndarray", "dtype", "_reconstruct", "scalar", "OrderedDict")
}
# scores that published checkpoints hold beside their weights, such as `np.float64(86.3)`, as numpy before and after 2 names them
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)),
]


class _ArrayUnpickler(pickle.Unpickler):
    """Accepts numpy arrays in plain containers and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")
        return super().find_class(module, name)


def read_file(path: str | Path) -> dict[str, Any]:
    """The whole content of a weight file on the CPU.

    Raises:
        WeightsError: missing, of an unknown kind, damaged, or holding objects other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        from .weight_list import in_place_of_file

        raise WeightsError(f"no weight file {path}{in_place_of_file(path)}")
    if path.suffix not in _SUFFIXES:
        raise WeightsError(f"{path}: unknown kind of weight file; known are {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        elif is_script_archive(path):
            content = read_script_archive(path)
        else:
            with torch.serialization.safe_globals(_NUMPY_SCALARS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own error types for damage
        raise WeightsError(
            f"{path} cannot be read as weights (damaged or not a weight file): {_reason(path, error)}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise WeightsError(f"{path} holds a {type(content).__name__}; weights are a dictionary of names and tensors")
    return content


def _reason(path: Path, error: Exception) -> str:
    """One line, without torch's advice to trust the file."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            return "it is a pointer of Git LFS; `git lfs pull` fetches the file itself"
    message = str(error).rpartition("WeightsUnpickler error:")[2]
    return next(filter(None, map(str.strip, message.splitlines())), type(error).__name__)


def write_file(path: str | Path, content: dict[str, Any]) -> None:
    """Writes a torch file, whole or not at all.

    Raises:
        OSError: the file cannot be written, also where torch hides this behind an error of its own.
    """

    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as stream:
                torch.save(content, stream)
        except RuntimeError as error:
            cause = error.__context__
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None

    write_atomically(path, write)


def state_dict_of(content: dict[str, Any], path: str | Path, which: str = "student") -> dict[str, torch.Tensor]:
    """The model's tensors in a file's content: all of it, or its entry "model", "state_dict" or "model_state_dict".

    Args:
        content: of the file.
        path: of the file, for errors.
        which: "teacher" replaces the student's tensors by the teacher's. The file holds tensors that both share once; a file of
            others holds all of the teacher as "model_ema".
    """
    if which == "teacher" and isinstance(content.get("model_ema"), dict):
        content = content["model_ema"]
    elif which == "teacher":
        if "teacher" not in content:
            raise WeightsError(
                f"{path} holds no teacher; TEST.WEIGHTS teacher is for checkpoints of semi-supervised runs"
            )
        try:
            content = {"model": {**content["model"], **content["teacher"]["model"]}}
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{path} holds no teacher of a semi-supervised run") from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            value = torch.from_numpy(np.asarray(value))
        if isinstance(value, torch.Tensor):
            tensors[name.removeprefix("module.")] = value
    if not tensors:
        raise WeightsError(f"{path} holds no tensor; found the keys {list(content)[:5]}")
    return tensors


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The model's tensors in a weight file, on the CPU. Raises `WeightsError`."""
    return state_dict_of(read_file(path), path)
