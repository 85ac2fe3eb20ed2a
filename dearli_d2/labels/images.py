"""Finds the image files that labels name."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..data.images import SUFFIXES, files_below
from ..files import same_writing
from .structures import Problems

_MISSING = "images that are not found below {root}"
_DOUBLE = "images whose name several files below {root} have, so that the right one is not clear"


class ImageFinder:
    """Finds images below a folder by the names that a label file gives them.

    A name is looked up below the folder of the label file, then below the root, then below their folders `images`, then by its
    last part alone, which must be the name of one file only.

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

    def find(self, name: str, problems: Problems) -> Path | None:
        """The image of that name; None, with a note in `problems`, where there is none or more than one."""
        path = _portable(name)
        if path.parts and not path.is_absolute() and ".." not in path.parts:
            for place in self.places:
                if os.path.isfile(place / path):
                    return place / path
        return self._only(self.by_name.get(same_writing(path.name), []), name, problems)

    def first(self, names: Sequence[str], problems: Problems) -> Path | None:
        """The image of the first of several names that has one; the note in `problems` is that of the first name."""
        for name in names[1:] if self.find(names[0], Problems(self.root)) is None else ():
            if (path := self.find(name, Problems(self.root))) is not None:
                return path
        return self.find(names[0], problems)

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

    def of_stem(self, key: str, problems: Problems, folders: Sequence[Path] = ()) -> Path | None:
        """The image of a label file that has its name but another suffix.

        Args:
            key: path of the label file without its suffix, below its folder.
            folders: where images of that path are first looked for.
        """
        found = self.by_stem.get(same_writing(PurePosixPath(key).name), [])
        if len(found) == 1 and found[0].with_suffix("") in [folder / key for folder in folders]:
            return found[0]  # the usual case, without a look at the disk for each suffix
        for folder in folders:
            for suffix in sorted(SUFFIXES):
                for path in (folder / f"{key}{suffix}", folder / f"{key}{suffix.upper()}"):
                    if path not in self.without and os.path.isfile(path):
                        return path
        return self._only(found, key, problems)

    def _only(self, found: Sequence[Path], name: str, problems: Problems) -> Path | None:
        if len(found) == 1:
            return found[0]
        problems.add((_DOUBLE if found else _MISSING).format(root=self.root), name)
        return None


def _portable(name: str) -> PurePosixPath:
    """A path that may come from Windows, or that a tool made a URL of."""
    name = name.partition("://")[2] if "://" in name else name
    if "\\" in name:
        return PurePosixPath(PureWindowsPath(name).as_posix())
    return PurePosixPath(name)
