"""Index masks: a picture for each image, whose pixel value is the id of a class.

masks/day/a.png      of images/day/a.jpg; greyscale or palette, 1 to 16 bits, PNG or TIFF
classes.txt          "ID thing|stuff NAME" a line, or a name a line, counted from 0; needless where the user gives a class list
_classes.csv         "Pixel Value, Class", as Roboflow writes it beside masks that are called a_mask.png

ADE20K's folders annotations/training and images/training are of this format too; 0 means "not labelled" there (IGNORE_VALUE 0).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...data.custom_classes import parse_classes
from ...data.index_masks import check_values, read_index_mask
from ...data.preparation import save_png
from ...errors import ConfigError, DatasetError
from ...files import read_text, write_atomically
from .. import proposal
from ..geometry import decode, encode
from ..mask_files import (
    distinct_values,
    folder_of_masks,
    masked_images,
    masks_below,
    some_masks,
    stamps_of,
    unlabeled_note,
)
from ..structures import RLE, Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape
from ..voc_tree import tree_of
from . import cityscapes, color_png

_CLASS_FILES = ("classes.txt", "class_names.txt", "_classes.csv")
_IGNORE = 255
_MANY = 100  # values; a greyscale photograph has more


def recognizes(path: Path) -> str:
    """Recognises pictures with few values that are not only 0 and 255."""
    masks = some_masks(path)
    if not masks or tree_of(path) is not None or cityscapes.recognizes(path) or color_png.recognizes(path):
        return ""
    values = [distinct_values(mask) for mask in masks]
    if any(v is None or len(v) > _MANY for v in values) or not any(values) or is_binary(values):
        return ""
    return f"{masks[0]} has few values"


def is_binary(values: Sequence[set[int] | None]) -> bool:
    """True if pictures hold 0 and 255 only. Those that cannot be read do not count."""
    return None not in values and proposal.is_binary(set().union(*(v for v in values if v is not None)))


def read(request: Request) -> LabelSet:
    """Reads the names of all masks, and a mask when its image is asked for. See `Format.read`."""
    classes = listed_classes(request)
    problems = Problems(request.path)
    images, notes = masked_images(request, problems)
    problems.check()
    names = {c.id: c.name for c in classes if c.id is not None}
    masks = {str(i.file): i.masks[0].path for i in images}
    labeled = [
        LabeledImage(
            i.file, i.size, partial(_shapes, i.masks[0].path, names, request.ignore), i.split,
            partial(_others, i.masks[0].path, frozenset(names)),
        )
        for i in images
    ]  # fmt: skip
    return LabelSet(
        request.path, FORMAT.name, classes, labeled, False, stamps_of(list(masks.values()), sorted(names.items()), request.ignore),
        [*notes, *unlabeled_note(request, images)], partial(check_values, masks, set(names), request.ignore),
    )  # fmt: skip


def listed_classes(request: Request, reader: Callable[[Path], np.ndarray] = read_index_mask) -> list[LabelClass]:
    """The user's class list, or that of a file beside the masks.

    Args:
        request: the labels to read.
        reader: reads a mask, to propose a list where there is none.

    Raises:
        ConfigError: a line that means nothing.
        NoClassList: there is neither.
    """
    if request.classes:
        return _parsed(request.classes, request.ignore)
    folders = (request.path, folder_of_masks(request.path), request.path.parent)
    path = next((f / name for f in folders for name in _CLASS_FILES if (f / name).is_file()), None)
    if path is None:
        problem = (
            f"{request.path}: masks have no names of classes; list them in DATASETS.CUSTOM.CLASSES, or in {request.path / _CLASS_FILES[0]}, "
            "one line 'ID thing|stuff NAME' for each pixel value"
        )
        raise proposal.no_class_list(problem, masks_below(folder_of_masks(request.path)), request.ignore, reader)
    lines = [line.strip() for line in read_text(path, DatasetError).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if path.suffix == ".csv":
        return _of_csv(path, lines, request.ignore)
    try:
        return _parsed(lines, request.ignore)
    except ConfigError as error:
        if any(line[:1].isdigit() and (" thing " in line or " stuff " in line) for line in lines):
            raise DatasetError(f"{path}: {error}") from error
    names = [LabelClass(line, number) for number, line in enumerate(line for line in lines if line != "__ignore__")]
    if not names or len({c.name for c in names}) < len(names):
        raise DatasetError(f"{path} is empty, or a name stands twice in it")
    return [c for c in names if c.id != request.ignore]


def _parsed(lines: Sequence[str], ignore: int) -> list[LabelClass]:
    return [LabelClass(c.names[0], c.id, c.isthing) for c in parse_classes(lines, ignore)]


def _of_csv(path: Path, lines: Sequence[str], ignore: int) -> list[LabelClass]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)][1:]
    wrong = [row for row in rows if len(row) != 2 or not row[0].isdigit() or not row[1]]
    if wrong or not rows or len({row[0] for row in rows}) < len(rows) or len({row[1] for row in rows}) < len(rows):
        raise DatasetError(
            f"{path}: {len(wrong)} of {len(rows)} lines are no 'value, class', or a value or name stands twice"
        )
    return [LabelClass(name, int(value)) for value, name in rows if int(value) != ignore]


def _shapes(path: Path, names: dict[int, str], ignore: int) -> list[Shape]:
    values = read_index_mask(path)
    present = [int(v) for v in np.unique(values)]
    strangers = [v for v in present if v not in names and v != ignore]
    if strangers:
        raise DatasetError(f"{path} holds values of no class: {strangers[:5]}")
    return [Shape(names[v], encode(values == v), semantic=True) for v in present if v != ignore]


def _others(path: Path, ids: frozenset[int]) -> RLE:
    return encode(~np.isin(read_index_mask(path), list(ids)))


class Writer:
    """Writes `masks/`, in the pixel values of the user's classes, and `classes.txt`. Objects of a class are not told apart."""

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        self.out = out
        given = [c.id for c in classes if c.id is not None and 0 <= c.id < 2**16]
        own = len(set(given)) == len(classes)
        self.ids = {c.name: given[i] if own else i + 1 for i, c in enumerate(classes)}
        taken = set(self.ids.values())
        self.ignore = _IGNORE if _IGNORE not in taken else next(i for i in range(2**16 - 1, -1, -1) if i not in taken)
        self.kind = np.uint8 if max(taken | {self.ignore}) < 256 else np.uint16
        self.lines = [f"{self.ids[c.name]} {'stuff' if c.isthing is False else 'thing'} {c.name}\n" for c in classes]
        self.written: set[Path] = set()

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image; see `structures.Writer`."""
        path = (self.out / "masks" / file_name).with_suffix(".png")
        if path in self.written:
            raise DatasetError(
                f"{file_name}: another image has the same name but for its suffix; its mask would have the same name"
            )
        self.written.add(path)
        values = np.full(size, self.ignore, self.kind)
        for shape in shapes:
            values[decode(shape.rle)] = self.ids[shape.name]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, values)

    def finish(self) -> None:
        """Writes the class list."""
        text = f"# pixels without a label: {self.ignore} (DATASETS.CUSTOM.IGNORE_VALUE)\n{''.join(self.lines)}"
        write_atomically(self.out / "classes.txt", lambda temporary: temporary.write_text(text, encoding="utf-8"))


FORMAT = Format("index-png", "index masks, PNG or TIFF files whose pixel value is the class", recognizes, read, Writer)
