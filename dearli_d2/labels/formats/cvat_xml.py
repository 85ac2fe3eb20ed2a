"""CVAT for images 1.1: `annotations.xml` with polygons, masks, boxes and ellipses, and the folder `images`.

<annotations>
  <meta><task><labels><label><name>car</name><color>#ff0000</color></label></labels></task></meta>
  <image id="0" name="a.jpg" subset="Train" width="640" height="480">
    <polygon label="car" points="10.0,20.0;30.0,20.0;30.0,40.0" z_order="0" group_id="1"/>
    <mask label="car" rle="3, 5, 7" left="10" top="20" width="5" height="3" z_order="0"/>
  </image>
</annotations>
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

from ...errors import DatasetError
from ...files import file_digest, write_atomically
from .. import geometry, outlines
from ..images import ImageFinder
from ..reading import check_size, head, only_file, split_of
from ..structures import RLE, Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape

_ROOT = re.compile(r"<annotations[\s>]")
_CHUNK = 2**20  # characters
_LEFT_OUT = ("polyline", "points", "cuboid", "skeleton", "tag")
_NUMBERS = {"box": ("xtl", "ytl", "xbr", "ybr"), "ellipse": ("cx", "cy", "rx", "ry"), "mask": ("left", "top", "width", "height")}  # fmt: skip
_COLOR = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


def recognizes(path: Path) -> str:
    """Recognises `annotations.xml`, or another XML file that starts with <annotations>."""
    file = _file_of(path)
    return f"{file} starts with <annotations>" if file is not None and _ROOT.search(head(file)) else ""


def _file_of(path: Path) -> Path | None:
    named = path / "annotations.xml"
    return named if named.is_file() else only_file(path, ".xml")


@dataclass(frozen=True)
class Region:
    """A region of an image, not drawn yet.

    Attributes:
        name: of its class.
        outline: x0, y0, x1, y1, … in pixels; empty for a mask.
        runs: run lengths of a mask along the rows of its box.
        box: (left, top, width, height) of a mask.
        level: z_order.
        group: number of the object that it is a part of; "0" for an object of its own.
    """

    name: str
    outline: list[float]
    runs: list[int]
    box: tuple[int, ...]
    level: int
    group: str

    def drawn(self, size: tuple[int, int]) -> RLE:
        """Its pixels in an image of (height, width)."""
        if self.outline:
            return geometry.from_polygons([self.outline], size)
        return outlines.from_row_runs(self.runs, self.box, size)


def read(request: Request) -> LabelSet:
    """Reads the file; shapes are drawn when an image is asked for. See `Format.read`."""
    path = _file_of(request.path)
    if path is None:
        raise DatasetError(f"{request.path} is no XML file of CVAT, nor a folder with annotations.xml")
    problems = Problems(path)
    finder = ImageFinder(request.root, path.parent)
    classes: dict[str, LabelClass] = {}
    remarks: Counter[str] = Counter()
    images = []
    listed = False
    for element in _elements(path):
        if element.tag == "meta":
            listed = True
            classes.update({c.name: c for c in _classes(element)})
            continue
        name = element.get("name", "")
        file = finder.find(name, problems)
        size = finder.size_of(file, f"image {element.get('id')} {name}", problems)
        if file is None or size is None:
            continue
        check_size((_whole(element, "height"), _whole(element, "width")), size, name, problems)
        regions = _regions(element, size, problems, remarks)
        strangers = [r.name for r in regions if r.name not in classes] if listed else []
        for stranger in strangers:
            problems.add("regions have a label that <meta> does not list", f"{stranger} in {name}")
        if not listed:
            classes.update({r.name: LabelClass(r.name) for r in regions})
        images.append(LabeledImage(file, size, partial(_shapes, regions, size), split_of(element.get("subset", ""))))
    problems.check()
    notes = [*(f"{path}: {count} {what}" for what, count in remarks.items()), *finder.notes()]
    return LabelSet(request.path, FORMAT.name, list(classes.values()), images, True, file_digest(path), notes)


def _elements(path: Path) -> Iterator[ElementTree.Element]:
    """The elements <meta> and <image> of the file, one after another. Raises `DatasetError`."""
    parser = ElementTree.XMLPullParser(("start", "end"))
    depth, before = 0, ""
    root: ElementTree.Element | None = None
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for chunk in iter(partial(stream.read, _CHUNK), ""):
                if "<!ENTITY" in before + chunk:  # such a file may grow without limit
                    raise DatasetError(f"{path} defines XML entities, which CVAT does not; export it again")
                before = chunk[-8:]
                parser.feed(chunk)
                for event, element in cast("Iterator[tuple[str, ElementTree.Element]]", parser.read_events()):
                    depth += 1 if event == "start" else -1
                    if event == "start" and depth == 1:
                        root = _checked(path, element)
                    elif event == "start" and depth == 2 and element.tag == "track":
                        raise DatasetError(
                            f"{path} has tracks of a video; export the task as 'CVAT for images 1.1', or its frames as masks"
                        )
                    elif event == "end" and depth == 1:
                        if element.tag in ("meta", "image"):
                            yield element
                        if root is not None:
                            root.clear()
            parser.close()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error
    except ElementTree.ParseError as error:
        raise DatasetError(f"{path} is no whole XML file: {error}; export it again") from error


def _checked(path: Path, root: ElementTree.Element) -> ElementTree.Element:
    if root.tag != "annotations":
        raise DatasetError(f"{path} starts with <{root.tag}>, not with <annotations> as CVAT's files do")
    return root


def _classes(meta: ElementTree.Element) -> list[LabelClass]:
    """The labels of <meta>, without those of the points of a skeleton."""
    found = []
    for label in meta.iter("label"):
        name = (label.findtext("name") or "").strip()
        color = _COLOR.fullmatch(label.findtext("color") or "")
        if name and label.find("parent") is None:
            red, green, blue = (int(part, 16) for part in color.groups()) if color else (0, 0, 0)
            found.append(LabelClass(name, color=(red, green, blue) if color else None))
    return found


# ---------------------------------------------------------------------------------------------- regions


def _regions(
    image: ElementTree.Element, size: tuple[int, int], problems: Problems, remarks: Counter[str]
) -> list[Region]:
    found = []
    for number, element in enumerate(image, start=1):
        kind, entry = element.tag, f"region {number} ({element.tag}) of {image.get('name')}"
        if kind in _LEFT_OUT:
            remarks[f"regions of the kind {kind} are left out"] += 1
            continue
        if kind not in ("polygon", *_NUMBERS):
            problems.add("regions are of a kind that is unknown", entry)
            continue
        if not (name := element.get("label", "").strip()):
            problems.add("regions without a label", entry)
            continue
        outline, runs, box, fault = _geometry(element, size)
        if fault:
            problems.add(fault, entry)
            continue
        remarks["boxes are read as regions"] += kind == "box"
        level = _whole(element, "z_order")
        found.append(Region(name, outline, runs, box, level or 0, element.get("group_id") or "0"))
    remarks += Counter()  # without zeros
    return found


def _geometry(
    element: ElementTree.Element, size: tuple[int, int]
) -> tuple[list[float], list[int], tuple[int, ...], str]:
    """(outline, runs, box, fault) of a region; the fault says why it cannot be used."""
    if element.tag == "polygon":
        points = _numbers(element.get("points", "").replace(";", ","))
        return points, [], (), geometry.polygon_problem(points, size) if points else "polygons without points"
    a, b, c, d = (_number(element.get(key, "")) for key in _NUMBERS[element.tag])
    if element.tag == "mask":
        lengths = _numbers(element.get("rle", ""))
        runs = [int(v) for v in lengths if geometry.is_number(v) and v == int(v)]
        box = tuple(int(v) if geometry.is_number(v) else -1 for v in (a, b, c, d))
        whole = len(runs) == len(lengths) and outlines.fills(runs, box, size)
        return [], runs, box, "" if whole else "masks do not fill their box, or leave the image"
    degrees = _number(element.get("rotation", "0"))
    if element.tag == "box":
        outline = outlines.rectangle(a, b, c - a, d - b, degrees, "centre")
    else:
        outline = outlines.ellipse(a, b, c, d, degrees)
    return outline, [], (), outlines.problem(outline, size)


def _numbers(text: str) -> list[float]:
    return [_number(word) for word in text.split(",")] if text.strip() else []


def _number(text: str) -> float:
    """NaN for a text that is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _whole(element: ElementTree.Element, key: str) -> int | None:
    value = element.get(key, "")
    return int(value) if re.fullmatch(r"-?\d{1,9}", value) else None


def _shapes(regions: list[Region], size: tuple[int, int]) -> list[Shape]:
    """The regions as shapes; those that share a label and a group are one."""
    groups: dict[tuple[str, str], list[Region]] = {}
    for number, region in enumerate(regions):
        key = f"alone {number}" if region.group == "0" else region.group
        groups.setdefault((region.name, key), []).append(region)
    return [
        Shape(members[0].name, geometry.union([r.drawn(size) for r in members]), level=max(r.level for r in members))
        for members in groups.values()
    ]


# ---------------------------------------------------------------------------------------------- writing


class Writer:
    """Writes `annotations.xml` with masks, which are exact, to upload to a task of the images in CVAT."""

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        self.out, self.classes = out, classes
        self.images: list[str] = []

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image; see `structures.Writer`."""
        height, width = (str(v) for v in size)
        image = ElementTree.Element("image", id=str(len(self.images)), name=file_name, width=width, height=height)
        for shape in shapes:
            self._mask(image, shape)
        ElementTree.indent(image, level=1)
        self.images.append(ElementTree.tostring(image, encoding="unicode"))

    @staticmethod
    def _mask(image: ElementTree.Element, shape: Shape) -> None:
        x, y, width, height = geometry.box(shape.rle)
        if width == 0:
            return
        runs = outlines.row_runs(geometry.decode(shape.rle)[y : y + height, x : x + width])
        place = {"left": x, "top": y, "width": width, "height": height, "occluded": 0, "z_order": 0}
        attributes = {key: str(value) for key, value in place.items()}
        rle = ", ".join(map(str, runs))
        ElementTree.SubElement(image, "mask", {"label": shape.name, "source": "auto", "rle": rle, **attributes})

    def finish(self) -> None:
        """Writes the file."""
        meta = ElementTree.Element("meta")
        labels = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
        for c in self.classes:
            label = ElementTree.SubElement(labels, "label")
            ElementTree.SubElement(label, "name").text = c.name
            if c.color is not None:
                ElementTree.SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*c.color)
        ElementTree.indent(meta, level=1)
        parts = ["<version>1.1</version>", ElementTree.tostring(meta, encoding="unicode"), *self.images]
        body = "".join(f"\n  {part}" for part in parts)
        text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{body}\n</annotations>\n'
        write_atomically(self.out / "annotations.xml", lambda path: path.write_text(text, encoding="utf-8"))


FORMAT = Format("cvat-xml", "CVAT for images 1.1, XML", recognizes, read, Writer)
