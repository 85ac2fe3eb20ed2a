"""Reading and checking a COCO-panoptic JSON file, whoever wrote it."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DatasetError, first_few
from ..files import parse_json, read_text

_LISTS = ("categories", "images", "annotations")
_LARGEST_ID = 2**24 - 1  # three bytes of a PNG
_LARGEST_CLASS = 2**16 - 1  # two bytes: semantic PNG files hold category ids
_LARGEST_AREA = 2**48  # pixels
_INSTEAD = "DATASETS.CUSTOM.LABELS in place of PANOPTIC_JSON reads the formats that `dearli data formats` lists"


def read_panoptic_json(path: Path) -> dict[str, Any]:
    """Reads and checks a COCO-panoptic file, and unifies the types of its values.

    Numbers that stand as text become numbers, "image_id" becomes the image's own "id", "iscrowd" and "isthing" become 0 or 1.

    Returns:
        {"images": [{"id", "file_name", perhaps "height" and "width"}], "annotations": [{"image_id", "file_name",
        "segments_info": [{"id", "category_id", "iscrowd", perhaps "area"}]}], "categories": [{"id", "name", "isthing"}]}, with
        further keys as they are.

    Raises:
        DatasetError: with the file, the entry and the number of such entries.
    """
    try:
        content = parse_json(read_text(path, DatasetError))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is no COCO-panoptic JSON file: {error}") from error
    if kind := format_of(content):
        raise DatasetError(f"{path} is {kind}, no COCO-panoptic JSON file; {_INSTEAD}")
    checks = _Checks(path)
    if not isinstance(content, dict):
        checks.stop(f"it holds a {type(content).__name__}, not images, annotations and categories")
    info = content.get("info")
    if isinstance(info, dict) and info.get("complete") is False:
        raise DatasetError(f"{path}: the prediction that writes it was interrupted or is going on; repeat it")
    for key in _LISTS:
        if not isinstance(content.get(key), list):
            checks.stop(f"'{key}' is missing" if key not in content else f"'{key}' is no list")
        checks.refuse(
            [f"entry {i} of '{key}'" for i, entry in enumerate(content[key]) if not isinstance(entry, dict)],
            "are no objects",
        )
    categories = _categories(content["categories"], checks)
    images = _images(content["images"], checks)
    annotations = _annotations(content["annotations"], images, {c["id"] for c in categories}, checks)
    return {**content, "images": images, "annotations": annotations, "categories": categories}


def without_annotation(content: dict[str, Any]) -> list[str]:
    """File names of the images that no annotation of a checked file names."""
    annotated = {a["image_id"] for a in content["annotations"]}
    return [i["file_name"] for i in content["images"] if i["id"] not in annotated]


def format_of(content: Any) -> str:
    """Names the format of a JSON file of another tool; "" where it is unknown, or may be COCO-panoptic."""
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        if "segmentation" in first or "bbox" in first:
            return "a list of COCO detections"
        return "a Label Studio export" if {"data", "annotations"} <= set(first) else ""
    if not isinstance(content, dict):
        return ""
    if "shapes" in content and ("imagePath" in content or "imageData" in content):
        return "a Labelme file"
    if "_via_img_metadata" in content or "_via_settings" in content:
        return "a VGG Image Annotator (VIA) project"
    if content.get("type") == "FeatureCollection":
        return "a GeoJSON file"
    if "objects" in content and ("imgWidth" in content or "size" in content):
        return "a polygon file of one image (Cityscapes or Supervisely)"
    annotations = content.get("annotations")
    if isinstance(annotations, list):
        first = next((a for a in annotations if isinstance(a, dict)), {})
        if "segments_info" not in first:
            if "caption" in first:
                return "a COCO captions file"
            if "segmentation" in first or "bbox" in first or "keypoints" in first:
                return (
                    "a COCO instances file (one polygon or RLE an object, as CVAT, Roboflow and Label Studio export it)"
                )
        elif "images" not in content and "image" in first:
            return "a predictions.json of dearli_d2.predict"
    return ""


class _Checks:
    """Refusals that name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stop(self, problem: str) -> None:
        raise DatasetError(f"{self.path} is no COCO-panoptic JSON file: {problem}")

    def refuse(self, offenders: Sequence[str], problem: str) -> None:
        """Stops unless there are no offenders."""
        if offenders:
            raise DatasetError(f"{self.path}: {len(offenders)} {problem}: {first_few(list(offenders))}")

    def present(self, entries: list[dict], key: str, what: str) -> None:
        self.refuse([f"{key!r} in entry {i}" for i, e in enumerate(entries) if key not in e], f"{what} lack a key")

    def once(self, values: Sequence[Any], problem: str) -> None:
        twice = [str(v) for v, count in Counter(values).items() if count > 1]
        if twice:
            raise DatasetError(f"{self.path}: {problem}: {first_few(twice)}")


def _number(value: Any) -> int | None:
    """A whole number, also one that stands as text; None for anything else."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*-?\d+\s*", value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _as_text(identifier: Any) -> str:
    """An image's id as it is compared: some tools write one of the two places as text, or as 1.0."""
    return str(_number(identifier) if isinstance(identifier, float) and identifier.is_integer() else identifier)


def _with_slashes(path: str) -> str:
    """A path as it is written here, also if the file comes from Windows, and the same however it is written ("./a.jpg")."""
    return posixpath.normpath(path.replace("\\", "/"))


def _categories(categories: list[dict], checks: _Checks) -> list[dict]:
    for key in ("id", "name"):
        checks.present(categories, key, "categories")
    checks.refuse(
        [str(c["name"]) for c in categories if _number(c.get("isthing")) not in (0, 1)],
        "categories without 'isthing' 1 (objects are counted one by one) or 0 (one region)",
    )
    checks.refuse(
        [str(c["id"]) for c in categories if _number(c["id"]) not in range(_LARGEST_CLASS + 1)],
        f"category ids are no whole numbers from 0 to {_LARGEST_CLASS}",
    )
    checks.refuse([str(c["id"]) for c in categories if not _is_name(c["name"])], "categories have no name")
    checks.refuse(
        [str(c["name"]) for c in categories if not _is_colour(c.get("color"))],
        "categories have a 'color' that is no list of three numbers from 0 to 255",
    )
    checks.refuse(
        [str(c["name"]) for c in categories if not _are_texts(c.get("synonyms", []))],
        "categories have 'synonyms' that are no list of texts",
    )
    categories = [
        {**{k: v for k, v in c.items() if v is not None}, "id": _number(c["id"]), "isthing": _number(c["isthing"])}
        for c in categories
    ]
    checks.once([c["id"] for c in categories], "a category id stands twice")
    checks.once([c["name"].strip() for c in categories], "a category name stands twice")
    return categories


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_colour(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _images(images: list[dict], checks: _Checks) -> list[dict]:
    for key in ("id", "file_name"):
        checks.present(images, key, "images")
    checks.refuse(
        [
            str(i["id"])
            for i in images
            if not _is_name(i["id"]) and (isinstance(i["id"], bool) or _number(i["id"]) is None)
        ],
        "image ids are neither a text nor a whole number",
    )
    checks.refuse([str(i["id"]) for i in images if not _is_name(i["file_name"])], "images have no file name")
    images = [{**i, "file_name": _with_slashes(i["file_name"])} for i in images]
    checks.once([_as_text(i["id"]) for i in images], "an image id stands twice")
    checks.once([i["file_name"] for i in images], "an image is listed twice")
    result, wrong = [], []
    for image in images:
        sizes = {key: _number(image[key]) for key in ("height", "width") if image.get(key) is not None}
        wrong += [f"{image['file_name']} ({k} {image[k]!r})" for k, v in sizes.items() if v is None or v < 1]
        result.append({**{k: v for k, v in image.items() if k not in ("height", "width")}, **sizes})
    checks.refuse(wrong, "images have a size that is no positive number")
    return result


def _annotations(annotations: list[dict], images: list[dict], categories: set[int], checks: _Checks) -> list[dict]:
    for key in ("image_id", "file_name", "segments_info"):
        checks.present(annotations, key, "annotations")
    checks.refuse(
        [str(a["image_id"]) for a in annotations if not _is_name(a["file_name"])], "annotations have no file name"
    )
    names = [_with_slashes(a["file_name"]) for a in annotations]
    by_id = {_as_text(i["id"]): i["id"] for i in images}
    checks.refuse(
        [n for n, a in zip(names, annotations, strict=True) if _as_text(a["image_id"]) not in by_id],
        "annotations without an image entry",
    )
    checks.once([_as_text(a["image_id"]) for a in annotations], "an image has two annotations, its id is")
    checks.once(names, "a label file belongs to two images")
    result = []
    problems: dict[str, list[str]] = {}
    for name, annotation in zip(names, annotations, strict=True):
        found = annotation["segments_info"]
        if not isinstance(found, list) or not all(isinstance(s, dict) for s in found):
            problems.setdefault("annotations whose 'segments_info' is no list of objects", []).append(name)
            continue
        segments = [_segment(s, name, categories, problems) for s in found]
        for identifier, count in Counter(s["id"] for s in segments).items():
            if count > 1:
                problems.setdefault("segment ids stand twice in an image", []).append(f"id {identifier} in {name}")
        own = {"image_id": by_id[_as_text(annotation["image_id"])], "file_name": name, "segments_info": segments}
        result.append({**annotation, **own})
    for problem, offenders in problems.items():
        checks.refuse(offenders, problem)
    return result


def _segment(segment: dict, name: str, categories: set[int], problems: dict[str, list[str]]) -> dict:
    identifier, category = _number(segment.get("id")), _number(segment.get("category_id"))
    crowd = _number(segment.get("iscrowd") or 0)
    if identifier is None or not 0 < identifier <= _LARGEST_ID:
        problem = f"segment ids are no number from 1 to {_LARGEST_ID} (0 means 'ignore')"
        problems.setdefault(problem, []).append(f"{segment.get('id')!r} in {name}")
    if category not in categories:
        problem = "segments of categories that are not in 'categories'"
        problems.setdefault(problem, []).append(f"category {segment.get('category_id')} in {name}")
    if crowd not in (0, 1):
        problems.setdefault("segments whose 'iscrowd' is not 0 or 1", []).append(f"{segment['iscrowd']!r} in {name}")
    area = segment.get("area")
    if area is not None and (
        isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 <= area <= _LARGEST_AREA
    ):
        problems.setdefault("segments whose 'area' is no number", []).append(f"{area!r} in {name}")
    return {**segment, "id": identifier, "category_id": category, "iscrowd": crowd}
