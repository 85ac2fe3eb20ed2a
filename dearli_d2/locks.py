"""Locks between processes, on files. That of a killed process hinders nobody."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DatasetError


@contextmanager
def only_process(path: Path, doing: str = "prepares this data set") -> Iterator[None]:
    """Refuses a second process that would write the same files.

    Args:
        path: the lock file, which is removed at the end.
        doing: describes the work in the error.

    Raises:
        DatasetError: another process works there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise DatasetError(f"another process {doing} ({path} is locked); wait until it ends") from error
        yield
        path.unlink(missing_ok=True)


@contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Waits until no other process is inside. On a file system without locks nobody waits.

    Args:
        path: the lock file, which stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        with suppress(OSError):
            fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
