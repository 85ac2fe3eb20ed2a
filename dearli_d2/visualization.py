"""Predictions and ground truth as pictures: segments over the image, with a legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data.mappers import read_panoptic, segment_ids
from .data.taxonomy import Taxonomy
from .files import write_atomically

_ALPHA = 0.6
_SMALLEST_SIDE = 256  # smaller images are enlarged for the eye
_ROW = 18  # pixels of a legend row


def overlay(image: np.ndarray, panoptic: np.ndarray, segments: list[dict], taxonomy: Taxonomy) -> np.ndarray:
    """Segments over the image; instances of a thing class in shades of its colour, white borders.

    Args:
        image: (H, W, 3) uint8 RGB. panoptic: (H, W) segment ids. segments: dicts with "id", "category_id".

    Returns:
        (H, W, 3) uint8.
    """
    blended, shades = image.astype(np.float32), {}
    for segment in segments:
        category = segment["category_id"]
        shades[category] = shades.get(category, -1) + 1
        shade = 1 - 0.12 * (shades[category] % 4) if category in taxonomy.thing_ids else 1.0
        mask = panoptic == segment["id"]
        blended[mask] = (1 - _ALPHA) * blended[mask] + _ALPHA * shade * np.array(taxonomy.colors[category], np.float32)
    border = np.zeros(panoptic.shape, bool)
    border[1:] |= panoptic[1:] != panoptic[:-1]
    border[:, 1:] |= panoptic[:, 1:] != panoptic[:, :-1]
    blended[border] = 255
    return blended.round().astype(np.uint8)


def with_legend(picture: np.ndarray, categories: list[int], taxonomy: Taxonomy) -> Image.Image:
    """The picture with a column of colour and name for each of the categories."""
    font = ImageFont.load_default()
    names = [taxonomy.main_names[c] for c in categories]
    width = max([int(font.getlength(name)) for name in names], default=0) + 30
    height = max(picture.shape[0], _ROW * len(names) + 8)
    canvas = Image.new("RGB", (picture.shape[1] + width, height), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (category, name) in enumerate(zip(categories, names, strict=True)):
        x, y = picture.shape[1] + 8, 6 + row * _ROW
        draw.rectangle((x, y, x + 11, y + 11), fill=taxonomy.colors[category])
        draw.text((x + 17, y), name, fill="black", font=font)
    return canvas


def save_prediction_picture(
    path: Path,
    image: np.ndarray,
    panoptic: np.ndarray,
    segments: list[dict],
    taxonomy: Taxonomy,
    truth: dict | None = None,
) -> None:
    """Writes image | prediction (| ground truth), with a legend of the classes shown.

    Args:
        truth: data-set dict with "pan_seg_file_name" and "segments_info", in the classes of `taxonomy`.
    """
    panels = [image, overlay(image, panoptic, segments, taxonomy)]
    shown = {s["category_id"] for s in segments}
    if truth is not None:
        ids = segment_ids(read_panoptic(truth["pan_seg_file_name"]))
        panels.append(overlay(image, ids, truth["segments_info"], taxonomy))
        shown |= {s["category_id"] for s in truth["segments_info"]}
    factor = max(1, -(-_SMALLEST_SIDE // min(image.shape[:2])))
    picture = np.concatenate([panel.repeat(factor, 0).repeat(factor, 1) for panel in panels], axis=1)
    canvas = with_legend(picture, sorted(shown), taxonomy)
    write_atomically(path, lambda temporary: canvas.save(temporary))
