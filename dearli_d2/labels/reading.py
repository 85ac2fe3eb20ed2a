"""What readers of formats share: JSON files, sizes that labels give, names of splits."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DatasetError
from ..files import parse_json, read_text
from .structures import Problems

_SPLITS = {
    "train": "train", "training": "train", "valid": "val", "val": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
_HEAD = 2**20  # characters


def split_of(name: str) -> str:
    """ "train", "val" or "test" for the name that a tool gives a part of its data; "" for any other."""
    return _SPLITS.get(name.strip().lower(), "")


def split_in(path: str) -> str:
    """The split that a folder in a path is called after, or "". datumaro's CamVid has trainannot."""
    names = (part.lower().removesuffix("annot") for part in PurePosixPath(path).parts[:-1])
    return next(filter(None, map(split_of, names)), "")


def only_file(path: Path, suffix: str) -> Path | None:
    """A file with a suffix: `path` itself, or the only one in the folder."""
    found = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix.lower() == suffix)
    return found[0] if len(found) == 1 and found[0].suffix.lower() == suffix else None


def head(path: Path) -> str:
    """The first characters of a text file; "" for a file that is none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        return ""


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `DatasetError`."""
    try:
        return parse_json(read_text(path, DatasetError))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON file: {error}; export it again") from error


def check_size(given: tuple[Any, Any], size: tuple[int, int], entry: str, problems: Problems) -> None:
    """Notes an image that has another size than its labels say.

    Args:
        given: (height, width) of the label file; anything but numbers above 0 is no size.
        size: (height, width) of the image as it is seen.
        entry: names the image.
        problems: where it is noted.
    """
    if not all(isinstance(v, (int, float)) and v > 0 for v in given) or given == size:
        return
    problem = "images have another size than the labels say"
    if given == size[::-1]:
        problem += (
            "; an EXIF tag turns them, which the labelling tool did not: remove the tag (exiftool -Orientation= FILE)"
        )
    problems.add(problem, f"{entry} is {size[1]} x {size[0]}, labelled as {given[1]} x {given[0]}")
