"""Arrays and texts in one cached file. All processes of a machine map the same pages, so that a copy in each costs nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..files import cache_dir, write_atomically

logger = logging.getLogger(__name__)

_FORMAT = 1  # of all tables
_TYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F64": np.float64}  # as safetensors calls them


class Texts(Sequence[str]):
    """Many texts, one behind the other in UTF-8.

    Args:
        data: (bytes,) uint8.
        ends: (N,) int64, where each text ends in `data`.
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        self.data, self.ends = data, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), 4096):
            ends = self.ends[first : first + 4096].tolist()
            content, offset = self.data[start : ends[-1]].tobytes(), start
            for end in ends:
                yield content[start - offset : end - offset].decode()
                start = end


class TextPacker:
    """Collects texts for `Texts`."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._data, self._ends = bytearray(), array("q")
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Adds texts. Raises `UnicodeEncodeError` for one that is no UTF-8."""
        for text in texts:
            self._data += text.encode()
            self._ends.append(len(self._data))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """`data` and `ends` of `Texts`."""
        return np.frombuffer(self._data, np.uint8), np.frombuffer(self._ends, np.int64)


class Table:
    """Named arrays with facts about them, in memory or in a file that is mapped.

    Pickling a table of a file passes on its path alone.

    Args:
        facts: whatever JSON can hold; "stamp" identifies the content.
        arrays: of the types uint8, int32, int64 and float64.
        path: the file; None for one in memory.
    """

    def __init__(self, facts: dict[str, Any], arrays: dict[str, np.ndarray], path: Path | None = None) -> None:
        self.facts, self.arrays, self.path = facts, arrays, path

    @property
    def stamp(self) -> Any:
        """Identifies what the content was made of."""
        return self.facts["stamp"]

    def texts(self, name: str) -> Texts:
        """The texts that were stored as the arrays NAME and NAME_ends."""
        return Texts(self.arrays[name], self.arrays[f"{name}_ends"])

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            return Table, (self.facts, self.arrays)
        return _reopened, (self.path, self.stamp)


def _reopened(path: Path, stamp: Any) -> Table:
    table = read_table(path)
    if table is None or table.stamp != stamp:
        raise RuntimeError(f"{path} was written anew while a run reads it")
    return table


def write_table(path: Path, table: Table) -> None:
    """Writes a table, whole or not at all, in the format of safetensors."""
    arrays = {name: np.ascontiguousarray(values) for name, values in table.arrays.items()}
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)  # each begins at a multiple of its items
    facts = {**table.facts, "format": _FORMAT, "crc": {name: zlib.crc32(arrays[name].data) for name in order}}
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(facts)}}
    place = 0
    for name in order:
        values, first = arrays[name], place
        place += values.nbytes
        kind = next(kind for kind, dtype in _TYPES.items() if values.dtype == dtype)
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": [first, place]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                stream.write(arrays[name].data)

    write_atomically(path, write)


def read_table(path: Path) -> Table | None:
    """Maps the table of a file; None where there is none, or a torn or foreign one."""
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:start])
        facts = json.loads(header.pop("__metadata__")["facts"])
        if facts["format"] != _FORMAT:
            return None
        arrays = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            kind = np.dtype(_TYPES[entry["dtype"]])
            values = np.frombuffer(mapped, kind, (last - first) // kind.itemsize, start + first)
            arrays[name] = values.reshape(entry["shape"])
        if {name: zlib.crc32(values.data) for name, values in arrays.items()} != facts["crc"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return Table(facts, arrays, path)


def cache_file(kind: str, *key: Any) -> Path:
    """The place of a table that `key` names, in the cache folder."""
    return cache_dir() / "tables" / f"{kind}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]}.safetensors"


def cached(path: Path, stamp: Any, build: Callable[[], Table]) -> Table:
    """The table of a cache file if it has this stamp; else it is built and written.

    Of several processes one builds, and the others wait for the file. A cache folder that cannot be written costs a warning: the
    table then is in the memory of this process.

    Args:
        path: see `cache_file`.
        stamp: for JSON; changes whenever the table would.
        build: makes the table, whose facts need no "stamp".
    """
    stamp = json.loads(json.dumps(stamp))  # as the file gives it back
    found = read_table(path)
    if found is not None and found.stamp == stamp:
        return found
    with _turn(path):
        found = read_table(path)
        if found is not None and found.stamp == stamp:
            return found
        made = build()
        made.facts["stamp"] = stamp
        try:
            write_table(path, made)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s): every process reads the data set anew and keeps it in its own memory; "
                "DEARLI_CACHE names another folder", path, error.strerror or error,
            )  # fmt: skip
            return made
        return read_table(path) or made


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Waits for other processes that build the same table. Where files cannot be locked, nobody waits."""
    handle = None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
