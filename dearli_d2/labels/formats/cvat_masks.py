"""CVAT's "Segmentation mask 1.1": masks of classes and of objects by colour, with `labelmap.txt`; see `voc_tree`.

CVAT gives the colour of "background" to pixels that nobody labelled, so they have no label, unless the class list has that name.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...data.images import files_below
from ...data.preparation import save_png
from ...errors import DatasetError
from ...files import write_atomically
from ..colors import Coding, read_color_map, voc_colors
from ..geometry import decode
from ..structures import Format, LabelClass, LabelSet, Request, Shape
from ..voc_tree import CLASSES, LABEL_MAP, OBJECTS, read_tree, tree_of

_ARCHIVE = "upload_to_cvat.zip"
_OBJECT_COLORS = 254  # CVAT knows 255 colours of objects; the last one means "ignored"
_NO_PARTS = set(":,\n")  # of a name, since labelmap.txt separates by them


def recognizes(path: Path) -> str:
    """Recognises a folder SegmentationClass beside a labelmap.txt."""
    tree = tree_of(path) if path.is_dir() else None
    return f"{tree} has SegmentationClass and {LABEL_MAP}" if tree is not None and (tree / LABEL_MAP).is_file() else ""


def read(request: Request) -> LabelSet:
    """Reads the tree; see `Format.read`."""
    return read_tree(request, FORMAT.name, partial(_coding, request))


def _coding(request: Request, tree: Path) -> Coding:
    path = tree / LABEL_MAP
    if not path.is_file():
        raise DatasetError(
            f"{tree} has no {LABEL_MAP} with the colours of classes; export it again, or read it as the format voc"
        )
    colors = read_color_map(path)
    values = {name: value for value, name in enumerate(colors)}
    return Coding.of(request, colors, values, True, str(path), free_background=True)


class Writer:
    """Writes the tree, and `upload_to_cvat.zip` of it: in a task of these images, "Upload annotations", "Segmentation mask 1.1"."""

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        self.out = out
        wrong = [c.name for c in classes if set(c.name) & _NO_PARTS]
        if wrong:
            raise DatasetError(
                f"{len(wrong)} names of classes have a colon or comma, which {LABEL_MAP} cannot hold: {wrong[0]}"
            )
        given = [c.color for c in classes]
        own = None not in given and len({*given, (0, 0, 0)}) == len(given) + 1
        colors = [c.color for c in classes if c.color is not None] if own else voc_colors(len(classes) + 1)[1:]
        self.colors = {c.name: color for c, color in zip(classes, colors, strict=True)}
        self.colors.setdefault("background", (0, 0, 0))
        self.palette = voc_colors(_OBJECT_COLORS + 1)
        self.names: list[str] = []

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image; see `structures.Writer`."""
        name = Path(file_name).with_suffix("").as_posix()
        if name in self.names:
            raise DatasetError(
                f"{file_name}: another image has the same name but for its suffix; CVAT's masks cannot tell them apart"
            )
        self.names.append(name)
        classes, objects = np.zeros((*size, 3), np.uint8), np.zeros((*size, 3), np.uint8)
        for number, shape in enumerate(shapes):
            mask = decode(shape.rle)
            classes[mask] = self.colors[shape.name]
            objects[mask] = self.palette[1 + number % _OBJECT_COLORS]
        for folder, picture in ((CLASSES, classes), (OBJECTS, objects)):
            path = self.out / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(path, picture)

    def finish(self) -> None:
        """Writes the lists and the archive."""
        lines = [
            f"{name}:{','.join(map(str, color))}::\n"
            for name, color in sorted(self.colors.items(), key=lambda c: c[0] != "background")
        ]
        self._write(LABEL_MAP, "# label:color_rgb:parts:actions\n" + "".join(lines))
        self._write("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in self.names))
        write_atomically(self.out / _ARCHIVE, self._pack)

    def _write(self, name: str, text: str) -> None:
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / name, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _pack(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNG files are compressed already
            for file in files_below(self.out):
                if file.name != _ARCHIVE:
                    archive.write(file, file.relative_to(self.out).as_posix())


FORMAT = Format("cvat-masks", "CVAT segmentation mask 1.1, a tree or zip with labelmap.txt", recognizes, read, Writer)
