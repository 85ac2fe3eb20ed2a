"""Joins the processes of a training run or an evaluation, and ends them in order."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import multiprocessing

from ..config.run_sections import Ranks
from ..environment import Started
from ..errors import ConfigError, DearliError, first_few
from ..reporting import report_errors
from .watch import Watch, settle

_LOST = re.compile(r"gloo|nccl|store|connection (was )?(closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)


def launch(
    function: Callable[..., Any],
    processes: int,
    machines: int = 1,
    machine: int = 0,
    url: str = "auto",
    arguments: tuple[Any, ...] = (),
    device: str | None = None,
    limits: Ranks = Ranks(),
) -> None:
    """Calls a function in every process of this machine, and waits until all have returned.

    Args:
        function: must be importable by name, since it is pickled where there is more than one process.
        processes: of this machine; 1 in all runs in the calling process.
        machines, machine: number of machines, and which of them this is.
        url: where machine 0 waits for the others; "auto" for a single machine.
        arguments: of the function.
        device: "cuda" joins the processes by NCCL, each with a GPU of its own, "cpu" by gloo; None = CUDA where there is any.
        limits: how long the processes wait for each other.

    Raises:
        torch.multiprocessing.ProcessRaisedException, ProcessExitedException: a process failed.
    """
    world = processes * machines
    if world == 1:
        function(*arguments)
        return
    if url == "auto":
        with socket.socket() as probe:  # another program may take the port before rank 0 does, which then says so
            probe.bind(("127.0.0.1", 0))
            url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = processes, world, machine, url, device, limits
    multiprocessing.start_processes(_worker, (function, arguments, *options), processes, daemon=False)


def _worker(
    local: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    processes: int,
    world: int,
    machine: int,
    url: str,
    device: str,
    limits: Ranks,
) -> None:
    place = Started("", machine * processes + local, world, local, processes, url)
    run_started(place, function, arguments, device, limits)


def run_started(
    place: Started, function: Callable[..., Any], arguments: tuple[Any, ...], device: str, limits: Ranks
) -> NoReturn:
    """Calls a function in this process, which is one of several, and ends the process. An error is a line.

    Args:
        place: of this process among the others.
        function, arguments, device, limits: see `launch`.
    """

    def rank() -> int:
        with joined(place, device, limits):
            function(*arguments)
        return 0

    status = report_errors(rank)
    # not left to the interpreter: a process that ends while gloo's threads run can be killed by SIGABRT, also after a success
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def joined(place: Started, device: str, limits: Ranks) -> Iterator[None]:
    """The process group of a run around a block, with detectron2's group of this machine, watched by all ranks.

    Args:
        place, device, limits: see `run_started`.

    Raises:
        ConfigError: the processes do not meet in time, or their places contradict each other.
    """
    gpu = gpu_of(place) if device == "cuda" else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    store = _meet(place, limits.start_timeout)
    dist.init_process_group(
        "gloo" if gpu is None else "nccl",
        store=dist.PrefixStore("group", store),
        rank=place.rank,
        world_size=place.world,
        timeout=timedelta(seconds=limits.hang_timeout),
    )
    watch = Watch(place.rank, place.world, store, place.url, limits, told_to_end=bool(place.by))
    try:
        _create_local_group(place, gpu)
        yield
        comm.synchronize()  # the first to leave would end a collective of the others
    except BaseException as error:
        if isinstance(error, RuntimeError) and _LOST.search(str(error)):
            settle()
        watch.stop(_reason(error))
        raise
    watch.stop()
    dist.destroy_process_group()


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, DearliError) and text:
        return text[-1]
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def gpu_of(place: Started) -> int:
    """The number of the GPU of a process. Raises `ConfigError` if this machine has too few."""
    count = torch.cuda.device_count()
    if place.local < count:
        return place.local
    if (
        count == 1 and place.by == "srun"
    ):  # SLURM may show each task its own GPU alone; whether it does is checked later
        return 0
    raise ConfigError(
        f"{place.by or 'the command'} starts {place.local_world or place.local + 1} processes or more on {socket.gethostname()}, "
        f"which has {count} GPUs; start one for each GPU"
    )


def _meet(place: Started, seconds: float) -> dist.Store:
    """The store of the run, once all processes have come."""
    limit = timedelta(seconds=seconds)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}" if place.url.startswith("env:") else place.url
    try:
        store = _open_store(place, limit)
        store.set(f"here/{place.rank}", socket.gethostname())
        missing, until = list(range(place.world)), time.monotonic() + seconds
        while missing := [rank for rank in missing if not store.check([f"here/{rank}"])]:
            if time.monotonic() > until:
                break
            time.sleep(0.1)
    except (RuntimeError, ValueError) as error:
        if place.rank == 0 and "EADDRINUSE" in str(error):
            advice = "choose another port" + ("" if place.by != "srun" else " with MASTER_PORT")
            raise ConfigError(f"rank 0 cannot wait for the others at {where}: the port is in use; {advice}") from error
        raise ConfigError(
            f"rank {place.rank} does not reach rank 0 at {where} within {seconds:g} s (RANKS.START_TIMEOUT): "
            f"{str(error).splitlines()[0]}. Does rank 0 run, and may this machine connect to it?"
        ) from error
    if missing:
        raise ConfigError(
            f"{place.world - len(missing)} of {place.world} processes have met at {where} within {seconds:g} s "
            f"(RANKS.START_TIMEOUT); missing: rank {first_few(missing)}"
        )
    return store


def _open_store(place: Started, limit: timedelta) -> dist.Store:
    parts = urlparse(place.url)
    if parts.scheme == "env":  # torchrun may hold the store itself
        store: dist.Store
        store, _, _ = next(iter(dist.rendezvous(place.url, place.rank, place.world, timeout=limit)))
        return store
    if parts.scheme == "file":
        return dist.FileStore(parts.path, place.world)
    return dist.TCPStore(
        str(parts.hostname), int(parts.port or 0), place.world, place.rank == 0, limit, wait_for_workers=False
    )


def _create_local_group(place: Started, gpu: int | None) -> None:
    """detectron2's group of the processes of a machine, which it makes of consecutive ranks, equally many a machine."""
    unique = None if gpu is None else str(getattr(torch.cuda.get_device_properties(gpu), "uuid", "")) or None
    ranks = comm.all_gather((socket.gethostname(), place.local, place.local_world, unique))
    hosts = [host for host, *_ in ranks]
    sizes = [size or hosts.count(host) for host, _, size, _ in ranks]
    if set(sizes) != {sizes[0]} or any(local != rank % sizes[0] for rank, (_, local, _, _) in enumerate(ranks)):
        layout = ", ".join(
            f"{host}: {[r for r, other in enumerate(hosts) if other == host]}" for host in dict.fromkeys(hosts)
        )
        raise ConfigError(
            f"each machine must run equally many processes, with ranks in a row, but these are the ranks of each: {layout}; with "
            "srun: --ntasks-per-node N --distribution block"
        )
    taken: dict[str, int] = {}
    for rank, (host, _, _, unique) in enumerate(ranks):
        if unique is not None and taken.setdefault(unique, rank) != rank:
            raise ConfigError(
                f"ranks {taken[unique]} and {rank} share one GPU of {host}; start one process for each GPU"
            )
    comm.create_local_process_group(sizes[0])
