"""Errors as a user sees them: one line on the console, the stack trace in the run's `log.txt`."""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import DearliError

if TYPE_CHECKING:
    from torch.multiprocessing import ProcessExitedException

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit statuses
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TRACE = "Traceback (most recent call last)"


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory ran out: that of a GPU, of Python, or of torch on the CPU, which has no type for it."""
    torch = sys.modules.get("torch")  # not imported here: a command without it is quick
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError))
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def report_errors(command: Callable[[], int]) -> int:
    """Runs a command; what goes wrong ends it with one line.

    Returns:
        The command's exit status; 2 after an error that a user can mend, 130 after Ctrl-C, 141 if the reader of the output has
        ended, as `head` does. After an error of the program itself 1, if there is a log file for its stack trace; without one
        it is raised.
    """
    try:
        status = command()
        sys.stdout.flush()
        return status
    except DearliError as error:
        return _end(error, _last_line(str(error)), USER_ERROR)
    except KeyboardInterrupt as error:
        return _end(error, "interrupted", INTERRUPTED)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 128 + signal.SIGPIPE
        return _end(error, describe_os_error(error), USER_ERROR)
    except Exception as error:
        if is_out_of_memory(error):
            advice = "use smaller batches or crops; dearli plan estimates what a training needs"
            return _end(
                error,
                f"out of memory: {str(error).splitlines()[0] if str(error) else 'of this machine'}; {advice}",
                USER_ERROR,
            )
        if not _log_files():
            raise
        where = ", ".join(_log_files())
        return _end(
            error,
            f"{type(error).__name__}: {' '.join(_last_line(str(error)).split())} (stack trace in {where})",
            FAILED,
        )


def _output_is_closed() -> bool:
    """True if nobody reads the standard output any more; what is left of it is then dropped."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # a stream of a program's own
        return False
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def report_dead_rank(error: ProcessExitedException, rank: int, folder: str | Path) -> int:
    """The exit status for a process of several that ended; says so if it could not say it itself, to `log.txt` too."""
    if error.exit_code is None or error.exit_code >= 0:
        return error.exit_code or FAILED  # it has said why
    name = signal.Signals(-error.exit_code).name
    advice = ", often because the machine has no memory left" if name == "SIGKILL" else ""
    message = (
        f"error: rank {rank} (process {error.error_pid} on {socket.gethostname()}) was ended by {name} at "
        f"{time.strftime('%H:%M:%S')}{advice}; --resume continues the run"
    )
    print(message, file=sys.stderr)
    with (Path(folder) / "log.txt").open("a") as stream:
        print(message, file=stream)
    return 128 - error.exit_code


def end_process(message: str, status: int) -> NoReturn:
    """Ends this process from any of its threads with a line on the console and in the run's `log.txt`."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    late = threading.Timer(5.0, os._exit, (status,))  # another thread may hold the lock of a log file
    late.daemon = True
    late.start()
    record = _record(message, ())
    record.exc_info = None
    for handler in _log_handlers():
        with suppress(Exception):
            handler.handle(record)
            handler.flush()
    os._exit(status)


def describe_os_error(error: OSError) -> str:
    """One line: what failed, on which file; what to do where the disk is full."""
    name = f" {error.filename}" if error.filename else ""
    if error.errno in _FULL:
        name = name or "".join(f" files of {os.path.dirname(log)}" for log in _log_files()[:1])
        return (
            f"no space is left to write{name}: {error.strerror}. Files that were complete before still are; free some space, "
            "then the same command with --resume, where it has that, goes on"
        )
    return f"{error.strerror or error}:{name}" if name else str(error)


def log_thread_error(found: threading.ExceptHookArgs) -> None:
    """Logs the error of a helper thread; made for `threading.excepthook`.

    TensorBoard's writer passes its error on to the main thread, which ends with it.
    """
    record = _record(f"in {found.thread}", (found.exc_type, found.exc_value, found.exc_traceback))
    for handler in _log_handlers():
        handler.handle(record)


def _end(error: BaseException, message: str, status: int) -> int:
    record = _record(message, (type(error), error, error.__traceback__))
    for handler in _log_handlers():
        handler.handle(record)
        try:
            handler.stream.flush()
        except OSError:  # its disk is full; at the end of the process it would say so once more
            with suppress(OSError):
                handler.stream.close()
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def _record(message: str, exc_info: tuple) -> logging.LogRecord:
    return logging.LogRecord("dearli_d2", logging.ERROR, __file__, 0, "%s", (message,), exc_info)


def _log_handlers() -> list[logging.StreamHandler[Any]]:
    """Handlers of the run's log file."""
    streams = [h for h in logging.getLogger("dearli_d2").handlers if isinstance(h, logging.StreamHandler)]
    return [h for h in streams if os.path.basename(str(getattr(h.stream, "name", ""))).startswith("log.txt")]


def _log_files() -> list[str]:
    return [handler.stream.name for handler in _log_handlers()]


def _last_line(message: str) -> str:
    """The message itself, also of an error that a worker process passes on with its stack trace."""
    if _TRACE not in message:
        return message
    return re.sub(r"^[\w.]*(Error|Exception): ", "", message.rstrip().splitlines()[-1])
