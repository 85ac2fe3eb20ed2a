"""Official releases: a download is compared with what its release holds before anything is converted."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError, first_few
from .images import is_hidden


@dataclass(frozen=True)
class Release:
    """The content of one split of an official release.

    Attributes:
        name: of the data set that is made of it.
        images: their number.
        fix: says which archives to download, and where to unpack them.
        names: of the images without suffix, where they follow a rule.
        incomplete: accept other images than these, with a warning (option `--incomplete`).
    """

    name: str
    images: int
    fix: str
    names: Collection[str] = ()
    incomplete: bool = False


class Download:
    """Collects all that is wrong with a download, for one error.

    Args:
        release: what it should be.
    """

    def __init__(self, release: Release) -> None:
        self.release = release
        self._problems: list[str] = []

    def refuse(self, problem: str, offenders: Iterable[object] = ()) -> None:
        """Adds a problem, with the first of its offenders."""
        listed = first_few(list(offenders))
        self._problems.append(f"{problem}: {listed}" if listed else problem)

    def stems(self, folder: Path, suffix: str) -> list[str]:
        """Names of the files of a folder, sorted, without the suffix. Hidden files, which macOS adds to archives, are left out."""
        if not folder.is_dir():
            self.refuse(f"there is no folder {folder}")
            return []
        names = (path.name for path in folder.iterdir())
        return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix) and not is_hidden(name))

    def count(self, found: Collection[str], where: object) -> None:
        """Compares the images that were found with those of the release.

        Args:
            found: names of images without suffix.
            where: the place they were found in, for the error.
        """
        release = self.release
        names = set(release.names)
        missing, strange = sorted(names - set(found)), sorted(set(found) - names) if names else []
        if len(found) == release.images and not missing:
            return
        state = f"{where} has {len(found)} images, the official release {release.images}"
        if missing and found:
            state += f" (not there: {first_few(missing)})"
        if strange:
            state += f" (not of the release: {first_few(strange)})"
        if release.incomplete and found:
            print(f"warning: {release.name}: {state}; results will not compare with published ones")
        else:
            self.refuse(state if release.incomplete else f"{state} (--incomplete accepts it)")

    def labelled(self, images: Collection[str], folder: Path, suffix: str, what: str = "label") -> None:
        """Refuses images without a label file in a folder."""
        present = set(self.stems(folder, suffix))
        if present or folder.is_dir():
            absent = [name for name in images if name not in present]
            if absent:
                self.refuse(f"{len(absent)} of {len(images)} images have no {what} in {folder}", absent)

    def stop(self) -> None:
        """Raises `DatasetError` with all problems and what to do, if there are any."""
        if self._problems:
            raise DatasetError(f"{self.release.name}: {'; '.join(self._problems)}. {self.release.fix}")
