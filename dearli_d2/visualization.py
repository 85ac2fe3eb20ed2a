"""Predictions and ground truth as pictures: segments over the image, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .data.mappers import read_image, read_panoptic, resize_labels, segment_ids
from .data.taxonomy import Taxonomy, spread_colors
from .files import write_atomically
from .structures import Targets

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


def overlay_targets(image: torch.Tensor, targets: Targets, taxonomy: Taxonomy) -> np.ndarray:
    """Targets over a (3, H, W) uint8 image, pixels without a loss in black: (H, W, 3) uint8. Where masks overlap the later
    one shows."""
    picture = overlay(image.cpu().numpy().transpose(1, 2, 0), *targets.panoptic(), taxonomy)
    if targets.valid is not None:
        picture[~targets.valid.cpu().numpy()] = 0
    return picture


def sample_sheet(samples: Sequence[dict], taxonomy: Taxonomy) -> Image.Image:
    """Training samples as the loss sees them, one a row: image and targets; before them, where a teacher made the targets,
    its weak view and what it saw there."""
    rows, shown = [], set()
    for sample in samples:
        panels = []
        if "weak" in sample:
            weak = sample["weak"]
            panels += [weak.cpu().numpy().transpose(1, 2, 0), overlay_targets(weak, sample["pseudo_label"], taxonomy)]
        panels.append(sample["image"].cpu().numpy().transpose(1, 2, 0))
        panels.append(overlay_targets(sample["image"], sample["targets"], taxonomy))
        shown |= set(sample["targets"].labels.tolist())
        rows.append(np.concatenate(panels, axis=1))
    return with_legend(np.concatenate(rows), sorted(shown), taxonomy)


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


def annotation_sheet(dicts: Sequence[dict], taxonomy: Taxonomy, side: int = 320) -> Image.Image:
    """Images beside their annotated segments, one a row below the file's name, in their proportions, the long side `side` pixels.

    Args:
        dicts: data-set dicts with "pan_seg_file_name" and "segments_info".
    """
    rows, shown = [], set()
    for d in dicts:
        image, ids = read_image(d["file_name"]), segment_ids(read_panoptic(d["pan_seg_file_name"]))
        scale = side / max(image.shape[:2])
        height, width = (max(1, round(length * scale)) for length in image.shape[:2])
        small = np.asarray(Image.fromarray(image).resize((width, height)))
        truth = overlay(small, resize_labels(ids, (height, width)), d["segments_info"], taxonomy)
        shown |= {s["category_id"] for s in d["segments_info"]}
        row = Image.new("RGB", (2 * side, _ROW + height), "white")
        name = "/".join(Path(d["file_name"]).parts[-2:])
        ImageDraw.Draw(row).text((3, 2), name, fill="black", font=ImageFont.load_default())
        for left, panel in ((0, small), (side, truth)):
            row.paste(Image.fromarray(panel), (left, _ROW))
        rows.append(np.asarray(row))
    return with_legend(np.concatenate(rows), sorted(shown), taxonomy)


def save_mask_picture(path: Path, image: np.ndarray, masks: np.ndarray) -> None:
    """Writes image | masks: class-agnostic (N, H, W) bool masks, large ones below, in colours that tell them apart."""
    order = np.argsort(-masks.sum((1, 2)))
    canvas = image.astype(np.float32) * (1 - _ALPHA)
    for number, colour in zip(order, spread_colors(len(masks)), strict=True):
        canvas[masks[number]] = (1 - _ALPHA) * image[masks[number]] + _ALPHA * np.array(colour, np.float32)
    picture = np.concatenate([image, canvas.round().astype(np.uint8)], axis=1)
    write_atomically(path, lambda temporary: Image.fromarray(_enlarged(picture, image.shape[:2])).save(temporary))


def _enlarged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By the whole factor that brings an image of `size` to at least `_SMALLEST_SIDE`."""
    factor = max(1, -(-_SMALLEST_SIDE // min(size)))
    return picture.repeat(factor, 0).repeat(factor, 1)


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
    picture = _enlarged(np.concatenate(panels, axis=1), image.shape[:2])
    canvas = with_legend(picture, sorted(shown), taxonomy)
    write_atomically(path, lambda temporary: canvas.save(temporary))
