"""The images that a prediction reads, and the names of their outputs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .data.images import file_stamp, find_images
from .errors import DatasetError, first_few
from .files import output_names
from .prediction_list import NAME, files_of, own_list

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Images to predict.

    Args:
        folder: the common folder of all arguments.
        paths: of the images, as given.
        file_names: the paths below `folder`.
        names: of the outputs, all different.
    """

    folder: Path
    paths: list[Path]
    file_names: list[str]
    names: list[str]


def find_inputs(arguments: Sequence[str | Path]) -> Inputs:
    """Images among the arguments and below the folders there, without the pictures that an earlier prediction wrote.

    Raises:
        DatasetError: a path that does not exist, no image, or none but such pictures.
    """
    found = find_images(arguments)
    folders = [Path(os.path.abspath(a)) for a in arguments if Path(a).is_dir()]
    files = [Path(os.path.abspath(a)) for a in arguments if not Path(a).is_dir()]
    paths: dict[Path, Path] = {}  # a file that is named twice is predicted once
    for path in found:
        whole = Path(os.path.abspath(path))
        if whole in files or not _written_before(whole, folders):
            paths.setdefault(whole, path)
    left_out = len(found) - len(paths)
    if not paths:
        raise DatasetError(
            f"all {len(found)} images in {first_few(list(arguments))} were written by an earlier prediction"
        )
    if left_out:
        logger.warning(
            "%d of %d images were written by an earlier prediction, or named twice: left out", left_out, len(found)
        )
    above = Path(os.path.commonpath([*folders, *(f.parent for f in files)]))
    file_names = [whole.relative_to(above).as_posix() for whole in paths]
    return Inputs(above, list(paths.values()), file_names, output_names(file_names))


def _written_before(image: Path, folders: Sequence[Path]) -> bool:
    """True if a prediction into a folder between one of `folders` and the image has written it."""
    for folder in image.parents:
        if any(folder.is_relative_to(f) for f in folders) and image.relative_to(folder).as_posix() in _outputs(folder):
            return True
    return False


@lru_cache(maxsize=4096)
def _outputs(folder: Path) -> frozenset[str]:
    content = own_list(folder / NAME) or {}
    return frozenset(files_of(content.get("outputs", {})))


def forget_outputs() -> None:
    """Looks anew at what predictions have written. It is remembered otherwise, since many images lie in one folder."""
    _outputs.cache_clear()


@dataclass(frozen=True)
class Task:
    """An image to predict.

    Args:
        path: of the file.
        file_name: the path below the common folder.
        name: of the outputs.
        caption: for a model that reads one.
    """

    path: Path
    file_name: str
    name: str
    caption: str | None = None

    def __str__(self) -> str:
        return str(self.path)


def tasks_of(inputs: Inputs, captions: Mapping[Path, str] | None = None) -> list[Task]:
    """The images as tasks, in their order."""
    entries = zip(inputs.paths, inputs.file_names, inputs.names, strict=True)
    return [Task(path, file, name, None if captions is None else captions[path]) for path, file, name in entries]


def stamp_of(path: Path) -> list[int]:
    """Time and size of a file, which tell whether it has changed; [] where there is none."""
    try:
        size, when = file_stamp(path)
    except OSError:
        return []
    return [when, size]
