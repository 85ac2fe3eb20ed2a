"""Lists of images in text files: one image a line.

A line is the path of an image below the image folder of its data set, or a shorter or longer path with the same end, with or
without the file's suffix. Names may hold spaces and dots. Further columns are ignored: after a tab, after a space that follows
the suffix of the first name, and numbers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DatasetError, first_few
from ..files import read_text, same_writing
from .images import SUFFIXES

_SUFFIX = "|".join(re.escape(suffix) for suffix in sorted(SUFFIXES))
_FIRST_FILE = re.compile(rf"(.+?(?:{_SUFFIX}))\s", re.IGNORECASE)
_NAME_AND_NUMBERS = re.compile(r"(\S+)(?:\s+-?\d+)+")


def read_list(path: Path, names: Sequence[str], data_set: str) -> list[int]:
    """Indices into `names` that the lines of a list file choose, in the order of the lines.

    Args:
        path: the list file.
        names: paths of the images below their folder, with suffixes.
        data_set: its name, for the errors.

    Raises:
        DatasetError: no UTF-8 text, no line, lines that fit no image or several, an image twice.
    """
    lines = [line.strip() for line in same_writing(read_text(path, DatasetError)).splitlines() if line.strip()]
    if not lines:
        raise DatasetError(f"{data_set}: {path} lists no image")
    names, by_last = [same_writing(name) for name in names], defaultdict(list)
    for index, name in enumerate(names):
        by_last[_parts(name)[-1]].append(index)
    chosen, missing, several = [], [], []
    for line in lines:
        fitting = next(filter(None, (_fitting(entry, names, by_last) for entry in _entries(line))), [])
        if not fitting:
            missing.append(line)
        elif len(fitting) > 1:
            several.append(f"{line} ({first_few([names[i] for i in fitting])})")
        else:
            chosen.append(fitting[0])
    if missing:
        raise DatasetError(
            f"{data_set}: {len(missing)} of {len(lines)} images of {path} are not in the data set: {first_few(missing)}"
        )
    if several:
        raise DatasetError(f"{data_set}: {len(several)} lines of {path} fit several images: {first_few(several)}")
    if len(set(chosen)) != len(chosen):
        twice = sorted({names[i] for i in chosen if chosen.count(i) > 1})
        raise DatasetError(f"{data_set}: {path} lists an image twice: {first_few(twice)}")
    return chosen


def _entries(line: str) -> Iterator[str]:
    """The parts of a line that may be the name: all of it, or its first column."""
    yield line
    yield line.split("\t")[0].strip()
    if found := _FIRST_FILE.match(line):
        yield found[1]
    if found := _NAME_AND_NUMBERS.fullmatch(line):
        yield found[1]


def _parts(name: str) -> tuple[str, ...]:
    """Folders and file name without an image's suffix; "v1.5" has none."""
    *folders, last = (p for p in re.split(r"[/\\]", name) if p not in ("", "."))
    stem, _, suffix = last.rpartition(".")
    return (*folders, stem if stem and f".{suffix.lower()}" in SUFFIXES else last)


def _fitting(entry: str, names: Sequence[str], by_last: dict[str, list[int]]) -> list[int]:
    """The images whose path ends with the entry, or with whose path the entry ends.

    If some of them also have the entry's suffix, only those.
    """
    if not re.search(r"[^/\\.\s]", entry):
        return []
    wanted = _parts(entry)
    found = []
    for index in by_last.get(wanted[-1], []):
        parts = _parts(names[index])
        shared = min(len(parts), len(wanted))
        if parts[-shared:] == wanted[-shared:]:
            found.append(index)
    slashes = entry.replace("\\", "/")
    exact = [i for i in found if names[i] == slashes] or [
        i for i in found if ("/" + slashes).endswith("/" + names[i].rpartition("/")[2])
    ]
    return exact if exact else found
