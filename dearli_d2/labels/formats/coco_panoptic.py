"""COCO panoptic: a JSON file and a PNG of segment ids for each image, as `dearli predict` writes it too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...data.images import image_sizes
from ...data.panoptic_json import read_panoptic_json, without_annotation
from ...data.panoptic_png import ids_to_rgb, read_panoptic, segment_ids, segment_info
from ...data.preparation import save_png
from ...errors import DatasetError
from ...files import file_digest, write_json
from ..geometry import decode, encode
from ..images import ImageFinder
from ..structures import Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape

_HEAD = 2**20


def file_of(path: Path) -> Path | None:
    """The JSON file: `path` itself, or the only one in the folder."""
    found = [path] if path.is_file() else sorted(path.glob("*.json"))
    return found[0] if len(found) == 1 and found[0].suffix.lower() == ".json" else None


def recognizes(path: Path) -> str:
    """Recognises a JSON file with `segments_info`."""
    file = file_of(path)
    if file is None:
        return ""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            head = stream.read(_HEAD)
            found = '"segments_info"' in head or any(
                '"segments_info"' in part for part in iter(partial(stream.read, _HEAD), "")
            )
    except (OSError, ValueError):
        return ""
    return f"{file} has 'segments_info'" if found else ""


def read(request: Request) -> LabelSet:
    """Reads the file; see `Format.read`."""
    path = file_of(request.path)
    if path is None:
        raise DatasetError(f"{request.path} is no JSON file, nor a folder of one")
    content = read_panoptic_json(path)
    problems = Problems(path)
    finder = ImageFinder(request.root, path.parent)
    left_out = without_annotation(content)
    images = {i["id"]: i for i in content["images"] if i["file_name"] not in set(left_out)}
    files = {key: finder.find(image["file_name"], problems) for key, image in images.items()}
    for key, file in files.items():
        if file is not None:
            finder.claim(file, f"image {key}", problems)
    problems.check()
    sizes = dict(zip(files, image_sizes([p for p in files.values() if p is not None]), strict=True))
    classes = {
        c["id"]: LabelClass(c["name"], c["id"], bool(c["isthing"]), _color(c.get("color")))
        for c in content["categories"]
    }
    names = {key: c.name for key, c in classes.items()}
    folders = [path.with_suffix(""), path.parent, request.root / "masks", *_beside(path, files.values())]
    labeled, stamps = [], []
    for annotation in content["annotations"]:
        png = next((f / annotation["file_name"] for f in folders if (f / annotation["file_name"]).is_file()), None)
        file = files[annotation["image_id"]]
        if png is None:
            problems.add(
                f"panoptic PNG files are neither in {folders[0]} nor in a folder beside the file",
                annotation["file_name"],
            )
            continue
        assert file is not None
        size = sizes[annotation["image_id"]]
        shapes = partial(_shapes, png, size, annotation["segments_info"], names)
        labeled.append(LabeledImage(file, size, shapes))
        stamps.append([str(png), png.stat().st_mtime_ns, png.stat().st_size])
    problems.check()
    notes = [f"{path}: {len(left_out)} images have no annotation and are left out"] if left_out else []
    notes += finder.notes()
    return LabelSet(
        request.path, FORMAT.name, list(classes.values()), labeled, True, json.dumps([file_digest(path), stamps]), notes
    )


def _beside(path: Path, images: Iterable[Path | None]) -> list[Path]:
    """The folders beside the JSON file, without those of images, which may be PNG files of the same names."""
    taken = {image.parent for image in images if image is not None}
    return [p for p in sorted(path.parent.iterdir()) if p.is_dir() and p not in taken and not p.name.startswith(".")]


def _color(value: Any) -> tuple[int, int, int] | None:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and 0 <= v < 256 for v in value):
        return value[0], value[1], value[2]
    return None


def _shapes(png: Path, size: tuple[int, int], segments: list[dict[str, Any]], names: dict[int, str]) -> list[Shape]:
    ids = segment_ids(read_panoptic(str(png)))
    if ids.shape != size:
        raise DatasetError(f"{png} is {ids.shape[1]} x {ids.shape[0]}, its image is {size[1]} x {size[0]} pixels")
    strangers = sorted(set(np.unique(ids).tolist()) - {0} - {s["id"] for s in segments})
    if strangers:
        raise DatasetError(
            f"{png} holds {len(strangers)} segment ids that its JSON file does not list: {strangers[:3]}"
        )
    found = []
    for segment in segments:
        mask = ids == segment["id"]
        if mask.any():
            score = segment.get("score")
            crowd = bool(segment["iscrowd"])
            found.append(Shape(names[segment["category_id"]], encode(mask), crowd, score=score))
    return found


class Writer:
    """Writes `panoptic.json` and the PNG files in the folder `panoptic`."""

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        self.out = out
        self.ids = {c.name: number if c.id is None else c.id for number, c in enumerate(classes, start=1)}
        self.categories = [
            {
                "id": self.ids[c.name],
                "name": c.name,
                "isthing": int(c.isthing is not False),
                **({} if c.color is None else {"color": list(c.color)}),
            }
            for c in classes
        ]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image; see `structures.Writer`."""
        ids, segments = np.zeros(size, np.int64), []
        for number, shape in enumerate(shapes, start=1):
            mask = decode(shape.rle)
            ids[mask] = number
            info = {**segment_info(number, self.ids[shape.name], mask), "iscrowd": int(shape.crowd)}
            segments.append(info if shape.score is None else {**info, "score": round(shape.score, 4)})
        save_png(self.out / "panoptic" / f"{file_name}.png", ids_to_rgb(ids))
        self.images.append({"id": file_name, "file_name": file_name, "height": size[0], "width": size[1]})
        self.annotations.append({"image_id": file_name, "file_name": f"{file_name}.png", "segments_info": segments})

    def finish(self) -> None:
        """Writes the JSON file."""
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        write_json(self.out / "panoptic.json", content)


FORMAT = Format("coco-panoptic", "COCO panoptic JSON with PNG files", recognizes, read, Writer)
