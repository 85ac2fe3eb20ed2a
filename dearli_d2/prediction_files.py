"""The files of one prediction: their names, their bytes, and the entry of `predictions.json`. No model and no torch here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .data.panoptic_png import ids_to_rgb
from .data.taxonomy import Taxonomy
from .errors import ConfigError, first_few
from .files import write_atomically
from .visualization import prediction_picture

ENDINGS = {
    "panoptic": "_panoptic.png",
    "semantic": "_semantic.png",
    "overlay": "_overlay.png",
    "overlay.jpg": "_overlay.jpg",
    "confidence": "_confidence.png",
}
KINDS = ("panoptic", "semantic", "overlay", "confidence")  # the files of a prediction as PNG
DEFAULT_KINDS = KINDS[:3]
_PER_PIXEL = ("semantic", "confidence")  # kinds that need the class scores of each pixel
_QUALITY = 90  # of JPEG
_PIXELS = 2**22  # that are counted at a time


@dataclass(frozen=True)
class Maps:
    """The prediction of one image, as far as the files need it.

    Args:
        panoptic: (H, W) int32 segment ids, 0 = none.
        segments: dicts with "id", "category_id", "isthing", "score".
        semantic: (H, W) class indices; None where no file needs them.
        confidence: (H, W) float32 in 0..1, as `Prediction.confidence`; None where no file needs it.
    """

    panoptic: np.ndarray
    segments: list[dict[str, Any]]
    semantic: np.ndarray | None = None
    confidence: np.ndarray | None = None


def chosen_kinds(kinds: Sequence[str]) -> list[str]:
    """The kinds of files to write, "panoptic" among them, in the order of `ENDINGS`. Raises `ConfigError` for an unknown one."""
    unknown = [kind for kind in kinds if kind not in ENDINGS]
    if unknown:
        raise ConfigError(f"--files: there is no {', '.join(unknown)}; known are {', '.join(ENDINGS)}")
    return [kind for kind in ENDINGS if kind in ("panoptic", *kinds)]


def per_pixel(kinds: Sequence[str]) -> bool:
    """True if one of the files needs `Maps.semantic` or `Maps.confidence`."""
    return any(kind in _PER_PIXEL for kind in kinds)


def check_ids(taxonomy: Taxonomy) -> None:
    """Raises `ConfigError` where a class id does not fit into a PNG."""
    wrong = [i for i in taxonomy.dataset_ids if not 0 <= i < 2**16]
    if wrong:
        raise ConfigError(f"{len(wrong)} class ids do not fit into a PNG of 16 bits, 0 to 65535: {first_few(wrong)}")


def encoded(kind: str, image: np.ndarray, maps: Maps, taxonomy: Taxonomy) -> bytes:
    """The content of the file of a kind of `ENDINGS`.

    Args:
        kind: of the file.
        image: (H, W, 3) uint8 RGB.
        maps: of the image.
        taxonomy: of the prediction.
    """
    return encode(picture(kind, image, maps, taxonomy), ".jpg" if kind.endswith(".jpg") else ".png")


def encode(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    """(H, W) or (H, W, 3) RGB pixels as the content of a picture file.

    OpenCV's own settings of PNG (run lengths, one filter) take a tenth of the time of zlib's usual ones, for 1.3 times the
    bytes. OpenCV 5 filters by the row above, which makes the files smaller. Pillow does the work where there is no OpenCV.
    """
    try:
        import cv2
    except ImportError:
        stream = io.BytesIO()
        options = {"quality": _QUALITY} if suffix == ".jpg" else {"compress_level": 1}
        Image.fromarray(pixels).save(stream, "JPEG" if suffix == ".jpg" else "PNG", **options)
        return stream.getvalue()
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    filtered = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []
    good, content = cv2.imencode(suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if suffix == ".jpg" else filtered)
    assert good
    return content.tobytes()


def picture(kind: str, image: np.ndarray, maps: Maps, taxonomy: Taxonomy) -> np.ndarray:
    """The pixels of a file, (H, W, 3) uint8 RGB or (H, W) uint8 or uint16; see `encoded`."""
    if kind == "panoptic":
        return ids_to_rgb(maps.panoptic)
    if kind == "semantic":
        assert maps.semantic is not None
        ids = np.array(taxonomy.dataset_ids)
        return ids.astype(np.uint8 if ids.max() < 256 else np.uint16).take(maps.semantic)
    if kind == "confidence":
        assert maps.confidence is not None
        return (255 * maps.confidence).round().astype(np.uint8)
    return np.asarray(prediction_picture(image, maps.panoptic, maps.segments, taxonomy))


def segments_info(maps: Maps, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Segments that have pixels, as COCO-panoptic has them, in the ids of the training data."""
    height, width = maps.panoptic.shape
    count = max(int(maps.panoptic.max(initial=0)), *(s["id"] for s in maps.segments), 0) + 1
    in_rows, in_columns = np.zeros((height, count), np.int64), np.zeros((width, count), np.int64)
    block = max(1, _PIXELS // width)
    for top in range(0, height, block):
        part = maps.panoptic[top : top + block]
        by_row = part + count * np.arange(len(part))[:, None]
        in_rows[top : top + block] = np.bincount(by_row.ravel(), minlength=count * len(part)).reshape(-1, count)
        by_column = part + count * np.arange(width)
        in_columns += np.bincount(by_column.ravel(), minlength=count * width).reshape(-1, count)
    infos = []
    for segment in maps.segments:
        y, x = in_rows[:, segment["id"]].nonzero()[0], in_columns[:, segment["id"]].nonzero()[0]
        if len(y):
            category = segment["category_id"]
            infos.append(
                {
                    "id": segment["id"],
                    "category_id": taxonomy.dataset_ids[category],
                    "area": int(in_rows[:, segment["id"]].sum()),
                    "bbox": [int(x[0]), int(y[0]), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1],
                    "iscrowd": 0,
                    "score": segment["score"],
                    "category_name": taxonomy.main_names[category],
                }
            )
    return infos


def write_files(
    out: Path,
    name: str,
    kinds: Sequence[str],
    image: np.ndarray,
    maps: Maps,
    taxonomy: Taxonomy,
    through: Path | None = None,
) -> dict[str, Any]:
    """Writes the files of one image; each is whole or absent.

    Args:
        out: the folder.
        name: of the image's outputs.
        kinds: of `ENDINGS`.
        image: (H, W, 3) uint8 RGB.
        maps: of the image.
        taxonomy: of the prediction.
        through: see `write_atomically`.

    Returns:
        "height", "width" and "segments_info" of the image.
    """
    for kind in kinds:
        content = encoded(kind, image, maps, taxonomy)
        write_atomically(out / f"{name}{ENDINGS[kind]}", partial(Path.write_bytes, data=content), through)
    height, width = image.shape[:2]
    return {"height": height, "width": width, "segments_info": segments_info(maps, taxonomy)}
