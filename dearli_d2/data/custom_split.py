"""Parts of own data that are held back for validation, and the files that are made of own data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..errors import DatasetError
from ..files import cache_dir, same_writing, write_json
from .lists import read_list

_FORMAT = 2  # of the converted files


def key_of(name: str) -> str:
    """An image's path below its folder without the suffix; its mask has the same."""
    return same_writing(name[: len(name) - len(Path(name).suffix)])


def held_back_of(custom: CfgNode, root: Path, names: Sequence[str]) -> set[str]:
    """The images that are for validation.

    Args:
        names: paths below DATASETS.CUSTOM.IMAGES; below DATASETS.CUSTOM.ROOT where DATASETS.CUSTOM.LABELS is set.

    Raises:
        DatasetError: no such list or subfolder, or all images would be for validation.
    """
    if not custom.VAL:
        return _split(names, custom.VAL_FRACTION) if custom.VAL_FRACTION > 0 else set()
    if custom.VAL.endswith(".txt"):
        path = next((p for p in (root / custom.VAL, Path(custom.VAL)) if p.is_file()), None)
        if path is None:
            raise DatasetError(f"DATASETS.CUSTOM.VAL: no list file {root / custom.VAL}")
        chosen = {names[i] for i in read_list(path, names, "DATASETS.CUSTOM.VAL")}
    else:
        folders = [Path(custom.VAL), Path(custom.IMAGES, custom.VAL)] if custom.LABELS else [Path(custom.VAL)]
        below = ({name for name in names if Path(name).is_relative_to(folder)} for folder in folders)
        chosen = next(filter(None, below), set())
        if not chosen:
            place = root if custom.LABELS else root / custom.IMAGES
            raise DatasetError(
                f"DATASETS.CUSTOM.VAL: no labelled image below {place / custom.VAL}; it names a subfolder of {place} or a list "
                "file (.txt)"
            )
    if len(chosen) == len(names):
        raise DatasetError(f"DATASETS.CUSTOM.VAL {custom.VAL}: all {len(names)} labelled images are for validation")
    return chosen


def _split(names: Sequence[str], fraction: float) -> set[str]:
    """The validation part: the names with the smallest hashes, so that new images hardly move old ones."""
    if len(names) < 2:
        raise DatasetError(
            f"DATASETS.CUSTOM: {len(names)} labelled image; training and validation need at least 2, or set "
            "DATASETS.CUSTOM.VAL_FRACTION 0"
        )
    ordered = sorted(names, key=lambda name: hashlib.sha256(key_of(name).encode()).digest())
    return set(ordered[: min(max(1, round(fraction * len(names))), len(names) - 1)])


def cache_folder(*content: Any) -> Path:
    """The cache folder of files that `content` alone determines."""
    return cache_dir() / "custom" / hashlib.sha256(json.dumps([_FORMAT, *content]).encode()).hexdigest()[:16]


def digest(path: Path) -> str:
    """SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_splits(folder: Path, content: dict, held_back: set[str], test: Collection[str] = ()) -> None:
    """Writes train.json and val.json of a COCO-panoptic dict, and test.json where there are images for it."""
    splits = {
        "test": set(test),
        "train": {i["file_name"] for i in content["images"]} - held_back - set(test),
        "val": held_back,
    }
    for split, names in splits.items():  # val.json last: it says that the folder is whole
        if split == "test" and not names:
            continue
        images = [i for i in content["images"] if i["file_name"] in names]
        ids = {i["id"] for i in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        write_json(folder / f"{split}.json", {**content, "images": images, "annotations": annotations})
