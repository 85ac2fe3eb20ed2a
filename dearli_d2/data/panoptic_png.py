"""Segment ids as COCO-panoptic stores them: a PNG per image, and an entry per segment."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import DatasetError
from .images import opened, upright

PANOPTIC_PNG = "a panoptic PNG has 8 bits in each of three channels: segment id = R + 256 G + 65536 B"


def read_panoptic(path: str) -> np.ndarray:
    """(H, W, 3) uint8: segment id = R + 256 G + 65536 B. Raises `DatasetError`."""
    with opened(path, "a label") as image:
        if image.mode[0] in "IF":
            raise DatasetError(f"{path} has the mode {image.mode}; {PANOPTIC_PNG}")
        return np.asarray(upright(image).convert("RGB"))


def segment_ids(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (H, W) int64 segment ids."""
    padded = np.frombuffer(Image.fromarray(rgb).tobytes("raw", "RGBX"), "<i4")  # the fourth byte is masked off
    return (padded & 0xFFFFFF).reshape(rgb.shape[:2]).astype(np.int64)


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """(H, W) segment ids to (H, W, 3) uint8 of the COCO-panoptic format."""
    rgb = np.zeros((*ids.shape, 3), np.uint8)
    for channel in range(3 if ids.max(initial=0) >= 2**16 else 2 if ids.max(initial=0) >= 2**8 else 1):
        rgb[..., channel] = (ids >> 8 * channel).astype(np.uint8)
    return rgb


def segment_info(identifier: int, category_id: int, mask: np.ndarray) -> dict:
    """Entry of `segments_info` for a (H, W) bool mask that is not empty."""
    rows, columns = np.nonzero(mask)
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    return {"id": identifier, "category_id": category_id, "area": len(rows), "bbox": box, "iscrowd": 0}
