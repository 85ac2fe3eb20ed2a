"""YOLO segmentation: a text file for each image, a polygon a line in parts of the image's size, and `data.yaml` with the classes.

data.yaml            names: {0: road, 1: car}, and perhaps train, val and test: folders of images, or lists of images
images/train/a.jpg
labels/train/a.txt   1 0.1 0.2 0.4 0.2 0.3 0.5
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ...config.files import read_mapping
from ...data.images import SUFFIXES, files_below, image_size
from ...errors import ConfigError, DatasetError, UnreadableImageError
from ...files import read_text, write_atomically
from .. import geometry
from ..images import ImageFinder
from ..reading import split_in
from ..structures import Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape

_LINE = re.compile(r"\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*", re.IGNORECASE)
_LOOKED_AT = 20  # label files, to recognise the format
_SPLITS = ("train", "val", "test")
_CLASS_FILES = ("classes.txt", "obj.names")
_SLACK = 0.02  # by which a polygon may leave its image, as part of its size


def recognizes(path: Path) -> str:
    """Recognises a data.yaml with names, or text files of numbers beside a list of classes."""
    found = _yaml_of(path)
    if found is not None:
        return f"{found} has 'names'"
    if not path.is_dir() or not any((path / name).is_file() for name in _CLASS_FILES):
        return ""
    files = [p for p in files_below(path) if p.suffix == ".txt" and p.name not in _CLASS_FILES][:_LOOKED_AT]
    return f"{files[0]} holds a class and numbers in each line" if files and all(map(_is_label, files)) else ""


def _yaml_of(path: Path) -> Path | None:
    """A YAML file with names of classes: `path` itself, or one in the folder."""
    files = [path] if path.is_file() else sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    for file in files:
        if file.suffix.lower() in (".yaml", ".yml"):
            try:
                content = read_mapping(file)
            except ConfigError:
                continue
            if "names" in content and any(key in content for key in (*_SPLITS, "path", "nc")):
                return file
    return None


def _is_label(path: Path) -> bool:
    try:
        line = path.read_text(encoding="utf-8-sig").partition("\n")[0]
    except (OSError, ValueError):
        return False
    return not line.strip() or bool(_LINE.fullmatch(line))


def read(request: Request) -> LabelSet:
    """Reads all label files; polygons are drawn when an image is asked for. See `Format.read`."""
    problems = Problems(request.path)
    source = _yaml_of(request.path)
    folder = source.parent if source is not None else request.path
    names = _names(source) if source is not None else _listed(folder)
    images = _images(source, folder, problems) if source is not None else {}
    finder = ImageFinder(request.root, folder)
    if not images:
        images = _of_labels(folder, finder, problems)
    problems.check()
    if not images:
        raise DatasetError(
            f"{request.path}: no image has a label file; labels lie in a folder 'labels' beside 'images'"
        )
    labeled, stamps, boxes = [], [], 0
    for file, (label, split) in images.items():
        try:
            size = image_size(file)
        except UnreadableImageError as error:
            problems.add("images cannot be read", error)
            continue
        polygons, flat = _read_label(label, names, size, problems)
        boxes += flat
        labeled.append(LabeledImage(file, size, partial(_shapes, polygons, size), split))
        stamps.append([str(label), label.stat().st_mtime_ns, label.stat().st_size])
    problems.check()
    notes = [f"{request.path}: {boxes} lines are boxes without an outline; they are left out"] if boxes else []
    notes += finder.notes()
    classes = [LabelClass(name, number) for number, name in names.items()]
    fingerprint = json.dumps([list(names.items()), stamps])
    return LabelSet(request.path, FORMAT.name, classes, labeled, True, fingerprint, notes)


def _names(source: Path) -> dict[int, str]:
    try:
        names = read_mapping(source)["names"]
    except ConfigError as error:
        raise DatasetError(str(error)) from error
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else ()
    found = {number: str(name).strip() for number, name in pairs if isinstance(number, int)}
    if not found or len(set(found.values())) < len(found):
        raise DatasetError(f"{source}: 'names' is no list of different names, nor numbers with names")
    return found


def _listed(folder: Path) -> dict[int, str]:
    path = next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise DatasetError(f"{folder} has no data.yaml with 'names', and no {_CLASS_FILES[0]}")
    lines = [line.strip() for line in read_text(path, DatasetError).splitlines() if line.strip()]
    return dict(enumerate(lines))


def _images(source: Path, folder: Path, problems: Problems) -> dict[Path, tuple[Path, str]]:
    """(label file, split) of each image that the YAML file names and that has one."""
    content = read_mapping(source)
    base = Path(str(content.get("path") or "."))
    places = [folder, folder / base, folder / base.name, folder.parent]
    found: dict[Path, tuple[Path, str]] = {}
    for split in _SPLITS:
        entries = content.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            # Roboflow writes ../train/images for the folder train/images beside the file
            names = [str(entry), re.sub(r"^(\.\./)+", "", str(entry))]
            there = next((p / n for n in names for p in places if os.path.exists(p / n)), None)
            if there is None:
                problems.add("entries of train, val or test do not exist", f"{split}: {entry}")
                continue
            if there.is_file():
                files = _listed_images(there, folder)
            else:
                files = files_below(there)
                _check_orphans(there, files, problems)
            for file in files:
                label = _label_of(file)
                if file.suffix.lower() not in SUFFIXES or not label.is_file():
                    continue
                if found.setdefault(file, (label, split)) != (label, split):
                    problems.add("images are in two of train, val and test", file)
    return found


def _check_orphans(folder: Path, files: Sequence[Path], problems: Problems) -> None:
    """Notes label files without an image where other images of the folder have one."""
    labels = _label_of(folder / "image.jpg").parent
    known = {_label_of(file) for file in files if file.suffix.lower() in SUFFIXES}
    there = files_below(labels) if labels.is_dir() else []
    for path in there if known.intersection(there) else ():
        if path.suffix == ".txt" and path not in known and path.name not in _CLASS_FILES and _is_label(path):
            problems.add(f"label files have no image in {folder}", path.name)


def _listed_images(path: Path, folder: Path) -> list[Path]:
    lines = [line.strip() for line in read_text(path, DatasetError).splitlines() if line.strip()]
    return [found for line in lines for found in [path.parent / line, folder / line] if os.path.isfile(found)]


def _label_of(image: Path) -> Path:
    """The label file of an image: `labels` in place of the last `images`, and the suffix .txt."""
    parts = list(image.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _of_labels(folder: Path, finder: ImageFinder, problems: Problems) -> dict[Path, tuple[Path, str]]:
    """The images of all label files of a folder, where no YAML file names images."""
    above = folder / "labels" if (folder / "labels").is_dir() else folder
    found: dict[Path, tuple[Path, str]] = {}
    for label in files_below(above):
        if label.suffix != ".txt" or label.name in _CLASS_FILES:
            continue
        key = label.relative_to(above).with_suffix("").as_posix()
        image = finder.of_stem(key, problems, [above, *finder.places])
        if image is not None and finder.claim(image, key, problems):
            found[image] = (label, split_in(key))
    return found


def _read_label(
    path: Path, names: dict[int, str], size: tuple[int, int], problems: Problems
) -> tuple[list[tuple[str, list[float]]], int]:
    """(name, polygon in pixels) of each line, and the number of lines that are boxes."""
    height, width = size
    found, boxes = [], 0
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        problems.add("label files are no text", f"{path.name} ({error})")
        return [], 0
    for number, line in enumerate(lines, start=1):
        words, place = line.split(), f"line {number} of {path.name}"
        if not words:
            continue
        try:
            index, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            problems.add("lines are no class number and coordinates", place)
            continue
        if index not in names:
            problems.add(f"lines have a class number beyond the {len(names)} names", f"{index} in {place}")
        elif len(values) == 4:
            boxes += 1
        elif any(not -_SLACK <= v <= 1 + _SLACK for v in values):
            problems.add("polygons have coordinates outside of 0 to 1; they are parts of the image's size", place)
        else:
            points = [v * scale for v, scale in zip(values, [width, height] * (len(values) // 2 + 1), strict=False)]
            if problem := geometry.polygon_problem(points, size):
                problems.add(problem, place)
            else:
                found.append((names[index], points))
    return found, boxes


def _shapes(polygons: list[tuple[str, list[float]]], size: tuple[int, int]) -> list[Shape]:
    return [Shape(name, geometry.from_polygons([points], size)) for name, points in polygons]


class Writer:
    """Writes `data.yaml` and `labels/`, to be put beside the folder `images`.

    An object of several parts, or with holes, is one polygon, whose parts are joined by lines without width.
    """

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        self.out = out
        self.numbers = {c.name: number for number, c in enumerate(classes)}
        self.written: set[Path] = set()

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image; see `structures.Writer`."""
        path = (self.out / "labels" / file_name).with_suffix(".txt")
        if path in self.written:
            raise DatasetError(f"{file_name}: another image has the same name but for its suffix, and YOLO's files cannot tell them apart")  # fmt: skip
        self.written.add(path)
        lines = [self._line(shape, size) for shape in shapes]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text("".join(lines)))

    def _line(self, shape: Shape, size: tuple[int, int]) -> str:
        height, width = size
        outline = geometry.joined(geometry.to_polygons(geometry.decode(shape.rle)))
        numbers = (f"{v:.6f}" for x, y in outline for v in (x / width, y / height))
        return f"{self.numbers[shape.name]} {' '.join(numbers)}\n" if len(outline) else ""

    def finish(self) -> None:
        """Writes `data.yaml`."""
        content: dict[str, Any] = {
            "path": ".",
            "train": "images",
            "names": {n: name for name, n in self.numbers.items()},
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_atomically(self.out / "data.yaml", lambda temporary: temporary.write_text(text, encoding="utf-8"))


FORMAT = Format("yolo-seg", "YOLO segmentation, data.yaml with text files", recognizes, read, Writer)
