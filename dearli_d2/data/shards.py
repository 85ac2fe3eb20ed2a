"""Images in tar files as WebDataset writes them (`shard-000000.tar` with `key.jpg`), read by their offset.

An image's path is `shard-000000.tar::key.jpg`. The members of a shard are listed once, in the cache folder.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from ..errors import DatasetError, UnreadableImageError
from . import remote
from .packed import Table, TextPacker, Texts, cache_file, cached

SEPARATOR = "::"
_COUNTED = re.compile(r"\{(\d+)\.\.(\d+)\}")


def split_member(path: object) -> tuple[str, str] | None:
    """`"s.tar::a.jpg"` to ("s.tar", "a.jpg"); None for a path of another form."""
    shard, separator, member = str(path).partition(SEPARATOR)
    return (remote.as_url(shard), member) if separator and member and is_shard(shard) else None


def is_shard(path: str) -> bool:
    """True for the name of a tar file, or a pattern of such."""
    return path.lower().endswith(".tar")


def counted(pattern: str) -> list[str]:
    """`"s-{000..002}.tar"` to the three names; a pattern without braces to itself."""
    found = _COUNTED.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [name for i in range(first, last + 1) for name in counted(f"{start}{i:0{len(found[1])}d}{end}")]


def shard_stamp(shard: str) -> tuple[int, int]:
    """Size in bytes, and a number that changes with the file. Raises `FileNotFoundError`, `StorageError`."""
    if remote.is_url(shard):
        return remote.stamp_of(remote.describe(shard))
    status = os.stat(shard)
    return status.st_size, status.st_mtime_ns


class ShardIndex:
    """The members of a shard, in their order.

    Attributes:
        names: of the members.
        offsets, lengths: (N,) int64, where the content of each begins and how many bytes it has.
    """

    def __init__(self, table: Table) -> None:
        self.names, self._order = table.texts("names"), table.arrays["order"]
        self.offsets, self.lengths = table.arrays["offsets"], table.arrays["lengths"]

    def place(self, member: str) -> tuple[int, int] | None:
        """(offset, length) of a member; None if there is no such."""
        found = bisect_left(_InOrder(self.names, self._order), member)
        if found == len(self._order) or self.names[int(self._order[found])] != member:
            return None
        index = int(self._order[found])
        return int(self.offsets[index]), int(self.lengths[index])


class _InOrder:
    def __init__(self, names: Texts, order: np.ndarray) -> None:
        self._names, self._order = names, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> str:
        return self._names[int(self._order[index])]


def shard_index(shard: str, stamp: tuple[int, int]) -> ShardIndex:
    """The members of a shard, from the cache if it has this `shard_stamp`. The last of several of one name counts, as in tar.

    Raises:
        DatasetError: it is no tar file, compressed, or ends too early.
    """
    place = shard if remote.is_url(shard) else os.path.abspath(shard)
    return ShardIndex(cached(cache_file("shard", place), stamp, lambda: _read_index(shard)))


def _read_index(shard: str) -> Table:
    found: dict[str, tuple[int, int]] = {}
    try:
        with _open(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    name = member.name.removeprefix("./")
                    found.pop(name, None)
                    found[name] = member.offset_data, member.size
            length = stream.seek(0, io.SEEK_END)
    except tarfile.ReadError as error:
        raise DatasetError(f"{shard} is no complete tar file without compression: {error}") from error
    except OSError as error:
        raise DatasetError(f"{shard} cannot be read: {error.strerror or error}") from error
    cut = [name for name, (offset, size) in found.items() if offset + size > length]
    if cut:
        raise DatasetError(f"{shard} ends too early: {len(cut)} of its members are cut off, first: {cut[0]}")
    names = list(found)
    packer = TextPacker()
    try:
        packer.extend(names)
    except UnicodeEncodeError as error:
        raise DatasetError(f"{shard} has a member whose name is no UTF-8: {error.object!r}") from error
    data, ends = packer.arrays()
    places = np.array(list(found.values()), np.int64).reshape(-1, 2)
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    return Table(
        {}, {"names": data, "names_ends": ends, "order": order, "offsets": places[:, 0], "lengths": places[:, 1]}
    )


def _open(shard: str) -> Any:
    return remote.opened(shard) if remote.is_url(shard) else open(shard, "rb")


@lru_cache(maxsize=64)
def _index(shard: str, stamp: tuple[int, int]) -> ShardIndex:
    return shard_index(shard, stamp)


@lru_cache(maxsize=4096)
def _remote_stamp(shard: str) -> tuple[int, int]:
    return shard_stamp(shard)


@contextmanager
def opened_member(shard: str, member: str) -> Iterator[BinaryIO]:
    """The content of a member as a file.

    A shard behind a URL is taken to stay as it is while a process reads it.

    Raises:
        UnreadableImageError: there is no such shard or member, or the shard ends too early.
        DatasetError: the shard cannot be read at all; `StorageError` where its host does not answer.
    """
    path = f"{shard}{SEPARATOR}{member}"
    far = remote.is_url(shard)
    try:
        stamp = _remote_stamp(shard) if far else shard_stamp(shard)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: there is no shard {shard}") from error
    place = _index(shard, stamp).place(member)
    if place is None:
        raise UnreadableImageError(f"{path}: the shard has no such member")
    offset, length = place
    if far:
        content = remote.read(shard, offset, offset + length)
        if len(content) != length:
            raise UnreadableImageError(f"{path} is cut off: {len(content)} of {length} bytes")
        yield io.BytesIO(content)
    else:
        with open(shard, "rb", buffering=0) as stream:
            yield io.BufferedReader(_Window(stream, offset, length))


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, stream: io.FileIO, offset: int, length: int) -> None:
        self._stream, self._offset, self._length, self._place = stream, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(self._length - self._place, 0)]
        self._stream.seek(self._offset + self._place)
        count = self._stream.readinto(view) or 0
        self._place += count
        return count
