"""Interleaved timing and peak memory: ratios of implementations measured in one run, since machines are noisy."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from tabulate import tabulate

Task = Callable[[], object]
T = TypeVar("T")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved_seconds(tasks: dict[str, Task], rounds: int) -> dict[str, float]:
    """Median seconds of each task; one warm-up, then `rounds` rounds in which every task runs once."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_index in range(rounds + 1):
        for name, task in tasks.items():
            gc.collect()
            synchronize()
            start = time.perf_counter()
            task()
            synchronize()
            if round_index:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_megabytes(build: Callable[..., Task], *args: object) -> float:
    """Memory that one call of the built task adds at its peak: on the GPU by torch's allocator, on the CPU as the
    growth of the resident set of a process of its own."""
    if torch.cuda.is_available():
        task = build(*args)
        task()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return in_own_process(_growth, build, *args)


def in_own_process(function: Callable[..., T], *args: object) -> T:
    """The result of a function in a fresh process, so that memory is that of its work alone."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_put, args=(queue, function, args))
    process.start()
    result = queue.get()
    process.join()
    return result


def compare_steps(builders: dict[str, Callable[..., Task]], options: tuple, rounds: int) -> str:
    """Table of seconds and peak memory of training steps, with ratios to the last of them.

    Args:
        builders: name to a function of module level that makes the step from `options`.
    """
    memory = {name: in_own_process(_peak_of_steps, build, options) for name, build in builders.items()}
    seconds = interleaved_seconds({name: build(*options) for name, build in builders.items()}, rounds)
    last = list(builders)[-1]
    own = {name: peak - libraries for name, (peak, libraries) in memory.items()}
    rows = [
        [name, seconds[name], seconds[name] / seconds[last], memory[name][0], own[name], own[name] / own[last]]
        for name in builders
    ]
    headers = ["schedule", "seconds", "ratio", "peak MB", "without libraries", "ratio"]
    return tabulate(rows, headers, floatfmt=("", ".2f", ".2f", ".0f", ".0f", ".2f"), tablefmt="github")


def _peak_of_steps(build: Callable[..., Task], options: tuple) -> tuple[float, float]:
    """Peak of two steps in megabytes, and what of it was there before the model: of GPU memory nothing, of the process's
    resident set the interpreter and its libraries."""
    libraries = _resident_megabytes()
    step = build(*options)
    for _ in range(2):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20, 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, libraries


def _put(queue: multiprocessing.Queue, function: Callable[..., float], args: tuple) -> None:
    queue.put(function(*args))


def _growth(build: Callable[..., Task], *args: object) -> float:
    task = build(*args)
    before = _resident_megabytes()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident_megabytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    task()
    done.set()
    watcher.join()
    return peak[0] - before


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
