"""Recognises layouts and formats of other tools, so that an error can name them. None of them is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..files import parse_json
from .images import SUFFIXES, files_below, relative_name
from .panoptic_json import format_of

_FILES = 2000  # looked at
_LARGEST_JSON = 2**26  # bytes
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
    for file in islice(files_below(root), _FILES):
        kind = ""
        if file.suffix == ".json" and file.stat().st_size <= _LARGEST_JSON:
            kind = _json_kind(file)
        elif file.suffix == ".txt" and _is_yolo(file):
            kind = "a YOLO label file"
        if kind:
            return (
                f"; {file} is {kind}, which is not read: convert your labels to index masks or COCO-panoptic "
                "(docs/custom_data.md)"
            )
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
            return f"{masks / longer[0]} seems to be the mask of {key}: give masks the names of their images"
        if last:
            return f"{masks / last[0]} seems to be the mask of {key}: masks must lie in the same subfolders as their images"
    return ""


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
