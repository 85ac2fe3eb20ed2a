"""Writes labels, such as predictions, in another format."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import ConfigError
from ..progress import progress
from .formats import formats
from .geometry import area, encode, union
from .panoptic import TargetClass, draw
from .structures import LabeledImage, LabelSet, Shape


def writable(name: str) -> str:
    """The name of a format that can be written.

    Raises:
        ConfigError: there is none of that name, or it is read only.
    """
    known = [key for key, format in formats().items() if format.writer is not None]
    if name not in known:
        reason = "is read only" if name in formats() else "is unknown"
        raise ConfigError(f"the format {name!r} {reason}; these are written: {', '.join(known)}")
    return name


def write_labels(labels: LabelSet, name: str, out: Path, images: Path, overwrite: bool = False) -> int:
    """Writes labels in the format `name`.

    A folder beside `out` is filled first and then takes its name, so `out` is whole or absent.

    Args:
        labels: to write. Regions that overlap are cut as for training, see `panoptic`.
        name: of the format.
        out: folder to write.
        images: folder that file names are relative to.
        overwrite: replace `out`.

    Returns:
        Number of images.

    Raises:
        ConfigError: `out` exists, or the format cannot be written.
        DatasetError: labels that cannot be read.
    """
    make = formats()[writable(name)].writer
    assert make is not None
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another folder, or replace it with --overwrite")
    if labels.check is not None:
        labels.check()
    unfinished = out.with_name(f".{out.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    writer = make(unfinished, labels.classes)
    for image in progress(labels.images, f"writing {name}", len(labels.images)):
        writer.add(_below(image.file, images), image.size, flat_shapes(image, labels))
    writer.finish()
    if out.is_dir():
        shutil.rmtree(out)
    os.replace(unfinished, out)
    return len(labels.images)


def _below(file: Path, folder: Path) -> str:
    path, above = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    if not path.is_relative_to(above):
        raise ConfigError(f"the image {file} is not below {folder}, the folder that names are relative to")
    return path.relative_to(above).as_posix()


def flat_shapes(image: LabeledImage, labels: LabelSet) -> list[Shape]:
    """The shapes of an image, cut so that none overlaps another; those that are covered wholly are left out.

    Of a class of things each is one object.
    """
    shapes = image.shapes()
    things = {c.name: labels.instances if c.isthing is None else c.isthing for c in labels.classes}
    apart = not shapes or area(union([s.rle for s in shapes])) == sum(area(s.rle) for s in shapes)
    if apart and not any(s.semantic and things[s.name] for s in shapes):
        return shapes
    classes = {c.name: TargetClass(number, things[c.name]) for number, c in enumerate(labels.classes)}
    drawn = draw(image, classes)
    names = dict(enumerate(things))
    return [Shape(names[s["category_id"]], encode(drawn.ids == s["id"]), bool(s["iscrowd"])) for s in drawn.segments]
