"""Label Studio: one JSON file of tasks with annotations or predictions; polygons, brush masks, rectangles and ellipses.

[{"data": {"image": "/data/upload/1/0a1b2c3d-photo.jpg"},
  "annotations": [{"updated_at": …, "was_cancelled": false, "result": [
      {"type": "polygonlabels", "original_width": 640, "original_height": 480, "image_rotation": 0,
       "value": {"points": [[10, 20], …], "polygonlabels": ["car"]}}]}]}]

Coordinates are percentages of the image's size. Of the annotations of a task the newest that was not cancelled counts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree

from ...data.images import SUFFIXES
from ...errors import DatasetError
from ...files import file_digest, write_atomically
from .. import brush, geometry, outlines
from ..images import ImageFinder
from ..reading import check_size, head, only_file, read_json
from ..structures import RLE, Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape

_TASKS = re.compile(r'"(annotations|predictions|completions|original_width)"\s*:')
_READ = ("polygon", "brush", "rectangle", "ellipse")
_LEFT_OUT = ("keypoint", "vector", "bitmask")
_KINDS = {"points": "polygon", "rle": "brush", "radiusX": "ellipse", "vertices": "vector", "imageDataURL": "bitmask"}
_NUMBERS = {"rectangle": ("x", "y", "width", "height"), "ellipse": ("x", "y", "radiusX", "radiusY")}


def recognizes(path: Path) -> str:
    """Recognises a JSON list of tasks with annotations or predictions."""
    file = only_file(path, ".json")
    text = head(file) if file is not None else ""
    return f"{file} is a list of tasks" if text.lstrip().startswith("[") and _TASKS.search(text) else ""


@dataclass(frozen=True)
class Region:
    """A region of an image, not drawn yet.

    Attributes:
        name: of its class.
        outline: x0, y0, x1, y1, … in pixels; empty for a brush mask.
        rle: run lengths of a brush mask; empty for an outline.
        score: confidence of a prediction.
        entry: names the region in errors.
    """

    name: str
    outline: list[float]
    rle: bytes
    score: float | None
    entry: str

    def drawn(self, size: tuple[int, int]) -> RLE:
        """Its pixels in an image of (height, width). Raises `DatasetError`."""
        if self.outline:
            return geometry.from_polygons([self.outline], size)
        mask = brush.decode(self.rle, size)
        if mask is None:
            raise DatasetError(f"{self.entry}: its brush mask is damaged; export it again")
        return geometry.encode(mask)


def read(request: Request) -> LabelSet:
    """Reads the file; brush masks are decoded when an image is asked for. See `Format.read`."""
    path = only_file(request.path, ".json")
    if path is None:
        raise DatasetError(f"{request.path} is no JSON file of Label Studio, nor a folder of one")
    tasks = _tasks(path)
    problems = Problems(path)
    finder = ImageFinder(request.root, path.parent)
    predicted = not any(_newest(task) for task in tasks)
    remarks: Counter[str] = Counter()
    classes: dict[str, LabelClass] = {}
    images = []
    for number, task in enumerate(tasks, start=1):
        entry = f"task {task.get('id', number)}"
        annotation, name = _newest(task, "predictions" if predicted else "annotations"), _image_name(task)
        if annotation is None:
            remarks["tasks have no labels and are left out"] += 1
        elif not name:
            problems.add("tasks without one image in their 'data'", entry)
        else:
            file = finder.find(name, problems)
            size = finder.size_of(file, entry, problems)
            if file is None or size is None:
                continue
            regions = _regions(annotation["result"], size, entry, problems, remarks)
            classes.update({r.name: LabelClass(r.name) for r in regions})
            images.append(LabeledImage(file, size, partial(_shapes, regions, size)))
    problems.check()
    remarks["tasks have several annotations; the newest that was not cancelled counts"] = sum(
        len(_entries(task, "annotations")) > 1 for task in tasks
    )
    notes = [f"{path}: {count} {what}" for what, count in remarks.items() if count]
    notes += finder.notes()
    if predicted and images:
        notes.append(f"{path}: no task has an annotation; the predictions are read")
    ordered = [classes[name] for name in sorted(classes)]
    return LabelSet(request.path, FORMAT.name, ordered, images, True, file_digest(path), notes)


def _tasks(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        raise DatasetError(f"{path} is no list of tasks, as Label Studio's export 'JSON' is")
    strangers = [n for n, task in enumerate(content, start=1) if not isinstance(task.get("data"), dict)]
    if strangers:
        raise DatasetError(
            f"{path}: {len(strangers)} tasks have no 'data', the first is number {strangers[0]}; if the file is an export "
            "'JSON-MIN' choose 'JSON' in Label Studio"
        )
    return content


def _newest(task: dict[str, Any], key: str = "annotations") -> dict[str, Any] | None:
    """The newest annotation, or prediction, that was not cancelled and has a list of results."""
    usable = [a for a in _entries(task, key) if not a.get("was_cancelled") and isinstance(a.get("result"), list)]
    return max(usable, key=_age, default=None)


def _entries(task: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = task.get(key) or (task.get("completions") if key == "annotations" else None)
    return [a for a in entries if isinstance(a, dict)] if isinstance(entries, list) else []


def _age(annotation: dict[str, Any]) -> tuple[str, int]:
    identifier = annotation.get("id")
    time = annotation.get("updated_at") or annotation.get("created_at") or ""
    return str(time), identifier if isinstance(identifier, int) else 0


def _image_name(task: dict[str, Any]) -> str:
    """The name of the image of a task; "" if the task has no image, or several."""
    data = task["data"]
    texts = {key: _path_of(value) for key, value in data.items() if isinstance(value, str)}
    found = [name for name in texts.values() if Path(name).suffix.lower() in SUFFIXES]
    return texts.get("image") or (found[0] if len(found) == 1 else "")


def _path_of(value: str) -> str:
    """The path in a value of a task: a path, a URL, or `/data/local-files/?d=PATH`."""
    try:
        url = urlsplit(value)
    except ValueError:
        return value
    if url.path.rstrip("/").endswith("local-files") and (given := parse_qs(url.query).get("d")):
        return given[0]
    return unquote(url.path).lstrip("/") if url.scheme in ("http", "https", "s3", "gs") else value


# ---------------------------------------------------------------------------------------------- regions


def _regions(
    results: list[Any], size: tuple[int, int], place: str, problems: Problems, remarks: Counter[str]
) -> list[Region]:
    """The regions of an annotation. What is not read as it is gets counted in `remarks`."""
    found: list[Region] = []
    named, nameless = set(), set()
    for number, result in enumerate(results, start=1):
        entry = f"region {number} of {place}"
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            continue
        kind = _kind_of(value)
        if kind in _LEFT_OUT:
            remarks[f"regions of the kind {kind} are left out"] += 1
        if kind not in _READ or not isinstance(value, dict):
            continue
        labels = next((v for key, v in value.items() if key.endswith("labels") and isinstance(v, list) and v), [])
        if not labels:
            nameless.add(str(result.get("id")))
            continue
        named.add(str(result.get("id")))
        if len(labels) > 1 or not isinstance(labels[0], str) or not labels[0].strip():
            problems.add("regions have several classes, or one without a name; give each one class", entry)
        elif result.get("image_rotation"):
            problems.add("regions are drawn on an image that Label Studio rotated; rotate the file, and label it again", entry)  # fmt: skip
        else:
            region = _read_region(kind, value, size, entry, problems)
            if region is not None:
                found.append(Region(labels[0].strip(), *region, _score(result), f"{problems.path}: {entry}"))
                remarks["rectangles are read as regions"] += kind == "rectangle"
    remarks["regions without a class are left out"] += len(nameless - named)
    sizes = {(r.get("original_height"), r.get("original_width")) for r in results if isinstance(r, dict)}
    for given in sizes:
        check_size(given, size, place, problems)
    return found


def _kind_of(value: dict[str, Any]) -> str:
    """The kind of a region by what describes it; "" for what is no region, such as a choice or a text."""
    if "width" in value:
        return "rectangle" if "height" in value else "keypoint"
    return next((kind for key, kind in _KINDS.items() if key in value), "")


def _read_region(
    kind: str, value: dict[str, Any], size: tuple[int, int], entry: str, problems: Problems
) -> tuple[list[float], bytes] | None:
    """The outline in pixels, or the run lengths, of a region; None, with a note in `problems`, for a faulty one."""
    if kind == "brush":
        try:
            rle = bytes(value["rle"])
        except (TypeError, ValueError):
            rle = b""
        if brush.number_of_pixels(rle) == size[0] * size[1]:
            return [], rle
        problems.add("brush masks do not have the size of their image, or are damaged", entry)
        return None
    height, width = size
    points = value.get("points") if kind == "polygon" else [[value.get(key) for key in _NUMBERS[kind]]]
    flat: list[Any] = (
        [v for point in points for v in point] if isinstance(points, list) and all(map(_is_list, points)) else [None]
    )
    numbers = [v for v in flat if geometry.is_number(v)]
    if len(numbers) != len(flat):
        problems.add("regions have something that is no number", entry)
        return None
    scaled = [v * scale / 100 for v, scale in zip(numbers, [width, height] * len(numbers), strict=False)]
    if kind == "polygon":
        fault = geometry.polygon_problem(scaled, size)
    else:
        make: Callable[..., list[float]] = outlines.rectangle if kind == "rectangle" else outlines.ellipse
        rotation = value.get("rotation")
        first, second, third, fourth = scaled
        scaled = make(first, second, third, fourth, rotation if geometry.is_number(rotation) else 0.0)
        fault = outlines.problem(scaled, size)
    if fault:
        problems.add(fault, entry)
        return None
    return scaled, b""


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) % 2 == 0


def _score(result: dict[str, Any]) -> float | None:
    score: Any = result.get("score")
    return float(score) if geometry.is_number(score) and 0 <= score <= 1 else None


def _shapes(regions: list[Region], size: tuple[int, int]) -> list[Shape]:
    """The regions as shapes; a later one lies on top."""
    return [Shape(r.name, r.drawn(size), level=n, score=r.score) for n, r in enumerate(regions)]


# ---------------------------------------------------------------------------------------------- writing


class Writer:
    """Writes `predictions.json`, to import into Label Studio, and `labeling_config.xml`, the project's labelling interface.

    The masks are brush masks, which are exact. An image is named as a file below Label Studio's folder of local files, so this must
    be the folder of the images.
    """

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        self.out, self.classes = out, classes
        self.tasks: list[str] = []  # as JSON, which is smaller than its objects

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image; see `structures.Writer`."""
        results = [self._result(number, size, shape) for number, shape in enumerate(shapes, start=1)]
        scores = [s.score for s in shapes if s.score is not None]
        prediction: dict[str, Any] = {"model_version": "dearli", "result": results}
        if scores:
            prediction["score"] = round(sum(scores) / len(scores), 4)
        task = {"data": {"image": f"/data/local-files/?d={quote(file_name)}"}, "predictions": [prediction]}
        self.tasks.append(json.dumps(task))

    @staticmethod
    def _result(number: int, size: tuple[int, int], shape: Shape) -> dict[str, Any]:
        rle = brush.encode(geometry.decode(shape.rle))
        return {
            "id": f"region{number}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": size[1],
            "original_height": size[0],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": rle, "brushlabels": [shape.name]},
            **({} if shape.score is None else {"score": round(shape.score, 4)}),
        }

    def finish(self) -> None:
        """Writes both files."""
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name="image", value="$image")
        names = ElementTree.SubElement(view, "BrushLabels", name="label", toName="image")
        for c in self.classes:
            color = {} if c.color is None else {"background": "#{:02x}{:02x}{:02x}".format(*c.color)}
            ElementTree.SubElement(names, "Label", {"value": c.name, **color})
        ElementTree.indent(view)
        interface = ElementTree.tostring(view, encoding="unicode")
        text = "[" + ",\n".join(self.tasks) + "]"
        write_atomically(self.out / "labeling_config.xml", lambda path: path.write_text(interface, encoding="utf-8"))
        write_atomically(self.out / "predictions.json", lambda path: path.write_text(text, encoding="utf-8"))


FORMAT = Format("label-studio", "Label Studio JSON", recognizes, read, Writer)
