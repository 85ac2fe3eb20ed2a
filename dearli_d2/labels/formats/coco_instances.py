"""COCO instances: one JSON file with polygons or run lengths, of CVAT, Roboflow, Label Studio, FiftyOne and others."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...data.images import image_sizes
from ...errors import DatasetError
from ...files import file_digest, write_json
from .. import geometry
from ..images import ImageFinder
from ..reading import check_size, head, read_json, split_of
from ..structures import RLE, Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape

_ROBOFLOW = "_annotations.coco.json"
_DIGITS = re.compile(r"\d{1,15}", re.ASCII)
_YEAR = re.compile(r"\d+$")


def recognizes(path: Path) -> str:
    """A JSON file, or a folder of split folders each with one, whose annotations have a segmentation or a box."""
    files = files_of(path)
    return f"{files[0]} has 'annotations' with 'category_id'" if files and all(map(_is_instances, files)) else ""


def files_of(path: Path) -> list[Path]:
    """The JSON files.

    They are `path` itself, those of the folders train, valid and test as Roboflow names them, or those in the folder or in its folder
    `annotations`: the only one, or one for each split, such as instances_train.json.
    """
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    if not path.is_dir():
        return []
    places = [p for p in path.iterdir() if p.is_dir() and split_of(p.name)]
    if found := sorted(p / _ROBOFLOW for p in places if (p / _ROBOFLOW).is_file()):
        return found
    for folder in (path, path / "annotations"):
        files = sorted(folder.glob("*.json"))
        files = [p for p in files if p.name.startswith("instances")] or files
        splits = [_split(p) for p in files]
        if len(files) == 1 or (files and all(splits) and len(set(splits)) == len(splits)):
            return files
    return []


def _split(path: Path) -> str:
    """The split of a file, from its folder or from a name such as instances_train2017.json."""
    return split_of(path.parent.name) or split_of(_YEAR.sub("", path.stem.rpartition("_")[2]))


def _is_instances(path: Path) -> bool:
    text = head(path)
    if '"segments_info"' in text:
        return False
    return ('"category_id"' in text and '"images"' in text) or _is_by_whole_file(path, text)


def _is_by_whole_file(path: Path, text: str) -> bool:
    """Decides about a file in which the images stand first and are many."""
    if not text.lstrip().startswith("{") or '"images"' not in text:
        return False
    try:
        content = read_json(path)
    except DatasetError:
        return False
    entries = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(entries, list) and all(isinstance(a, dict) and "segments_info" not in a for a in entries[:1])


def read(request: Request) -> LabelSet:
    """Reads all its files; see `Format.read`."""
    files = files_of(request.path)
    if not files:
        raise DatasetError(f"{request.path} holds no COCO JSON file, such as train/{_ROBOFLOW}, or several of no split")
    claims = ImageFinder(request.root)
    sets = [_read_file(path, request, _split(path), claims) for path in files]
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


def _read_file(path: Path, request: Request, split: str, claims: ImageFinder) -> LabelSet:
    content = _content(path)
    problems = Problems(path)
    remarks: Counter[str] = Counter()
    names = _categories(content, problems, remarks)
    images = _images(content, problems)
    problems.check()
    by_image: dict[str, list[dict[str, Any]]] = {key: [] for key in images}
    for annotation in content["annotations"]:
        key, entry = _key(annotation.get("image_id")), f"annotation {annotation.get('id')}"
        if key not in images:
            problems.add("annotations of an image that 'images' does not list", entry)
        elif _key(annotation.get("category_id")) not in names:
            problems.add("annotations of a category that 'categories' does not list", entry)
        else:
            by_image[key].append(annotation)
    finder = ImageFinder(request.root, path.parent)
    found = {key: finder.find(image["file_name"], problems) for key, image in images.items()}
    problems.check()
    sizes = dict(zip(found, image_sizes([p for p in found.values() if p is not None]), strict=True))
    labeled = []
    for key, image in images.items():
        size, file = sizes[key], found[key]
        assert file is not None
        claims.claim(file, f"{path.name}, image {key}", problems)
        check_size((image.get("height"), image.get("width")), size, image["file_name"], problems)
        shapes = []
        for annotation in by_image[key]:
            entry = f"annotation {annotation.get('id')} of {image['file_name']}"
            rle = _rle(annotation.get("segmentation"), size, entry, problems, remarks)
            if rle is not None:
                crowd = annotation.get("iscrowd") in (1, "1", True)
                score = annotation.get("score")
                score = float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else None
                shapes.append(Shape(names[_key(annotation["category_id"])].name, rle, crowd, score=score))
        labeled.append(LabeledImage(file, size, partial(list, shapes), split))
    problems.check()
    notes = [*(f"{path}: {count} {what}" for what, count in remarks.items()), *finder.notes()]
    return LabelSet(path, FORMAT.name, list(names.values()), labeled, True, "", notes)


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds a {type(content).__name__}, not an object with 'images' and 'annotations'")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DatasetError(f"{path} has no list of objects {key!r}, as COCO files have")
    return content


def _key(identifier: Any) -> str:
    """An id as text: 1, 1.0 and "1" are the same, since tools mix them."""
    whole = isinstance(identifier, float) and identifier.is_integer()
    return str(int(identifier) if whole else identifier)


def _categories(content: dict[str, Any], problems: Problems, remarks: Counter[str]) -> dict[str, LabelClass]:
    """Classes by their id as text."""
    used = {_key(annotation.get("category_id")) for annotation in content["annotations"]}
    above = {category.get("supercategory") for category in content["categories"] if _key(category.get("id")) in used
             and isinstance(category.get("supercategory"), str)}  # fmt: skip
    found: dict[str, LabelClass] = {}
    for category in content["categories"]:
        name, key = category.get("name"), _key(category.get("id"))
        if not isinstance(name, str) or not name.strip():
            problems.add("categories without a name", category)
        elif not _DIGITS.fullmatch(key):
            problems.add("categories whose id is no whole number", category)
        elif key in found:
            problems.add("category ids stand twice", key)
        elif name in above and key not in used and category.get("supercategory") == "none":
            # Roboflow writes the project's name as a category of which all others are parts
            remarks[f"category without annotations, above the others, is left out: {name}"] += 1
        else:
            found[key] = LabelClass(name.strip(), int(key))
    for name, count in Counter(c.name for c in found.values()).items():
        if count > 1:
            problems.add("category names stand twice", name)
    return found


def _images(content: dict[str, Any], problems: Problems) -> dict[str, dict[str, Any]]:
    """Images by their id as text."""
    found: dict[str, dict[str, Any]] = {}
    for image in content["images"]:
        key = _key(image.get("id"))
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            problems.add("images without a file name", image.get("id"))
        elif key in found:
            problems.add("image ids stand twice", key)
        else:
            found[key] = image
    for name, count in Counter(image["file_name"] for image in found.values()).items():
        if count > 1:
            problems.add("image files stand twice, with an id each", name)
    return found


def _rle(segmentation: Any, size: tuple[int, int], entry: str, problems: Problems, remarks: Counter[str]) -> RLE | None:
    """The pixels of an annotation. None, with a note in `problems` or in `remarks`, where it has none."""
    if not segmentation:
        remarks["annotations have a box and no segmentation; they are left out"] += 1
        return None
    parts: list[Any] = segmentation if isinstance(segmentation, list) else [segmentation]
    if all(geometry.is_number(v) for v in parts):  # one polygon, not in a list of its own
        parts = [parts]
    polygons, masks = [], []
    for part in parts:
        if isinstance(part, dict):
            rle = geometry.from_counts(part.get("counts"), size) if part.get("size") == list(size) else None
            if rle is None:
                problems.add("run lengths that do not fill their image", entry)
                return None
            masks.append(rle)
        elif not isinstance(part, list):
            problems.add("segmentations that are neither polygons nor run lengths", entry)
            return None
        elif len(part) < 6 and all(geometry.is_number(v) for v in part):
            remarks["polygons have fewer than three points; they are left out"] += 1
        elif problem := geometry.polygon_problem(part, size):
            problems.add(problem, entry)
            return None
        else:
            polygons.append(part)
    if polygons:
        masks.append(geometry.from_polygons(polygons, size))
    return geometry.union(masks) if masks else None


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
