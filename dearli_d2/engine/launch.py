"""Starts the processes of a training run or an evaluation, and ends them in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from detectron2.engine import launch as _detectron2_launch
from detectron2.utils import comm


def launch(
    function: Callable[..., Any],
    processes: int,
    machines: int = 1,
    machine: int = 0,
    url: str = "auto",
    arguments: tuple[Any, ...] = (),
) -> None:
    """Calls a function in every process, and closes the process group once all processes have returned.

    detectron2's own launcher leaves the group open. A process that ends while gloo's threads still run is then killed by
    SIGABRT now and then, although its work is done.

    Args:
        function: must be importable by name, since it is pickled where there is more than one process.
        processes: of this machine; 1 in all runs in the calling process.
        machines, machine: number of machines, and which of them this is.
        url: where machine 0 waits for the others; "auto" for a single machine.
        arguments: of the function.

    Raises:
        torch.multiprocessing.ProcessRaisedException, ProcessExitedException: a process failed.
    """
    _detectron2_launch(_run_and_close, processes, machines, machine, url, (function, arguments))


def _run_and_close(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    function(*arguments)
    if dist.is_initialized():
        comm.synchronize()  # the first to close would end a collective of the others
        dist.destroy_process_group()
