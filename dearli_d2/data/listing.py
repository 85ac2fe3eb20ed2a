"""Which images a folder, a list file, tar shards or a URL hold: names and sizes in bytes, without opening one.

Every start looks at all of it again, by directory entries, size and time of each file, size and time of each shard, or the listing
of the host. What is found is kept in a table of the cache folder, which all processes of a machine map.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import stat
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, StorageError, first_few
from ..files import is_text, read_text
from ..progress import progress
from . import remote, shards
from .images import RAW_SUFFIXES, SUFFIXES, is_hidden, measure, runs_below, suffix_of
from .packed import Table, TextPacker, Texts, cache_file, cached, read_table

logger = logging.getLogger(__name__)

_THREADS = 16  # most of the time is the wait for a disk or a host
_CHUNK = 1024  # files looked at by a thread at once
_CLOCK = 2.0  # seconds: a folder that changed later may change again without a new time
_SHOWN = 20  # files that are left out and named in the log
_READ_AT_ONCE = 3  # shards


class Listing:
    """The images of a place.

    Args:
        root: folder or URL that names are relative to; "" = none.
        table: with "names" and "bytes".

    Attributes:
        names: of the images: paths below `root`, `shard.tar::member`, or whole paths and URLs.
        bytes: (N,) int64 sizes of the files, -1 where nothing tells them.
        printed: the fingerprint of its records, once it is known.
    """

    def __init__(self, root: str, table: Table) -> None:
        self.root, self.table = root, table
        self.names: Texts = table.texts("names")
        self.bytes: np.ndarray = table.arrays["bytes"]
        self._sizes: np.ndarray | None = None
        self.printed: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Listing, (self.root, self.table)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def stamp(self) -> str:
        """Changes with every name, size and time of the files."""
        return str(self.table.stamp)

    def file_name(self, index: int) -> str:
        """The path of an image."""
        return joined(self.root, self.names[index])

    def files(self) -> Iterator[str]:
        """The paths of all images."""
        return (joined(self.root, name) for name in self.names)

    def sizes(self) -> np.ndarray:
        """(N, 2) int32 height and width of each image, from its header; 0 for a file that cannot be read as an image.

        They are measured once, unless a file changes. The log names the files that cannot be read.

        Raises:
            DatasetError: no file can be read.
        """
        if self._sizes is None:
            self._sizes = self._measured()
        return self._sizes

    def _measured(self) -> np.ndarray:
        def build() -> Table:
            found = measure(list(self.files()))
            values = np.array([(0, 0) if isinstance(size, str) else size for size in found], np.int32)
            problems = [size for size in found if isinstance(size, str)]
            return Table({"problems": problems}, {"sizes": values.reshape(-1, 2)})

        key = self.table.path.stem if self.table.path else self.stamp
        table = cached(cache_file("sizes", key), self.stamp, build)
        _warn(self.root, table.facts["problems"], len(self))
        return table.arrays["sizes"]


def _warn(place: str, problems: list[str], count: int) -> None:
    """Warns of files that are left out. Raises `DatasetError` if that is all of them."""
    if len(problems) == count and problems:
        raise DatasetError(f"{place}: none of {count} files can be used as an image: {first_few(problems)}")
    if problems:
        shown = "".join(f"\n  {p}" for p in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        logger.warning("%s: %s of %s files are left out:%s%s", place, len(problems), count, shown, more)


def joined(root: str, name: str) -> str:
    """The path of an image of a `Listing`."""
    if root in ("", ".") or name.startswith("/") or (":" in name and remote.is_url(name)):
        return name
    return f"{root}{name}" if root.endswith("/") else f"{root}/{name}"


# ---------------------------------------------------------------------------------------------- places


@dataclass(frozen=True)
class _Memory:
    """Knowledge of a place that this process, or the one that looked for it, has, and the times of the folders then."""

    listing: Listing
    times: dict[str, int]
    looked: float

    def holds(self) -> bool:
        """True if no entry of a folder came or went since."""
        newest = int((self.looked - _CLOCK) * 1e9)
        try:
            return all(when < newest and os.stat(place).st_mtime_ns == when for place, when in self.times.items())
        except OSError:
            return False


_known: dict[tuple[str, str], _Memory] = {}


def listed(root: str | Path, what: str = "") -> Listing:
    """The images of a place.

    Files that can be no image are left out, and the log names the first: empty or missing ones, raw photographs, names that are no
    UTF-8. A process looks again at a place whose folders have changed, and at every place after `forget`.

    Args:
        root: a folder.
        what: of it. "" = all images below it; a subfolder; a list file (.txt); tar shards, `shards/*.tar` or `s-{000..120}.tar`;
            `shard.tar::member`; or a URL of a folder, of shards, or of one image.

    Raises:
        DatasetError: no image, or entries of a list or shards that are missing or damaged, with their number.
        StorageError: the host of a URL does not answer.
    """
    key = (str(root), what)
    if key in _known and _known[key].holds():
        return _known[key].listing
    times: dict[str, int] = {}
    looked = time.time()
    listing = _look(str(root), what, times)
    _known[key] = _Memory(listing, times, looked)
    return listing


def is_folder(what: str) -> bool:
    """True for a `what` of `listed` that names a folder of this machine."""
    return not (
        what.endswith(".txt") or ".tar" in Path(what).suffixes or shards.split_member(what) or remote.is_url(what)
    )


def forget() -> None:
    """The next `listed` of each place looks at every file again."""
    _known.clear()


def known() -> dict[tuple[str, str], tuple[str, str, str, dict[str, int], float]]:
    """Facts about places that this process can pass on to another one of this machine, for `take_over`."""
    return {
        key: (m.listing.root, str(m.listing.table.path), m.listing.stamp, m.times, m.looked)
        for key, m in _known.items()
        if m.listing.table.path is not None
    }


def take_over(places: dict[tuple[str, str], tuple[str, str, str, dict[str, int], float]]) -> None:
    """Takes what another process `known` to be up to date, where its tables can be read here."""
    for key, (root, path, stamp, times, looked) in places.items():
        table = read_table(Path(path))
        if table is not None and table.stamp == stamp:
            _known[key] = _Memory(Listing(root, table), times, looked)


def _look(root: str, what: str, times: dict[str, int]) -> Listing:
    if what.lower().endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")):
        raise DatasetError(f"{joined(root, what)}: compressed shards cannot be read at any place; unpack them to .tar")
    if what.endswith(".txt"):
        return _finish(root, what, _of_list(root, what, times))
    if shards.is_shard(what):
        return _of_shards(root, what, times)
    if shards.split_member(what):
        return _finish(root, what, _of_lines(root, [what], what, times))
    if remote.is_url(what):
        url = what.rstrip("/")
        return _finish(url, "", _of_host(url)) if suffix_of(url) not in SUFFIXES else _one_url(url)
    folder = os.path.join(root, what) if what else root
    return _finish(folder, "", _of_folder(folder, times))


def _one_url(url: str) -> Listing:
    found = _Found()
    found.add([url], [-1], [0])
    return _finish("", url, found)


def _finish(root: str, what: str, found: _Found) -> Listing:
    """Warns of what is left out, and stores the rest unless the cache has it."""
    place = joined(root, what) if what else root
    _warn(place, sorted(found.problems), len(found.times) + len(found.problems))
    if not len(found.times):
        raise DatasetError(f"no image ({', '.join(sorted(SUFFIXES))}) in {place}{_hint(place)}")
    arrays = found.arrays()
    digest = hashlib.sha256(found.times)
    for values in arrays.values():
        digest.update(values.data)
    return Listing(root, cached(_table(root, what), digest.hexdigest(), lambda: Table({}, arrays)))


class _Found:
    """Images that were found, in little memory, and what is wrong with other files."""

    def __init__(self) -> None:
        self._names, self._sizes = TextPacker(), array("q")
        self.times = array("q")
        self.problems: list[str] = []

    def add(self, names: Iterable[str], sizes: Iterable[int], times: Iterable[int]) -> None:
        """Adds images with sizes in bytes, -1 if unknown, and numbers that change with the files."""
        self._names.extend(names)
        self._sizes.extend(sizes)
        self.times.extend(times)

    def arrays(self) -> dict[str, np.ndarray]:
        """The content of a `Listing`'s table."""
        data, ends = self._names.arrays()
        return {"names": data, "names_ends": ends, "bytes": np.asarray(self._sizes)}


def _table(root: str, what: str) -> Path:
    return cache_file("images", root if remote.is_url(root) else os.path.abspath(root), what)


def _hint(place: str) -> str:
    inside = [] if remote.is_url(place) or not os.path.isdir(place) else glob.glob("*.tar", root_dir=place)
    return f"; it holds {len(inside)} tar files, whose images {place}/*.tar would name" if inside else ""


# ---------------------------------------------------------------------------------------------- kinds of places


def _of_folder(folder: str, times: dict[str, int]) -> _Found:
    kinds = SUFFIXES | RAW_SUFFIXES
    parts = []
    for place, names in runs_below(folder, times):
        parts += _parts(place, [name for name in names if name[name.rfind(".") :].lower() in kinds])
    found = _Found()
    for names, sizes, when, problems in _looked_at(folder, parts):
        found.add(names, sizes, when)
        found.problems += problems
    return found


def _parts(place: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """(place, many names in one text), since a million texts would leave holes in the memory of the process."""
    return [(place, "\0".join(names[i : i + _CHUNK])) for i in range(0, len(names), _CHUNK)]


def _looked_at(
    root: str, parts: Sequence[tuple[str, str]]
) -> Iterator[tuple[list[str], array[int], array[int], list[str]]]:
    """Looks at files by threads: names, sizes and times of those that may be images, and what is wrong with others."""
    counts = [names.count("\0") + 1 for _, names in parts]
    bar = progress(range(sum(counts)), "looking at files", sum(counts), "file")
    with ThreadPoolExecutor(_THREADS) as pool:
        looked = pool.map(partial(_look_at, root), parts)
        for count, (names, sizes, times, problems) in zip(counts, looked, strict=True):
            yield names.split("\0") if names else [], sizes, times, problems
            deque(islice(bar, count), maxlen=0)  # the bar moves on


def _look_at(root: str, part: tuple[str, str]) -> tuple[str, array[int], array[int], list[str]]:
    place, names = part
    good: list[str] = []
    sizes, times, problems = array("q"), array("q"), []
    for name in names.split("\0"):
        path = joined(root, place + name)
        try:
            status = os.stat(path)
        except OSError as error:
            problems.append(f"{path}: {error.strerror}" if is_text(path) else _no_text(path))
            continue
        if problem := _problem(path, status):
            problems.append(problem)
        else:
            good.append(place + name)
            sizes.append(status.st_size)
            times.append(status.st_mtime_ns)
    return "\0".join(good), sizes, times, problems


def _problem(path: str, status: os.stat_result) -> str:
    """Why a file can be no image, as far as can be told without opening it; "" if it can be one."""
    if not path.isascii() and not is_text(path):
        return _no_text(path)
    if path[path.rfind(".") :].lower() in RAW_SUFFIXES:
        return f"{path} is a raw photograph; convert it to JPEG or PNG"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is no file"
    return "" if status.st_size else f"{path} is empty"


def _no_text(path: str) -> str:
    return f"{os.fsencode(path)!r} has a name that is no UTF-8; rename it"


def _of_host(url: str) -> _Found:
    listed_there = remote.below(url)
    found = _Found()
    for name in sorted(listed_there, key=lambda name: name.split("/")):
        if suffix_of(name) not in SUFFIXES | RAW_SUFFIXES or any(map(is_hidden, name.split("/"))):
            continue
        size, when = remote.stamp_of(listed_there[name])
        if suffix_of(name) in RAW_SUFFIXES or not size:
            found.problems.append(f"{url}/{name} {'is a raw photograph' if size else 'is empty'}")
        else:
            found.add([name], [size], [when])
    return found


def _remember(paths: Iterable[str], times: dict[str, int]) -> None:
    """Notes the times of files and of their folders, those of this machine."""
    for path in paths:
        for place in (path, os.path.dirname(path) or "."):
            if place not in times and not remote.is_url(place):
                with suppress(OSError):
                    times[place] = os.stat(place).st_mtime_ns


def _of_list(root: str, what: str, times: dict[str, int]) -> _Found:
    path = Path(joined(root, what))
    if not path.is_file():
        raise DatasetError(f"no list file {path} of images")
    _remember([str(path)], times)
    lines = [line.strip() for line in read_text(path, DatasetError).splitlines() if line.strip()]
    if not lines:
        raise DatasetError(f"{path} lists no image")
    return _of_lines(root, lines, str(path), times)


def _of_lines(root: str, lines: list[str], where: str, times: dict[str, int]) -> _Found:
    """Each line is an image, a shard, or `shard.tar::member`."""
    strange = [line for line in lines if "\0" in line or not (suffix_of(line) in SUFFIXES or shards.is_shard(line))]
    if strange:
        raise DatasetError(f"{where}: {len(strange)} of {len(lines)} lines name no image: {first_few(strange)}")
    members = {line: part for line in lines if ".tar" in line.lower() and (part := shards.split_member(line))}
    needed = dict.fromkeys(
        members[line][0] if line in members else line for line in lines if line in members or shards.is_shard(line)
    )
    plain = [line for line in lines if line not in members and line not in needed and not remote.is_url(line)]
    _remember((joined(root, name) for name in needed), times)
    for folder in {os.path.dirname(joined(root, line)) or "." for line in plain}:
        with suppress(OSError):
            times[folder] = os.stat(folder).st_mtime_ns
    indices = _indices(root, list(needed), where)
    files: dict[str, tuple[int, int]] = {}
    missing: list[str] = []
    for good, sizes, when, problems in _looked_at(root, _parts("", plain)):
        files |= zip(good, zip(sizes, when, strict=True), strict=True)
        missing += problems
    found, seen = _Found(), Counter[str]()
    for line in lines:
        entries: list[tuple[str, int, int]] = []
        if line in members:
            stamp, index = indices[members[line][0]]
            if place := index.place(members[line][1]):
                entries = [(line, place[1], stamp[1])]
            else:
                missing.append(f"{line} is not in its shard")
        elif line in needed:
            entries = _members(line, *indices[line])
        elif line in files:
            entries = [(line, *files[line])]
        elif remote.is_url(line):
            entries = [(line, -1, 0)]
        if entries:
            found.add(*zip(*entries, strict=True))
            seen.update(name for name, _, _ in entries)
    if missing:
        raise DatasetError(f"{where}: {len(missing)} of {len(lines)} images cannot be used: {first_few(missing)}")
    if twice := [name for name, count in seen.items() if count > 1]:
        raise DatasetError(f"{where}: {len(twice)} images are listed twice: {first_few(twice)}")
    return found


def _of_shards(root: str, what: str, times: dict[str, int]) -> Listing:
    """The images of shards. Their indices are read only if a shard is new or has changed."""
    names: list[str] = []
    for pattern in shards.counted(what):
        if not glob.has_magic(pattern):
            names.append(pattern)
        elif remote.is_url(pattern):
            names += remote.matching(pattern)
        else:
            names += sorted(glob.glob(pattern, root_dir=root or None))
    if not names:
        raise DatasetError(f"no shard {joined(root, what)}")
    _remember((joined(root, name) for name in names), times)
    stamps = _stamps(root, names, joined(root, what))

    def build() -> Table:
        indices = _indices(root, names, joined(root, what), stamps)
        found = _Found()
        for name in names:
            if entries := _members(name, *indices[name]):
                found.add(*zip(*entries, strict=True))
        if not len(found.times):
            raise DatasetError(f"no image ({', '.join(sorted(SUFFIXES))}) in the shards {joined(root, what)}")
        return Table({}, found.arrays())

    digest = hashlib.sha256(repr([(name, stamps[name]) for name in names]).encode()).hexdigest()
    return Listing(root, cached(_table(root, what), digest, build))


def _stamps(root: str, names: Sequence[str], where: str) -> dict[str, tuple[int, int]]:
    def look(name: str) -> tuple[int, int] | None:
        try:
            return shards.shard_stamp(joined(root, name))
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(names, pool.map(look, names), strict=True))
    missing = [name for name, stamp in found.items() if stamp is None]
    if missing:
        raise DatasetError(f"{where}: {len(missing)} of {len(names)} shards are missing: {first_few(missing)}")
    return {name: stamp for name, stamp in found.items() if stamp is not None}


def _indices(
    root: str, names: Sequence[str], where: str, stamps: dict[str, tuple[int, int]] | None = None
) -> dict[str, tuple[tuple[int, int], shards.ShardIndex]]:
    stamps = _stamps(root, names, where) if stamps is None else stamps

    def read(name: str) -> shards.ShardIndex | str:
        try:
            return shards.shard_index(joined(root, name), stamps[name])
        except StorageError:
            raise
        except DatasetError as error:
            return str(error)

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        found = list(progress(pool.map(read, names), "listing shards", len(names), "shard"))
    damaged = [problem for problem in found if isinstance(problem, str)]
    if damaged:
        raise DatasetError(f"{where}: {len(damaged)} of {len(names)} shards cannot be used: {first_few(damaged)}")
    return {name: (stamps[name], index) for name, index in zip(names, found, strict=True) if not isinstance(index, str)}


def _members(shard: str, stamp: tuple[int, int], index: shards.ShardIndex) -> list[tuple[str, int, int]]:
    """(name, length, time of the shard) of the images of a shard."""
    return [
        (f"{shard}{shards.SEPARATOR}{name}", length, stamp[1])
        for name, length in zip(index.names, index.lengths.tolist(), strict=True)
        if length and suffix_of(name) in SUFFIXES and not any(map(is_hidden, name.split("/")))
    ]
