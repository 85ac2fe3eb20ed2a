"""Results of long work as JSON lines: appended as they come, and whole after a kill but for a last line that was cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .files import parse_json


def line_of(key: str, result: Any) -> bytes:
    """The line of a result."""
    return json.dumps({"key": key, "result": result}).encode() + b"\n"


def parse_line(line: bytes) -> tuple[str, Any] | None:
    """The key and the result of a line; None for one that was cut off."""
    try:
        entry = parse_json(line.decode()) if line.endswith(b"\n") else {}
        return entry["key"], entry["result"]
    except (ValueError, KeyError, TypeError):
        return None


def entries(path: Path) -> Iterator[tuple[str, Any, int, int]]:
    """Key and result of each line, and where it begins and ends, up to one that was cut off; nothing where there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        place = 0
        for line in file:
            entry = parse_line(line)
            if entry is None:
                return
            yield *entry, place, place + len(line)
            place += len(line)


class Journal:
    """A file that one process appends to. What a kill has cut off is removed when it is opened.

    Args:
        path: the file; made with its folder if it is missing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        end = max((end for *_, end in entries(path)), default=0)
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, key: str, result: Any) -> None:
        """Adds a line, which is in the file when this returns."""
        self._file.write(line_of(key, result))
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
