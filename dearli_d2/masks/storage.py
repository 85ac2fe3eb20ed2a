"""Class-agnostic masks on disk: one JSON file of RLE annotations an image, as in SA-1B, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from ..errors import DatasetError, first_few
from ..files import write_atomically, write_json

_MANIFEST = "manifest.json"
_HINT = "python -m dearli_d2.masks generate makes them"


class MaskFolder:
    """`FOLDER/manifest.json` and `FOLDER/masks/STEM.json`, by the stem of the image's file name; `FOLDER/failed_I_of_N.jsonl`
    lists the images that shard I of N could not read.

    A mask file holds "image" {"file_name", "height", "width"} and "annotations": {"segmentation" (compressed RLE), "area",
    "bbox" (x, y, w, h), "predicted_iou", "stability_score"}.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def path(self, file_name: str) -> Path:
        return self.folder / "masks" / f"{Path(file_name).stem}.json"

    def manifest(self) -> dict[str, Any] | None:
        """What made the masks; None in a new folder. Raises `DatasetError` if it cannot be read."""
        path = self.folder / _MANIFEST
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise DatasetError(f"{path} is damaged: {error}") from error

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_json(self.folder / _MANIFEST, manifest, indent=1)

    def write(self, file_name: str, size: tuple[int, int], annotations: list[dict]) -> None:
        """Stores the masks of one image of (height, width), whole or not at all."""
        image = {"file_name": Path(file_name).name, "height": size[0], "width": size[1]}
        text = json.dumps({"image": image, "annotations": annotations})
        write_atomically(self.path(file_name), lambda temporary: temporary.write_text(text))

    def read(self, file_name: str) -> np.ndarray:
        """(N, H, W) bool masks of an image; they may overlap. Crowd annotations are left out.

        Raises:
            DatasetError: no file, or a damaged one.
        """
        path = self.path(file_name)
        try:
            content = json.loads(path.read_text())
            size = content["image"]["height"], content["image"]["width"]
            codes = [a["segmentation"] for a in content["annotations"] if not a.get("iscrowd", 0)]
            if not codes:
                return np.zeros((0, *size), bool)
            return rle.decode(codes).transpose(2, 0, 1).astype(bool)
        except FileNotFoundError as error:
            raise DatasetError(f"no masks of {file_name}: {path} is missing; {_HINT}") from error
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DatasetError(f"{path} is no mask file: {error}") from error

    def check(self, dicts: list[dict]) -> str:
        """A line on what is there. Images that could not be read when the masks were made need none.

        Raises:
            DatasetError: no manifest, other images without masks, two images with one stem.
        """
        manifest = self.manifest()
        if manifest is None:
            raise DatasetError(f"DATASETS.MASKS {self.folder} holds no {_MANIFEST}; {_HINT}")
        check_stems([d["file_name"] for d in dicts])
        folder = self.folder / "masks"
        present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        without = [d["file_name"] for d in dicts if self.path(d["file_name"]).name not in present]
        unreadable = self._unreadable() if without else set()
        missing = [f for f in without if Path(f).stem not in unreadable]
        if missing:
            raise DatasetError(
                f"DATASETS.MASKS {self.folder}: {len(missing)} of {len(dicts)} images have no masks, first: {missing[0]}; {_HINT}"
            )
        left_out = f"; {len(without)} that cannot be read are left out: {first_few(without)}" if without else ""
        count, generator = len(dicts) - len(without), manifest.get("generator", "unknown")
        return f"{self.folder}: class-agnostic masks of {count} images, made by {generator}{left_out}"

    def write_failures(self, index: int, count: int, tried: Sequence[str], failed: list[dict]) -> Path:
        """Replaces what the list of shard `index` of `count` says about the files that were `tried`."""
        path = self.folder / f"failed_{index}_of_{count}.jsonl"
        stems = {Path(file).stem for file in tried}
        old = _lines(path) if path.is_file() else []
        entries = [e for e in old if Path(e["file"]).stem not in stems] + failed
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        if entries:
            write_atomically(path, lambda temporary: temporary.write_text(text))
        else:
            path.unlink(missing_ok=True)
        return path

    def _unreadable(self) -> set[str]:
        """Stems of the images in the lists of failures."""
        return {Path(e["file"]).stem for path in self.folder.glob("failed_*.jsonl") for e in _lines(path)}


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_stems(files: list[str]) -> None:
    """Raises `DatasetError` when two files share a stem, since masks are found by it."""
    seen: dict[str, str] = {}
    double = [f for f in files if seen.setdefault(Path(f).stem, f) != f]
    if double:
        raise DatasetError(
            f"{len(double)} images share their file stem with another, so masks cannot be told apart: {first_few(double)}"
        )


def encode(mask: np.ndarray) -> dict:
    """(H, W) bool to compressed RLE that JSON can hold."""
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}
