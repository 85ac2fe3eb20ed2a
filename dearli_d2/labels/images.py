"""Finds the image files that labels name."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..data.images import SUFFIXES, files_below, image_size
from ..errors import UnreadableImageError, first_few
from ..files import same_writing
from .structures import Problems

_MISSING = "images that are not found below {root}"
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio puts eight characters before the name of an uploaded file
_DOUBLE = "images whose name several files below {root} have, so that the right one is not clear"


class ImageFinder:
    """Finds images below a folder by the names that a label file gives them.

    A name is looked up below the folder of the label file, then below the root, then below their folders `images`, then by its
    last part alone, which must be the name of one file only. Then names count as equal that differ in what tools change: small and
    capital letters, spaces and signs, and the prefix of Label Studio's uploads.

    Args:
        root: the folder.
        beside: the folder of the label file.
        without: pictures that are no photographs, such as masks.
    """

    def __init__(self, root: Path, beside: Path | None = None, without: Collection[Path] = ()) -> None:
        self.root = root
        self.without = frozenset(without)
        places = [beside, root] if beside is not None else [root]
        self.places = [place / part for part in ("", "images") for place in places]
        self._owners: dict[Path, str] = {}
        self._similar: dict[str, Path] = {}

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        """All images by their file name."""
        found: dict[str, list[Path]] = {}
        for path in files_below(self.root):
            if path.suffix.lower() in SUFFIXES and path not in self.without:
                found.setdefault(same_writing(path.name), []).append(path)
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[Path]]:
        """All images by their file name without its suffix."""
        found: dict[str, list[Path]] = {}
        for paths in self.by_name.values():
            for path in paths:
                found.setdefault(same_writing(path.stem), []).append(path)
        return found

    @cached_property
    def _plain_names(self) -> dict[str, list[Path]]:
        return _merged(self.by_name)

    @cached_property
    def _plain_stems(self) -> dict[str, list[Path]]:
        return _merged(self.by_stem)

    def find(self, name: str, problems: Problems) -> Path | None:
        """The image of that name; None, with a note in `problems`, where there is none or more than one."""
        path = _portable(name)
        if path.parts and not path.is_absolute() and ".." not in path.parts:
            for place in self.places:
                if os.path.isfile(place / path):
                    return place / path
        found = self._named(path.name, self.by_name) or self._similar_to(path.name, self._plain_names)
        return self._only(found, name, problems)

    def claim(self, file: Path, entry: str, problems: Problems) -> bool:
        """Takes an image for one entry of the labels; False, with a note in `problems`, if another entry has it.

        Args:
            file: the image.
            entry: names the label file, or the place in it.
            problems: where the second entry is noted.
        """
        owner = self._owners.setdefault(file, entry)
        if owner != entry:
            problems.add("labels are of an image that others label too; keep one of them", f"{entry}, as {owner}")
        return owner == entry

    def size_of(self, file: Path | None, entry: str, problems: Problems) -> tuple[int, int] | None:
        """Claims an image and measures it; None, with a note in `problems`, for one that is claimed already or cannot be read.

        Args:
            file: the image; None where none was found, which is noted already.
            entry: names the label file, or the place in it.
            problems: where faults are noted.
        """
        if file is None or not self.claim(file, entry, problems):
            return None
        try:
            return image_size(file)
        except UnreadableImageError as error:
            problems.add("images cannot be read", error)
            return None

    def of_stem(self, key: str, problems: Problems, folders: Sequence[Path] = ()) -> Path | None:
        """The image of a label file that has its name but another suffix.

        Args:
            key: path of the label file without its suffix, below its folder.
            folders: where images of that path are first looked for.
        """
        stem = PurePosixPath(key).name
        found = self._named(stem, self.by_stem)
        if len(found) == 1 and found[0].with_suffix("") in [folder / key for folder in folders]:
            return found[0]  # the usual case, without a look at the disk for each suffix
        for folder in folders:
            for suffix in sorted(SUFFIXES):
                for path in (folder / f"{key}{suffix}", folder / f"{key}{suffix.upper()}"):
                    if path not in self.without and os.path.isfile(path):
                        return path
        return self._only(found or self._similar_to(stem, self._plain_stems), key, problems)

    def notes(self) -> list[str]:
        """A note on the images that were found by a similar name."""
        shown = [f"{name} is {path.name}" for name, path in self._similar.items()]
        return [f"{len(shown)} images have a similar name, not the same: {first_few(shown)}"] if shown else []

    @staticmethod
    def _named(name: str, table: Mapping[str, list[Path]]) -> list[Path]:
        return next((found for n in _originals(name) if (found := table.get(same_writing(n)))), [])

    def _similar_to(self, name: str, table: Mapping[str, list[Path]]) -> list[Path]:
        found = next((found for n in _originals(name) if (found := table.get(_plain(n)))), [])
        if len(found) == 1:
            self._similar[name] = found[0]
        return found

    def _only(self, found: Sequence[Path], entry: str, problems: Problems) -> Path | None:
        if len(found) == 1:
            return found[0]
        problems.add((_DOUBLE if found else _MISSING).format(root=self.root), entry)
        return None


def _originals(name: str) -> list[str]:
    """The name, and the one that it had before an upload."""
    uploaded = _UPLOADED.fullmatch(name)
    return [name, uploaded.group(1)] if uploaded else [name]


def _merged(table: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Files by what is left of their names when tools change them."""
    found: dict[str, list[Path]] = {}
    for name, paths in table.items():
        found.setdefault(_plain(name), []).extend(paths)
    return found


def _plain(name: str) -> str:
    """A file name without capital letters and signs, with _ for spaces, as web servers store uploads."""
    return re.sub(r"[^-\w.\x00-\x1f]", "", same_writing(name).strip().replace(" ", "_")).casefold()


def _portable(name: str) -> PurePosixPath:
    """A path that may come from Windows, or that a tool made a URL of."""
    name = name.partition("://")[2] if "://" in name else name
    if "\\" in name:
        return PurePosixPath(PureWindowsPath(name).as_posix())
    return PurePosixPath(name)
