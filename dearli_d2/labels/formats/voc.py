"""Pascal VOC's segmentation: palette masks of classes and objects, whose border has the value 255; see `voc_tree`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ...data.class_names import class_table
from ...data.custom_classes import parse_classes
from ...errors import DatasetError
from ...files import read_text
from ..colors import Coding, voc_colors
from ..structures import Format, LabelSet, Request
from ..voc_tree import LABEL_MAP, read_tree, tree_of

_CLASS_FILES = ("class_names.txt", "classes.txt")


def recognizes(path: Path) -> str:
    """Recognises a folder SegmentationClass without a map of colours."""
    tree = tree_of(path) if path.is_dir() else None
    return f"{tree} has SegmentationClass" if tree is not None and not (tree / LABEL_MAP).is_file() else ""


def read(request: Request) -> LabelSet:
    """Reads the tree. Classes are those of the class list, of class_names.txt, or else those of Pascal VOC. See `Format.read`."""
    return read_tree(request, FORMAT.name, partial(_coding, request))


def _coding(request: Request, tree: Path) -> Coding:
    path = next((tree / name for name in _CLASS_FILES if (tree / name).is_file()), None)
    if request.classes:
        values, source = (
            {c.names[0]: c.id for c in parse_classes(request.classes, request.ignore)},
            "DATASETS.CUSTOM.CLASSES",
        )
        if 0 not in values.values() and "background" not in values:
            values["background"] = 0
    elif path is not None:
        lines = [line.strip() for line in read_text(path, DatasetError).splitlines()]
        names = [line for line in lines if line and line != "__ignore__"]
        values, source = {name: value for value, name in enumerate(names)}, str(path)
    else:
        values, source = (
            {entry.official[0]: entry.id for entry in class_table("pascal_voc")},
            "the list of Pascal VOC's classes",
        )
    palette = voc_colors(256)
    colors = {name: palette[value] for name, value in values.items() if value < 256}
    return Coding.of(request, colors, values, False, source, free_background=False)


FORMAT = Format("voc", "Pascal VOC, a tree with SegmentationClass", recognizes, read)
