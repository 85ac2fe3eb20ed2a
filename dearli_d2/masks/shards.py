"""Shards: zip files of about a thousand mask files each, and an index that finds one of them without opening the others.

A shard is written whole and never changed, so processes and machines write to one folder without waiting for each other. Each of its
files has a checksum (CRC-32, as in every zip file). `unzip` lists and unpacks it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..files import parse_json, remove_leftovers, write_atomically
from ..progress import progress

_AGAIN = "delete this shard, and the same `dearli masks generate` makes its masks again"
INDEX = "index.bin"  # made of the shards at any time
_ROW = np.dtype(
    [("start", "<u8"), ("digest", "<u8"), ("length", "<u4"), ("crc", "<u4"), ("shard", "<u4"), ("spare", "<u4")]
)
_HEAD = struct.Struct(
    "<4s10xIII2H"
)  # of a file in a zip file: mark, checksum, lengths, lengths of the name and of more fields
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Record:
    """The mask file of one image.

    Args:
        stem: of the image's file name.
        content: of the file.
        digest: of the image, see `image_digest`; "" = not known.
    """

    stem: str
    content: bytes
    digest: str = ""


class Shards:
    """The shards of a folder.

    `index.bin` there is made of the shards whenever they have changed, and only saves the time to do so. It is mapped into memory, so
    the processes of a machine share it: 40 bytes an image.

    Args:
        folder: it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._forget()

    def _forget(self) -> None:
        self._shards: list[tuple[str, int, int]] | None = None  # name, bytes, time of the last change
        self._keys, self._rows = np.zeros(0, "<u8"), np.zeros(0, _ROW)

    # -------------------------------------------------------------------------------------- writing

    def write(self, records: Sequence[Record]) -> Path:
        """Writes a shard, whole or not at all. For an image that an earlier shard has, the new one counts."""
        content = sorted(records, key=lambda record: record.stem)
        name = hashlib.sha256()
        for record in content:
            name.update(f"{record.stem}\0{zlib.crc32(record.content)}\0".encode())
        number = 1 + max((int(n.partition("-")[0]) for n, *_ in self._on_disk()), default=0)
        path = self.folder / f"{number:05d}-{name.hexdigest()[:12]}.zip"
        write_atomically(path, lambda temporary: _write(temporary, content))
        return path

    # -------------------------------------------------------------------------------------- reading

    def __len__(self) -> int:
        """Number of images."""
        self._load()
        return len(np.unique(self._keys))

    def have(self, stems: Sequence[str]) -> np.ndarray:
        """(N,) bool: which of N images the shards have."""
        self._load()
        keys = np.array([_key(stem) for stem in stems], "<u8")
        places = np.searchsorted(self._keys, keys)
        inside = places < len(self._keys)
        inside[inside] = self._keys[places[inside]] == keys[inside]
        return inside

    def digest(self, stem: str) -> str | None:
        """The digest of the image that a record is of, "" if it is not known; None without a record."""
        row = self._row(stem)
        return None if row is None else _digits(row)

    def holds(self, record: Record) -> bool:
        """True if the image's record is this very one."""
        row = self._row(record.stem)
        return row is not None and int(row["crc"]) == zlib.crc32(record.content)

    def place(self, stem: str) -> Path | None:
        """The shard of an image; None if there is none."""
        row = self._row(stem)
        return None if row is None else self._path(row)

    def read(self, stem: str) -> bytes | None:
        """The mask file of an image; None if no shard has one. Raises `DatasetError` if it is damaged."""
        row = self._row(stem)
        if row is None:
            return None
        try:
            return self._content(row, stem)
        except FileNotFoundError:  # another process has put the shards together anew
            self.refresh()
            row = self._row(stem)
            return None if row is None else self._content(row, stem)

    def refresh(self) -> None:
        """Looks at the disk again at the next call."""
        self._forget()

    def files(self) -> list[Path]:
        """The shards, the oldest first."""
        return [self.folder / name for name, *_ in self._on_disk()]

    def scan(self, path: Path) -> Iterator[Record | DatasetError]:
        """All records of a shard, and in place of a damaged one, or of all, the error that names it."""
        try:
            entries = list(_directory(path))
        except DatasetError as error:
            yield error
            return
        yield from (self._scanned(path, stem, row) for stem, row in entries)

    @staticmethod
    def _scanned(path: Path, stem: str, row: np.ndarray) -> Record | DatasetError:
        try:
            return Record(stem, _content(path, row, stem), _digits(row))
        except DatasetError as error:
            return error

    def records(self, path: Path) -> Iterator[Record]:
        """The records of a shard that no newer shard has. Raises `DatasetError` if one is damaged."""
        for record in self.scan(path):
            if isinstance(record, DatasetError):
                raise record
            if self.place(record.stem) == path:
                yield record

    def _row(self, stem: str) -> np.void | None:
        self._load()
        key = np.uint64(_key(stem))
        place = int(np.searchsorted(self._keys, key, side="right")) - 1  # of several the newest
        return self._rows[place] if place >= 0 and self._keys[place] == key else None

    def _path(self, row: np.void) -> Path:
        assert self._shards is not None
        return self.folder / self._shards[row["shard"]][0]

    def _content(self, row: np.void, stem: str) -> bytes:
        return _content(self._path(row), row, stem)

    # -------------------------------------------------------------------------------------- the index

    def _on_disk(self) -> list[tuple[str, int, int]]:
        found = []
        for path in sorted(self.folder.glob("[0-9]*-*.zip")):
            with suppress(FileNotFoundError):
                about = path.stat()
                found.append((path.name, about.st_size, about.st_mtime_ns))
        return found

    def _load(self) -> None:
        if self._shards is not None:
            return
        shards = self._on_disk()
        before, keys, rows = self._stored()
        if before != shards:
            keys, rows = self._made(shards, before, keys, rows)
            with suppress(OSError):  # a folder that may only be read: the index is made again next time
                self._store(shards, keys, rows)
        self._shards, self._keys, self._rows = shards, keys, rows

    def _stored(self) -> tuple[list[tuple[str, int, int]], np.ndarray, np.ndarray]:
        """Shards, keys and rows of `index.bin`; empty ones if there is none, or another kind of file."""
        path = self.folder / INDEX
        try:
            with path.open("rb") as file:
                about = parse_json(file.readline(1 << 26).decode())
                start, count = file.tell(), int(about["images"])
            shards = [(str(name), int(size), int(time)) for name, size, time in about["shards"]]
            if path.stat().st_size != start + count * (8 + _ROW.itemsize):
                raise ValueError("it is cut off")
            if not count:
                return shards, np.zeros(0, "<u8"), np.zeros(0, _ROW)
            keys = np.memmap(path, "<u8", "r", start, (count,))
            rows = np.memmap(path, _ROW, "r", start + 8 * count, (count,))
            if zlib.crc32(rows.data, zlib.crc32(keys.data)) != about["crc"]:
                raise ValueError("it is damaged")
        except (OSError, ValueError, KeyError, TypeError):
            return [], np.zeros(0, "<u8"), np.zeros(0, _ROW)
        return shards, keys, rows

    def _made(
        self, shards: list[tuple[str, int, int]], before: list[tuple[str, int, int]], keys: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys and rows of the shards, sorted; only those that are not as `before` are opened."""
        new_number = np.full(len(before), -1)
        for number, shard in enumerate(before):
            if shard in shards:
                new_number[number] = shards.index(shard)
        kept = new_number[rows["shard"]] >= 0 if len(rows) else np.zeros(0, bool)
        old_rows = np.array(rows[kept])
        old_rows["shard"] = new_number[old_rows["shard"]] if len(old_rows) else 0
        all_keys, all_rows = [np.array(keys[kept])], [old_rows]
        unread = [number for number, shard in enumerate(shards) if shard not in before]
        for number in progress(unread, "index of the masks", len(unread), "shard"):
            for stem, row in _directory(self.folder / shards[number][0]):
                row["shard"] = number
                all_keys.append(np.array([_key(stem)], "<u8"))
                all_rows.append(row[None])
        joined_keys, joined_rows = np.concatenate(all_keys), np.concatenate(all_rows)
        order = np.lexsort((joined_rows["shard"], joined_keys))
        return joined_keys[order], joined_rows[order]

    def _store(self, shards: list[tuple[str, int, int]], keys: np.ndarray, rows: np.ndarray) -> None:
        if not self.folder.is_dir():
            return
        remove_leftovers(self.folder, "index")
        about = {"images": len(keys), "crc": zlib.crc32(rows.tobytes(), zlib.crc32(keys.tobytes())), "shards": shards}
        head = json.dumps(about).encode() + b"\n"
        head = b" " * (-len(head) % 8) + head
        write_atomically(
            self.folder / INDEX, lambda temporary: temporary.write_bytes(head + keys.tobytes() + rows.tobytes())
        )


def _key(stem: str) -> int:
    return int.from_bytes(hashlib.blake2b(stem.encode(), digest_size=8).digest(), "little")


def _digits(row: np.ndarray | np.void) -> str:
    return f"{int(row['digest']):016x}" if row["digest"] else ""


def _write(path: Path, records: Sequence[Record]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for record in records:
            entry = zipfile.ZipInfo(f"{record.stem}.json")
            entry.compress_type, entry.comment = zipfile.ZIP_DEFLATED, record.digest.encode()
            entry.external_attr = 0o644 << 16
            file.writestr(entry, record.content)


def _directory(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Stem and index row of each file in a shard. Raises `DatasetError` if it is cut off or damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
        for entry in entries:
            digest = int(entry.comment or b"0", 16)
            row = np.array((entry.header_offset, digest, entry.compress_size, entry.CRC, 0, 0), _ROW)
            yield Path(entry.filename).stem, row
    except FileNotFoundError:
        raise
    except (*_BROKEN, OSError) as error:
        raise DatasetError(f"{path} is cut off or damaged ({error}): {_AGAIN}") from error


def _content(path: Path, row: np.ndarray | np.void, stem: str) -> bytes:
    """A file of a shard. Raises `DatasetError` if it is damaged."""
    try:
        with path.open("rb") as file:
            file.seek(int(row["start"]))
            mark, *_, name_length, more = _HEAD.unpack(file.read(_HEAD.size))
            name = file.read(name_length)
            file.seek(more, 1)
            packed = file.read(int(row["length"]))
        if mark != b"PK\3\4" or name != f"{stem}.json".encode():
            raise ValueError("another file is there")
        content = zlib.decompress(packed, -zlib.MAX_WBITS)
        if zlib.crc32(content) != row["crc"]:
            raise ValueError("its checksum differs")
    except _BROKEN as error:
        raise DatasetError(f"{path} is damaged: the masks of {stem} cannot be read ({error}): {_AGAIN}") from error
    return content
