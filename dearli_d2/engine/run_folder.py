"""One run per output folder: a lock that ends with its process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ..errors import ConfigError

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_held: dict[Path, tuple[TextIO, int]] = {}  # open lock files of this process, and how many `FolderLock`s need each


def check_writable(folder: str | Path) -> None:
    """Raises `ConfigError` unless files can be made in `folder`, which is created."""
    probe = Path(folder) / f".write-test-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {folder} cannot be written to: {error.strerror}") from error


class FolderLock:
    """Keeps other processes out of an output folder until it is released or its process ends.

    A process may hold several locks on one folder. The system releases a lock when its process ends in any way, so a dead process
    leaves none. Worker processes do not inherit it.

    Raises:
        ConfigError: the folder cannot be written to, or another process holds it, with its number and host.
    """

    def __init__(self, folder: str | Path) -> None:
        check_writable(folder)
        path = Path(folder).resolve() / _LOCK
        handle, count = _held[path] if path in _held else (_acquire(path), 0)
        _held[path] = handle, count + 1
        self.release = weakref.finalize(self, _release, path)  # acts once

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _acquire(path: Path) -> TextIO:
    handle = path.open("a+")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            handle.close()
            raise ConfigError(
                f"OUTPUT_DIR {path.parent} is in use by {holder}; wait until it ends, or choose another OUTPUT_DIR"
            ) from error
        logger.warning(
            "the file system of %s has no locks (%s): start no second run there", path.parent, error.strerror
        )
    try:
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
    except OSError as error:  # of a full disk
        with suppress(OSError):
            handle.close()
        error.filename = str(path)
        raise
    return handle


def _release(path: Path) -> None:
    handle, count = _held.pop(path)
    if count > 1:
        _held[path] = handle, count - 1
    else:
        handle.close()
