"""What all ranks of a run must have in common: code, settings, images, start weights, and the checkpoint they go on from."""

from __future__ import annotations

import hashlib
import logging
import socket
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from .. import __version__
from ..errors import ConfigError, DearliError, WeightsError, first_few
from ..files import file_digest
from ..weights import read_file
from .checkpoints import RunCheckpoints
from .resume import describe_data, leaves

logger = logging.getLogger(__name__)

# paths and numbers of a machine, which need not be those of another one
_OF_A_MACHINE = {"OUTPUT_DIR", "DATASETS.CUSTOM.ROOT", "DATALOADER.NUM_WORKERS", "RANKS.START_TIMEOUT"}
_PIECE = 1 << 26  # bytes of a checkpoint that are sent at a time
_Error = TypeVar("_Error", bound=DearliError)


def check_alike(facts: Mapping[str, Any], error: type[_Error], advice: str) -> None:
    """Compares facts of all ranks. Each rank calls it.

    Args:
        facts: of this rank, by name; texts and numbers.
        error: the type of error.
        advice: what to do.

    Raises:
        DearliError: of the type `error`, facts differ, with their names, values and ranks.
    """
    if comm.get_world_size() == 1:
        return
    ranks = comm.all_gather((socket.gethostname(), dict(facts)))
    names = dict.fromkeys(name for _, found in ranks for name in found)
    unlike = [name for name in names if any(found.get(name) != ranks[0][1].get(name) for _, found in ranks)]
    if unlike:
        raise error(f"the ranks differ in {first_few([_difference(name, ranks) for name in unlike])}; {advice}")


def _difference(name: str, ranks: list[tuple[str, dict[str, Any]]]) -> str:
    where: dict[str, list[str]] = {}
    for rank, (host, found) in enumerate(ranks):
        where.setdefault(str(found.get(name, "nothing")), []).append(f"{rank} on {host}")
    return f"{name} ({'; '.join(f'{value}: rank {first_few(who, 2)}' for value, who in where.items())})"


def check_settings_alike(cfg: CfgNode) -> None:
    """Raises `ConfigError` unless all ranks run the same code with the same settings."""
    if comm.get_world_size() > 1:
        settings = {key: value for key, value in leaves(cfg).items() if key not in _OF_A_MACHINE}
        code = {"dearli_d2": __version__, "the code of dearli_d2": _code(), "torch": torch.__version__}
        check_alike(code | settings, ConfigError, "give all of them the same code, packages and command")


@cache
def _code() -> str:
    digest, folder = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def check_data_alike(cfg: CfgNode, keys: Sequence[str] = ("TRAIN", "SOURCE", "UNLABELED", "TEST")) -> None:
    """Raises `ConfigError` unless the data sets of a config have the same images, in the same order, on all ranks.

    Args:
        cfg: the config.
        keys: of the section DATASETS.
    """
    if comm.get_world_size() > 1:
        found = describe_data(cfg, keys)
        facts = {
            f"DATASETS.{key} {name}": f"{count} images, digest {digest}"
            for key, sets in found.items()
            for name, (count, digest, *_) in sets.items()
        }
        check_alike(facts, ConfigError, "copy the data of one machine to the others")


def check_weights_alike(model: nn.Module) -> None:
    """Raises `WeightsError` unless a model has the same weights on all ranks."""
    if comm.get_world_size() > 1:
        sums = {name: _bits(tensor) for name, tensor in model.state_dict().items() if tensor.numel()}
        values = torch.stack(list(sums.values())).tolist()
        facts = {f"the start weights of {name}": value for name, value in zip(sums, values, strict=True)}
        check_alike(facts, WeightsError, "copy the weight files of one machine to the others")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A sum over the bits of a tensor, the same on every device."""
    tensor = tensor.detach().contiguous()
    if tensor.is_floating_point():
        tensor = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    return tensor.sum(dtype=torch.int64)


def load_last_of_rank_0(checkpoints: RunCheckpoints) -> dict[str, Any] | None:
    """The content of the last checkpoint in the folder of rank 0, on every rank; None if there is none on any.

    A rank with another OUTPUT_DIR, on a machine of its own, that lacks the file or has an older one gets it from rank 0.

    Raises:
        WeightsError: the file cannot be read, or only another rank has one.
    """
    if comm.get_world_size() == 1:
        return checkpoints.load_last()
    path = checkpoints.last()
    own = None if path is None else (path.name, file_digest(path))
    ranks = comm.all_gather((f"{socket.gethostname()}:{checkpoints.folder}", own))
    first, unlike = ranks[0][1], [rank for rank, (_, other) in enumerate(ranks) if other != ranks[0][1]]
    held = [f"{ranks[rank][0]} of rank {rank} has {(ranks[rank][1] or ('none',))[0]}" for rank in unlike]
    if not unlike:
        return checkpoints.load_last()
    if first is None:
        raise WeightsError(
            f"there is no checkpoint in {ranks[0][0]} of rank 0, but {first_few(held)}; start the run so that rank 0 is where "
            "its files are, or copy them"
        )
    if comm.is_main_process():
        logger.warning("rank 0 sends %s to the others: %s", first[0], first_few(held))
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=checkpoints.folder, prefix=".received-", suffix=Path(first[0]).suffix) as copy:
        _send(path, copy, keep=comm.get_rank() in unlike)
        return read_file(copy.name) if comm.get_rank() in unlike else checkpoints.load_last()


def _send(path: Path | None, copy: Any, keep: bool) -> None:
    """Sends the file of rank 0 to all ranks, piece by piece on the CPU; those that keep it write it to `copy`."""
    group: Any = dist.new_group(backend="gloo")
    source = path.open("rb") if comm.is_main_process() and path is not None else None
    size = torch.tensor([path.stat().st_size if source and path else 0])
    dist.broadcast(size, 0, group=group)
    for begin in range(0, int(size), _PIECE):
        piece = torch.empty(min(_PIECE, int(size) - begin), dtype=torch.uint8)
        if source is not None:
            piece = torch.frombuffer(bytearray(source.read(len(piece))), dtype=torch.uint8)
        dist.broadcast(piece, 0, group=group)
        if keep:
            copy.write(piece.numpy().tobytes())
    copy.flush()
    if source is not None:
        source.close()
    dist.destroy_process_group(group)
