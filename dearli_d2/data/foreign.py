"""Recognises what a folder of own data holds instead of masks, so that an error can name the key that reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..errors import DatasetError
from ..files import parse_json
from ..labels.recognition import recognize
from .images import SUFFIXES, files_below, is_hidden, relative_name
from .panoptic_json import format_of

_FILES = 2000  # looked at
_LARGEST = 2**26  # bytes
_LABEL_FILES = {".json", ".yaml", ".yml", ".xml", ".zip"}
_YOLO = re.compile(r"\d+( -?\d*\.?\d+(e-?\d+)?){4,}\s*", re.IGNORECASE)


def layout_hint(root: Path, masks: Path | None = None, without: Sequence[str] = ()) -> str:
    """Names what the folder of own data seems to hold instead of masks, as the end of an error message.

    Args:
        root: the folder of own data.
        masks: the folder of masks.
        without: paths, without suffix, of images that have no mask there.

    Returns:
        "; " and the hint, or "" where nothing is recognised.
    """
    if masks is not None and (hint := _other_names(masks, without)):
        return f"; {hint}"
    return _readable(root, masks) or _unreadable(root)


def _readable(root: Path, masks: Path | None) -> str:
    """A hint at the first file in `root` that DATASETS.CUSTOM.LABELS reads; without a folder of masks also at folders."""
    if not root.is_dir():
        return ""
    inside = [p for p in sorted(root.iterdir()) if not is_hidden(p.name)]
    files = [p for p in inside if p.is_file() and p.suffix.lower() in _LABEL_FILES and p.stat().st_size <= _LARGEST]
    folders = [p for p in inside if p.is_dir()] if masks is None else []
    for path in (*files, *folders):
        try:
            found = list(recognize(path))
        except DatasetError:  # a damaged archive
            continue
        if found:
            key = f"DATASETS.CUSTOM.LABELS {relative_name(path, root)}"
            also = f" and DATASETS.CUSTOM.FORMAT {' or '.join(found)}" if len(found) > 1 else ""
            return f"; {path} is of the format {found[0]}: set {key}{also}"
    return ""


def _unreadable(root: Path) -> str:
    for file in islice(files_below(root), _FILES):
        if file.suffix == ".json" and file.stat().st_size <= _LARGEST and (kind := _json_kind(file)):
            return f"; {file} is {kind}; `dearli data formats` lists what is read: export or convert it to one of these"
        if file.suffix == ".txt" and _is_yolo(file):
            return f"; {file} is a YOLO label file: add a data.yaml with the names of classes, and set DATASETS.CUSTOM.LABELS data.yaml"
    return ""


def _other_names(masks: Path, without: Sequence[str]) -> str:
    files = [relative_name(p, masks) for p in files_below(masks)]
    for key in without[:20]:
        same = [f for f in files if f.rpartition(".")[0] == key and not f.lower().endswith(".png")]
        if same and Path(same[0]).suffix.lower() in SUFFIXES:
            return f"{masks / same[0]} is there, but masks must be PNG files" + (
                ": JPEG compression changes values" if same[0].lower().endswith((".jpg", ".jpeg", ".webp")) else ""
            )
        longer = [f for f in files if f.startswith(key) and f.lower().endswith(".png")]
        last = [f for f in files if Path(f).stem == Path(key).name and f.lower().endswith(".png")]
        if longer:
            return f"{masks / longer[0]} seems to be the mask of {key}: give masks the names of their images, or {_labels(masks)}"
        if last:
            return f"{masks / last[0]} seems to be the mask of {key}: masks must lie in the same subfolders as their images, or {_labels(masks)}"
    return ""


def _labels(masks: Path) -> str:
    return f"set DATASETS.CUSTOM.LABELS {masks.name}, which reads such names"


def _json_kind(path: Path) -> str:
    try:
        return format_of(parse_json(path.read_text(encoding="utf-8-sig")))
    except (ValueError, OSError):
        return ""


def _is_yolo(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return bool(_YOLO.fullmatch(file.readline()))
    except (ValueError, OSError):
        return False
