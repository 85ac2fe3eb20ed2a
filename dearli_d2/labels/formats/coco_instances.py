"""COCO instances: one JSON file with polygons or run lengths, of CVAT, Roboflow, Label Studio, FiftyOne and others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...data.images import image_sizes
from ...errors import DatasetError
from ...files import file_digest, parse_json, read_text, write_json
from .. import geometry
from ..images import ImageFinder
from ..structures import RLE, Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape

_SPLITS = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}
_HEAD = 2**20  # characters that decide whether a file is one of these


def recognizes(path: Path) -> str:
    """A JSON file, or a folder of split folders each with one, whose annotations have a segmentation or a box."""
    files = files_of(path)
    return f"{files[0]} has 'annotations' with 'category_id'" if files and all(map(_is_instances, files)) else ""


def files_of(path: Path) -> list[Path]:
    """The JSON files: `path` itself, or those of the folders train, valid and test as Roboflow names them."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    found = [p for split in _SPLITS for p in sorted((path / split).glob("_annotations.coco.json"))]
    return found or sorted(path.glob("*.json"))[:1] if len(list(path.glob("*.json"))) == 1 else found


def _is_instances(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return False
    return ('"category_id"' in head and '"segments_info"' not in head and '"images"' in head) or _small(path, head)


def _small(path: Path, head: str) -> bool:
    """Decides by the whole file, for one in which the images stand first and are many."""
    if '"images"' not in head:
        return False
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    entries = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(entries, list) and all(isinstance(a, dict) and "segments_info" not in a for a in entries[:1])


def read(request: Request) -> LabelSet:
    """Reads all its files; see `Format.read`."""
    files = files_of(request.path)
    if not files:
        raise DatasetError(f"{request.path} holds no COCO JSON file, such as train/_annotations.coco.json")
    sets = [_read_file(path, request, _SPLITS.get(path.parent.name.lower(), "")) for path in files]
    classes = {c.name: c for labels in sets for c in labels.classes}
    return LabelSet(
        request.path,
        FORMAT.name,
        list(classes.values()),
        [image for labels in sets for image in labels.images],
        instances=True,
        fingerprint=json.dumps([file_digest(path) for path in files]),
        notes=[note for labels in sets for note in labels.notes],
    )


def _read_file(path: Path, request: Request, split: str) -> LabelSet:
    content = _content(path)
    problems = Problems(path)
    names = _categories(content, problems)
    images = _images(content, problems)
    problems.check()
    by_image: dict[str, list[dict[str, Any]]] = {key: [] for key in images}
    for annotation in content["annotations"]:
        key, entry = str(annotation.get("image_id")), f"annotation {annotation.get('id')}"
        if key not in images:
            problems.add("annotations of an image that 'images' does not list", entry)
        elif str(annotation.get("category_id")) not in names:
            problems.add("annotations of a category that 'categories' does not list", entry)
        else:
            by_image[key].append(annotation)
    finder = ImageFinder(request.root, path.parent)
    found = {key: finder.find(image["file_name"], problems) for key, image in images.items()}
    problems.check()
    sizes = dict(zip(found, image_sizes([p for p in found.values() if p is not None]), strict=True))
    labeled, boxes = [], 0
    for key, image in images.items():
        _check_size(image, sizes[key], problems)
        shapes = []
        for annotation in by_image[key]:
            if not annotation.get("segmentation"):
                boxes += 1
                continue
            entry = f"annotation {annotation.get('id')} of {image['file_name']}"
            rle = _rle(annotation["segmentation"], sizes[key], entry, problems)
            if rle is not None:
                crowd = annotation.get("iscrowd") in (1, "1", True)
                score = annotation.get("score")
                score = float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else None
                shapes.append(Shape(names[str(annotation["category_id"])].name, rle, crowd, score=score))
        file = found[key]
        assert file is not None
        labeled.append(LabeledImage(file, sizes[key], partial(list, shapes), split))
    problems.check()
    notes = [f"{path}: {boxes} annotations have a box and no segmentation; they are left out"] if boxes else []
    return LabelSet(path, FORMAT.name, list(names.values()), labeled, True, "", notes)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path, DatasetError))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON file: {error}; export it again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds a {type(content).__name__}, not an object with 'images' and 'annotations'")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DatasetError(f"{path} has no list of objects {key!r}, as COCO files have")
    return content


def _categories(content: dict[str, Any], problems: Problems) -> dict[str, LabelClass]:
    """Classes by their id as text."""
    found: dict[str, LabelClass] = {}
    for category in content["categories"]:
        name, identifier = category.get("name"), category.get("id")
        if not isinstance(name, str) or not name.strip():
            problems.add("categories without a name", category)
        elif not str(identifier).isdigit():
            problems.add("categories whose id is no whole number", category)
        elif str(identifier) in found:
            problems.add("category ids stand twice", identifier)
        else:
            found[str(identifier)] = LabelClass(name.strip(), int(identifier))
    for name, count in Counter(c.name for c in found.values()).items():
        if count > 1:
            problems.add("category names stand twice", name)
    return found


def _images(content: dict[str, Any], problems: Problems) -> dict[str, dict[str, Any]]:
    """Images by their id as text."""
    found: dict[str, dict[str, Any]] = {}
    for image in content["images"]:
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            problems.add("images without a file name", image.get("id"))
        elif str(image.get("id")) in found:
            problems.add("image ids stand twice", image.get("id"))
        else:
            found[str(image.get("id"))] = image
    for name, count in Counter(image["file_name"] for image in found.values()).items():
        if count > 1:
            problems.add("image files stand twice, with an id each", name)
    return found


def _check_size(image: dict[str, Any], size: tuple[int, int], problems: Problems) -> None:
    given = (image.get("height"), image.get("width"))
    if all(isinstance(v, int) and v > 0 for v in given) and given != size:
        turned = given == size[::-1]
        problem = "images have another size than the labels say" + (
            "; an EXIF tag turns them, which the labelling tool did not: remove the tag (exiftool -Orientation= FILE)"
            if turned
            else ""
        )
        problems.add(problem, f"{image['file_name']} is {size[1]} x {size[0]}, labelled as {given[1]} x {given[0]}")


def _rle(segmentation: Any, size: tuple[int, int], entry: str, problems: Problems) -> RLE | None:
    if isinstance(segmentation, dict):
        rle = geometry.from_counts(segmentation.get("counts"), size) if _has_size(segmentation, size) else None
        if rle is None:
            problems.add("run lengths that do not fill their image", entry)
        return rle
    polygons: list[Any] = segmentation if isinstance(segmentation, list) else [None]
    for points in polygons:
        if not isinstance(points, list):
            problems.add("segmentations that are neither polygons nor run lengths", entry)
            return None
        if problem := geometry.polygon_problem(points, size):
            problems.add(problem, entry)
            return None
    return geometry.from_polygons(polygons, size)


def _has_size(segmentation: dict[str, Any], size: tuple[int, int]) -> bool:
    return list(segmentation.get("size", ())) == list(size)


class Writer:
    """Writes `instances.json` with compressed run lengths, which are exact."""

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        self.out = out
        self.ids = {c.name: number if c.id is None else c.id for number, c in enumerate(classes, start=1)}
        self.categories = [{"id": self.ids[c.name], "name": c.name} for c in classes]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image; see `structures.Writer`."""
        image = len(self.images) + 1
        self.images.append({"id": image, "file_name": file_name, "height": size[0], "width": size[1]})
        for shape in shapes:
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image,
                    "category_id": self.ids[shape.name],
                    "segmentation": {"size": list(size), "counts": shape.rle["counts"].decode()},
                    "area": geometry.area(shape.rle),
                    "bbox": geometry.box(shape.rle),
                    "iscrowd": int(shape.crowd),
                    **({} if shape.score is None else {"score": round(shape.score, 4)}),
                }
            )

    def finish(self) -> None:
        """Writes the file."""
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        write_json(self.out / "instances.json", content)


FORMAT = Format("coco-instances", "COCO instances JSON", recognizes, read, Writer)
