"""Folders with results for each image of a data set, and a manifest with the settings that made them."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.images import opened_file
from ..errors import DatasetError, first_few
from ..files import parse_json, write_atomically, write_json

MANIFEST = "manifest.json"
OTHER_IMAGE = "was made of another image of that name"
_ENDS = 2**16  # bytes at the start and the end of an image file that tell it from others


class FilePerImage(ABC):
    """A folder that holds `manifest.json` and a file for each image, by the stem of the image's file name.

    `failed_I_of_N.jsonl` lists the images that process I of N could not read. A subclass defines `path` and `stored_digest`,
    and methods of its own that read and write.

    Args:
        folder: it need not exist yet.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    @abstractmethod
    def path(self, file_name: str) -> Path:
        """The file of an image; it need not exist."""

    @abstractmethod
    def stored_digest(self, file_name: str) -> str | None:
        """The `image_digest` that is stored with the results of an image; None if they do not say which image they are of."""

    def has(self, file_name: str) -> bool:
        """True if the folder has results for an image of that name."""
        return self.path(file_name).is_file()

    def manifest(self) -> dict[str, Any] | None:
        """The generator's settings; None in a new folder. Raises `DatasetError` if the file cannot be read."""
        path = self.folder / MANIFEST
        if not path.is_file():
            return None
        try:
            content = parse_json(path.read_text())
        except ValueError as error:
            raise DatasetError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise DatasetError(f"{path} is damaged: it holds a {type(content).__name__}")
        return content

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Stores the generator's settings."""
        write_json(self.folder / MANIFEST, manifest, indent=1)

    def made_for(self, file_name: str) -> bool:
        """True if the folder has results for this very image, and not for another one of the same name.

        Results that name no image count as made for this one.
        """
        if not self.has(file_name):
            return False
        found = self.stored_digest(file_name)
        return found is None or not Path(file_name).is_file() or found == image_digest(file_name)

    def write_failures(self, index: int, count: int, tried: Sequence[str], failed: list[dict]) -> Path:
        """Replaces the entries of the files that were `tried` in the list of failures of process `index` of `count`."""
        path = self.folder / f"failed_{index}_of_{count}.jsonl"
        stems = {Path(file).stem for file in tried}
        old = _lines(path) if path.is_file() else []
        entries = [e for e in old if Path(e["file"]).stem not in stems] + failed
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        if entries:
            write_atomically(path, lambda temporary: temporary.write_text(text))
        else:
            path.unlink(missing_ok=True)
        return path

    def unreadable(self) -> set[str]:
        """Stems of the images in the lists of failures."""
        return {Path(e["file"]).stem for e in self.failures()}

    def failures(self) -> list[dict]:
        """The entries of all lists of failures: dicts with "file" and "error"."""
        return [entry for path in sorted(self.folder.glob("failed_*.jsonl")) for entry in _lines(path)]


def _lines(path: Path) -> list[dict]:
    """The entries of a list of failures. Lines that a full disk or a lost machine cut off are skipped."""
    entries = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("file"), str):
            entries.append(entry)
    return entries


def image_digest(file_name: str | Path) -> str:
    """A hash of an image file's length, start and end, which tells it from other files."""
    with opened_file(file_name) as file:
        start, length = file.read(_ENDS), file.seek(0, os.SEEK_END)
        file.seek(max(length - _ENDS, 0))
        return hashlib.sha256(str(length).encode() + start + file.read(_ENDS)).hexdigest()[:16]


def check_stems(files: list[str]) -> None:
    """Raises `DatasetError` when two files share a stem, since masks are found by it."""
    seen: dict[str, str] = {}
    double = [f for f in files if seen.setdefault(Path(f).stem, f) != f]
    if double:
        raise DatasetError(
            f"{len(double)} images share their name with another, but for folder and suffix, so their masks cannot be told apart: "
            f"{first_few(double)}; rename them, or give each folder masks of its own"
        )
