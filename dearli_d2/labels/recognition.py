"""Finds the format of labels, and reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError, DatasetError, first_few
from .archives import unpacked
from .formats import formats
from .structures import Format, LabelSet, Request

_KEYS = "DATASETS.CUSTOM.FORMAT, or --format"


def recognize(path: Path) -> dict[str, str]:
    """Names of the formats that a file or folder may have, each with what it was recognised by."""
    inside = unpacked(path)
    return {name: reason for name, format in formats().items() if (reason := format.recognizes(inside))}


def format_of(path: Path, name: str = "") -> Format:
    """The format of a file or folder.

    Args:
        name: of the format; "" finds it.

    Raises:
        ConfigError: there is no format of that name.
        DatasetError: there is no such file, or it has no format that is known, or it may have several.
    """
    if not path.exists():
        raise DatasetError(f"there are no labels {path}")
    if name:
        if name not in formats():
            raise ConfigError(f"there is no format {name!r} of labels; known are {', '.join(formats())}")
        return formats()[name]
    found = recognize(path)
    if not found:
        titles = ", ".join(format.title for format in formats().values())
        raise DatasetError(f"{path}: no known format of labels. These are read: {titles}")
    if len(found) > 1:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in found.items())
        raise DatasetError(f"{path} may be of several formats: {reasons}. Choose one with {_KEYS}")
    return formats()[next(iter(found))]


def read_labels(request: Request, name: str = "") -> LabelSet:
    """Reads labels of the format `name`, or of the one that is recognised. Raises `DatasetError`."""
    format, inside = format_of(request.path, name), unpacked(request.path)
    if inside == request.path:
        return format.read(request)
    try:
        labels = format.read(replace(request, path=inside))
    except DatasetError as error:
        raise DatasetError(str(error).replace(str(inside), str(request.path))) from error
    packed = [image.file.name for image in labels.images if image.file.is_relative_to(inside)]
    if packed:
        raise DatasetError(
            f"{request.path}: {len(packed)} images are in the archive alone: {first_few(packed)}; unpack it, and name the folder"
        )
    return replace(labels, path=request.path)
