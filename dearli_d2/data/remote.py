"""Files behind a URL, through fsspec: `s3://`, `https://`, `memory://`, `tar://a.jpg::shard.tar` and whatever else it knows."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, TypeVar

from ..errors import DatasetError, StorageError, UnreadableImageError

TIME_LIMIT = 60.0  # seconds of one try
_TRIES = 3
_PAUSE = 1.0  # seconds before the second try; twice as long before the next
# `Path` turns // into /
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+(?=.)")
_STAMPS = "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created", "checksum"
Result = TypeVar("Result")


def is_url(path: object) -> bool:
    """True for what fsspec reads; a `Path` of a URL counts."""
    return _URL.match(str(path)) is not None


def as_url(path: object) -> str:
    """The URL as it is written, also of a `Path`."""
    text = str(path)
    return "::".join(map(_with_slashes, text.split("::"))) if _URL.match(text) else text


def _with_slashes(part: str) -> str:
    found = _URL.match(part)
    if found is None or "://" in part:
        return part
    return f"{found[1]}://{'/' if found[1] in ('file', 'local') else ''}{part[found.end() :]}"


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The content of a file, or a part of it.

    Args:
        start, end: the part, in bytes.

    Raises:
        UnreadableImageError: there is no such file.
        StorageError: the host does not answer in time, or with an error, several times.
    """
    try:
        return asked(url, lambda files, path: files.cat_file(path, start=start, end=end))
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{url} does not exist") from error


def below(url: str) -> dict[str, dict[str, Any]]:
    """{path below a folder: its description} of the files anywhere below it; {} where there is none. Raises `StorageError`."""

    def look(files: Any, path: str) -> dict[str, dict[str, Any]]:
        root = path.rstrip("/") + "/"
        found = files.find(path, detail=True)
        return {name.removeprefix(root).lstrip("/"): info for name, info in found.items()}

    try:
        return asked(url, look)
    except FileNotFoundError:
        return {}


def matching(pattern: str) -> list[str]:
    """The URLs that a pattern with * fits, sorted. Raises `StorageError`."""
    return sorted(asked(pattern, lambda files, path: [files.unstrip_protocol(name) for name in files.glob(path)]))


def describe(url: str) -> dict[str, Any]:
    """Facts that the host tells about a file, such as its "size". Raises `FileNotFoundError`, `StorageError`."""
    return dict(asked(url, lambda files, path: files.info(path)))


def stamp_of(info: dict[str, Any]) -> tuple[int, int]:
    """Size in bytes, -1 if unknown, and a number that changes with the file, as far as the host tells."""
    told = repr([str(info[key]) for key in _STAMPS if info.get(key) is not None]).encode()
    size = info.get("size")
    return (-1 if size is None else int(size)), int.from_bytes(
        blake2b(told, digest_size=8).digest(), "big", signed=True
    )


def opened(url: str) -> Any:
    """A file that is read piece by piece, for a short time. Raises `FileNotFoundError`, `StorageError`."""
    return asked(url, lambda files, path: files.open(path, "rb"))


def asked(url: str, question: Callable[[Any, str], Result]) -> Result:
    """The answer of a file system to a question about a path; it is asked again after an error.

    Raises:
        FileNotFoundError: as the file system says.
        DatasetError: fsspec, or its package for this kind of URL, is missing.
        StorageError: no answer within `TIME_LIMIT` seconds, or errors, in all tries.
    """
    problem: Exception | None = None
    for count in range(_TRIES):
        if count:
            time.sleep(_PAUSE * 2 ** (count - 1))
        try:
            return _in_time(lambda: question(*_file_system(url)))
        except (FileNotFoundError, DatasetError):
            raise
        except Exception as error:  # each package has types of its own
            problem = error
    silent = isinstance(problem, TimeoutError)
    what = f"no answer within {TIME_LIMIT:g} seconds" if silent else f"{type(problem).__name__}: {problem}"
    raise StorageError(f"{url}: {what}, {_TRIES} times; check the address, the network and your access") from problem


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise DatasetError(f"{url} needs the package fsspec: pip install 'dearli_d2[remote]'") from error
    try:
        return url_to_fs(url)  # fsspec keeps file systems, of each process its own
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{url} cannot be read here: {error}") from error


def _in_time(work: Callable[[], Result]) -> Result:
    """The result of `work`, which runs in a thread that nobody waits for longer than `TIME_LIMIT`."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIME_LIMIT)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
