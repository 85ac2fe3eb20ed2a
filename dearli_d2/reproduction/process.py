"""A `dearli` command in a process of its own, which ends with this one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_DEATH = 1  # PR_SET_PDEATHSIG of Linux


def run_dearli(words: Sequence[str]) -> int:
    """Runs `dearli` with the same Python; Ctrl-C and SIGTERM end both.

    Returns:
        The exit status; of a process that a signal ended, 128 and its number.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the command has ended.
        SystemExit: SIGTERM, likewise.
    """
    command = [sys.executable, "-m", "dearli_d2", *words]
    with _terminable(), subprocess.Popen(command, preexec_fn=_end_with_parent()) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    return status if status >= 0 else 128 - status


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `SystemExit`, so that the command can be ended first."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> Callable[[], None] | None:
    """The first call of the new process, by which it ends with this one even if this one is killed; on Linux alone."""
    if sys.platform != "linux":
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_DEATH, signal.SIGTERM)
