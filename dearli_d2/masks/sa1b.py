"""Masks of SA-1B, which its archives bring along: a JSON file beside each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.images import image_size
from ..errors import DatasetError, first_few
from ..files import parse_json
from ..pipeline import Work
from .generate import fill_masks
from .storage import MaskFolder, parsed

_KEYS = ("segmentation", "area", "bbox", "predicted_iou", "stability_score")
Content = tuple[tuple[int, int], list[dict]]  # height and width, and the annotations


def import_masks(
    files: Sequence[str], folder: MaskFolder, shard: tuple[int, int] = (0, 1), replace: bool = False
) -> Counter[str]:
    """Stores the masks of SA-1B's own files in a folder for the decoder warm-up.

    Args:
        files: images `sa_N.jpg` with `sa_N.json` beside them.
        folder: stores them.
        shard, replace: see `fill_folder`.

    Returns:
        Counts "done", "present", "failed", "masks".

    Raises:
        ConfigError: see `fill_folder`.
        DatasetError: images without a JSON file; see also `fill_folder`.
    """
    without = [file for file in files if not Path(file).with_suffix(".json").is_file()]
    if without:
        raise DatasetError(
            f"{len(without)} of {len(files)} images have no JSON file with masks beside them: {first_few(without)}; SA-1B's archives "
            "hold both, unpack them into the same folder"
        )

    def write(file: str, content: Content, annotations: list[dict]) -> dict[str, int]:
        folder.write(file, content[0], annotations)
        return {"masks": len(annotations)}

    work = Work(_read, lambda contents: [found for _, found in contents], write)
    return fill_masks(files, work, {"generator": "sa1b"}, folder, shard=shard, replace=replace)


def _read(file: str) -> Content:
    """Raises `DatasetError` for a JSON file of another kind or of an image of another size."""
    path, size = Path(file).with_suffix(".json"), image_size(file)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is no file of SA-1B's masks: {error}") from error
    own, _, problem = parsed(text, size)
    if not own:
        raise DatasetError(f"{path} is no file of SA-1B's masks: {problem}")
    if problem:
        raise DatasetError(f"{path}: {problem}")
    found = [a for a in parse_json(text)["annotations"] if not a.get("iscrowd", 0)]
    return size, [{key: a[key] for key in _KEYS if key in a} for a in found]
