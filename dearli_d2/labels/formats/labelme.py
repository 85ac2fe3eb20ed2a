"""Labelme: a JSON file beside each image, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.images import files_below
from ...errors import DatasetError
from ...files import parse_json, write_json
from .. import geometry, outlines
from ..images import ImageFinder
from ..reading import check_size
from ..structures import RLE, Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape

_LOOKED_AT = 20  # files, to recognise the format
_IGNORED = {"line", "linestrip", "point", "points"}  # kinds of shapes without an area


def recognizes(path: Path) -> str:
    """Recognises JSON files with 'shapes' and 'imagePath'."""
    files = _files(path)[:_LOOKED_AT]
    return f"{files[0]} has 'shapes' and 'imagePath'" if files and all(map(_is_labelme, files)) else ""


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    return [p for p in files_below(path) if p.suffix.lower() == ".json"]


def _is_labelme(path: Path) -> bool:
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def read(request: Request) -> LabelSet:
    """Reads all files; shapes are drawn when an image is asked for. See `Format.read`."""
    files = _files(request.path)
    if not files:
        raise DatasetError(f"{request.path} holds no JSON file of Labelme")
    problems = Problems(request.path)
    folder = request.path if request.path.is_dir() else request.path.parent
    finder = ImageFinder(request.root, folder)
    classes: dict[str, LabelClass] = {}
    images, left_out = [], 0
    for path in files:
        shown = path.relative_to(folder).as_posix()
        content = _content(path, problems)
        if content is None:
            continue
        file = _image_of(path, folder, str(content["imagePath"]), finder, problems)
        size = finder.size_of(file, shown, problems)
        if file is None or size is None:
            continue
        check_size((content.get("imageHeight"), content.get("imageWidth")), size, shown, problems)
        parts = []
        for number, shape in enumerate(content["shapes"], start=1):
            kind = shape.get("shape_type") or "polygon"
            if kind in _IGNORED:
                left_out += 1
            elif problem := _problem(shape, kind, size):
                problems.add(problem, f"shape {number} of {shown}")
            else:
                classes.setdefault(shape["label"].strip(), LabelClass(shape["label"].strip()))
                parts.append(shape)
        images.append(LabeledImage(file, size, partial(_shapes, parts, size)))
    problems.check()
    notes = [f"{request.path}: {left_out} points and lines have no area and are left out"] if left_out else []
    notes += finder.notes()
    stamps = [[str(p), p.stat().st_mtime_ns, p.stat().st_size] for p in files]
    names = sorted(classes)
    return LabelSet(request.path, FORMAT.name, [classes[n] for n in names], images, True, json.dumps(stamps), notes)


def _content(path: Path, problems: Problems) -> dict[str, Any] | None:
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        problems.add("label files are no JSON", f"{path.name} ({error})")
        return None
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(s, dict) for s in shapes) or "imagePath" not in content:
        problems.add("JSON files are none of Labelme: 'shapes' or 'imagePath' is missing", path.name)
        return None
    return content


def _image_of(path: Path, folder: Path, name: str, finder: ImageFinder, problems: Problems) -> Path | None:
    """The image beside the label file, or at the same place below the images, else by the path that the file gives."""
    base = name.replace("\\", "/").rpartition("/")[2]
    if (path.parent / base).is_file():
        return path.parent / base
    quiet = Problems(folder)
    below = path.parent.relative_to(folder).as_posix()
    return finder.find(f"{below}/{base}", quiet) or finder.find(name, problems)


def _problem(shape: dict[str, Any], kind: str, size: tuple[int, int]) -> str:
    label, points = shape.get("label"), shape.get("points")
    if not isinstance(label, str) or not label.strip():
        return "shapes without a label"
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        return "shapes whose points are no pairs of numbers"
    if not all(geometry.is_number(v) for p in points for v in p):
        return "shapes whose points are no pairs of numbers"
    if kind in ("rectangle", "circle", "mask") and len(points) != 2:
        return f"shapes of kind {kind} that have not two points"
    if kind == "mask":
        return _mask_problem(shape, size)
    if kind in ("rectangle", "circle"):
        return outlines.problem(_outline(kind, points), size)
    # Labelme writes a rotated rectangle as its four corners
    if kind not in ("polygon", "oriented_rectangle"):
        return f"shapes of the kind {kind!r}, which is unknown"
    return geometry.polygon_problem([v for p in points for v in p], size)


def _mask_problem(shape: dict[str, Any], size: tuple[int, int]) -> str:
    mask = _mask_of(shape)
    if mask is None:
        return "masks that are no PNG picture"
    left, top = (round(v) for v in shape["points"][0])
    if min(left, top) < 0 or left + mask.shape[1] > size[1] + 1 or top + mask.shape[0] > size[0] + 1:
        return "masks that leave the image"
    return ""


def _mask_of(shape: dict[str, Any]) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True))) as image:
            return np.asarray(image.convert("L")) > 0
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, binascii.Error, Image.DecompressionBombError):
        return None


def _shapes(parts: list[dict[str, Any]], size: tuple[int, int]) -> list[Shape]:
    """Shapes of one object: those that share a label and a group."""
    groups: dict[tuple[str, object], list[tuple[int, RLE]]] = {}
    for number, shape in enumerate(parts):
        group = shape.get("group_id")
        key = (shape["label"].strip(), number if group is None else f"group {group}")
        groups.setdefault(key, []).append((number, _rle(shape, size)))
    found = []
    for (name, _), members in groups.items():
        found.append(Shape(name, geometry.union([rle for _, rle in members]), level=members[-1][0]))
    return found


def _rle(shape: dict[str, Any], size: tuple[int, int]) -> RLE:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "mask":
        mask, (left, top) = _mask_of(shape), (round(v) for v in points[0])
        assert mask is not None
        full = np.zeros(size, bool)
        part = mask[: max(size[0] - top, 0), : max(size[1] - left, 0)]
        full[top : top + part.shape[0], left : left + part.shape[1]] = part
        return geometry.encode(full)
    return geometry.from_polygons([_outline(kind, points)], size)


def _outline(kind: str, points: list[list[float]]) -> list[float]:
    """x0, y0, x1, y1, … of a polygon, a rectangle or a circle."""
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return outlines.rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        x, y = points[0]
        return outlines.ellipse(x, y, radius, radius)
    return [v for p in points for v in p]


class Writer:
    """Writes a JSON file for each image, with masks, which are exact; Labelme 5.3 and later shows and edits them.

    Labelme looks for an image beside its file: copy the files into the folder of the images.
    """

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        self.out = out

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image; see `structures.Writer`."""
        content: dict[str, Any] = {
            "version": "5.4.1",
            "flags": {},
            "shapes": [_written(shape) for shape in shapes],
            "imagePath": file_name.rpartition("/")[2],
            "imageData": None,
            "imageHeight": size[0],
            "imageWidth": size[1],
        }
        path = (self.out / file_name).with_suffix(".json")
        if path.exists():  # of an image that differs in the suffix only
            path = self.out / f"{file_name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)

    def finish(self) -> None:
        """Does nothing: each image has a file of its own."""


def _written(shape: Shape) -> dict[str, Any]:
    x, y, width, height = geometry.box(shape.rle)
    part = geometry.decode(shape.rle)[y : y + height, x : x + width]
    stream = io.BytesIO()
    Image.fromarray(part).save(stream, "PNG")
    return {
        "label": shape.name,
        "points": [[x, y], [x + width - 1, y + height - 1]],
        "group_id": None,
        "description": "" if shape.score is None else f"confidence {shape.score:.4f}",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(stream.getvalue()).decode(),
    }


FORMAT = Format("labelme", "Labelme JSON files", recognizes, read, Writer)
