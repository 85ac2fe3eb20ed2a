"""Predictions and ground truth as pictures: segments over the image, with a legend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data.images import read_image
from .data.panoptic_png import read_panoptic, segment_ids
from .data.sizes import resize_labels
from .data.taxonomy import Taxonomy, spread_colors
from .files import write_atomically

if TYPE_CHECKING:
    import torch

    from .structures import Targets

_ALPHA = 0.6
_SMALLEST_SIDE = 256  # of an image for the eye: smaller ones are enlarged, as far as _LARGEST_SIDE allows
_LARGEST_SIDE = 1024
_ROW = 18  # pixels of a line of text
_GAP = 4  # between panels


def overlay(image: np.ndarray, panoptic: np.ndarray, segments: list[dict[str, Any]], taxonomy: Taxonomy) -> np.ndarray:
    """Segments over the image; instances of a thing class in shades of its colour, white borders.

    Args:
        image: (H, W, 3) uint8 RGB.
        panoptic: (H, W) segment ids.
        segments: dicts with "id", "category_id", and perhaps "shade", which tells instances of a class apart; without it their
            order does.
        taxonomy: has the colours.

    Returns:
        (H, W, 3) uint8.
    """
    # ids from a label file may be large: they are counted through
    values, index = (None, panoptic) if panoptic.max(initial=0) < 2**16 else np.unique(panoptic, return_inverse=True)
    # RGB and opacity
    colors = np.zeros((int(panoptic.max(initial=0)) + 1 if values is None else len(values), 4), np.uint8)
    shades: dict[int, int] = {}
    for segment in segments:
        category = segment["category_id"]
        shades[category] = shades.get(category, -1) + 1
        shade = 1 - 0.12 * (segment.get("shade", shades[category]) % 4) if category in taxonomy.thing_ids else 1.0
        place = segment["id"] if values is None else int(np.searchsorted(values, segment["id"]))
        if place < len(colors) and (values is None or values[place] == segment["id"]):
            colors[place] = *np.round(shade * np.array(taxonomy.colors[category])), round(255 * _ALPHA)
    index = index.reshape(panoptic.shape)
    drawn = colors.view(np.uint32)[:, 0].take(index)  # a colour as one number, which is many times faster
    layer = Image.fromarray(drawn.view(np.uint8).reshape(*index.shape, 4), "RGBA")
    blended = Image.fromarray(np.ascontiguousarray(image))
    blended.paste(layer.convert("RGB"), mask=layer)
    border = np.zeros(panoptic.shape, bool)
    border[1:] |= index[1:] != index[:-1]
    border[:, 1:] |= index[:, 1:] != index[:, :-1]
    result = np.array(blended)
    result.reshape(-1, 3)[border.ravel().nonzero()[0]] = 255
    return result


def shown_size(height: int, width: int, enlarge_only: bool = False) -> tuple[int, int]:
    """The size at which an image is shown, in its proportions.

    A small image is enlarged by a whole factor until its short side has 256 pixels, unless its long side would exceed 1024. A
    larger image is made smaller, unless `enlarge_only`.
    """
    factor = min(-(-_SMALLEST_SIDE // min(height, width)), _LARGEST_SIDE // max(height, width))
    scale = factor if factor >= 1 else 1 if enlarge_only else _LARGEST_SIDE / max(height, width)
    return max(1, round(scale * height)), max(1, round(scale * width))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 at (height, width): smoothed where it gets smaller, pixel for pixel where it gets larger."""
    if image.shape[:2] == size:
        return image
    way = Image.Resampling.BOX if size[0] < image.shape[0] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], way))


def overlay_targets(image: np.ndarray, targets: Targets, taxonomy: Taxonomy) -> np.ndarray:
    """Targets over their image, with the pixels that have no loss in black. Where masks overlap the later one shows.

    Args:
        image: (H, W, 3) uint8, perhaps of another size than the targets.
        targets: of the image.
        taxonomy: has the colours.
    """
    ids, segments = targets.panoptic()
    picture = overlay(image, resize_labels(ids, image.shape[:2]), segments, taxonomy)
    if targets.valid is not None:
        picture[~resize_labels(targets.valid.cpu().numpy(), image.shape[:2])] = 0
    return picture


def sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], titles: Sequence[str]) -> np.ndarray:
    """Panels in rows below a text each, as columns with titles; all keep their proportions.

    Args:
        rows: text and (H, W, 3) uint8 panels, as many as `titles`, or fewer.

    Returns:
        (H, W, 3) uint8.
    """
    font = ImageFont.load_default()
    widths = [
        max([int(font.getlength(title)) + 8, *(panels[i].shape[1] for _, panels in rows if i < len(panels))])
        for i, title in enumerate(titles)
    ]
    lefts = np.cumsum([0, *(w + _GAP for w in widths)])
    texts = max(int(font.getlength(text)) + 8 for text, _ in rows)
    heights = [_ROW + max(panel.shape[0] for panel in panels) for _, panels in rows]
    canvas = Image.new("RGB", (max(int(lefts[-1]), texts), _ROW + sum(heights)), "white")
    draw = ImageDraw.Draw(canvas)
    for left, title in zip(lefts, titles, strict=False):
        draw.text((int(left) + 3, 2), title, fill="black", font=font)
    top = _ROW
    for (text, panels), height in zip(rows, heights, strict=True):
        draw.text((3, top + 2), text, fill="black", font=font)
        for left, panel in zip(lefts, panels, strict=False):
            canvas.paste(Image.fromarray(panel), (int(left), top + _ROW))
        top += height
    return np.asarray(canvas)


def short_name(file_name: str) -> str:
    """The file's name and its folder's."""
    return "/".join(Path(file_name).parts[-2:])


def sample_sheet(samples: Sequence[dict[str, Any]], taxonomy: Taxonomy) -> Image.Image:
    """Training samples as the loss sees them, one a row below its file's name: image and targets.

    Where a teacher made the targets, its weak view and the segments that it saw there stand before them.
    """
    rows, shown, titles = [], set(), ["image", "targets"]
    for sample in samples:
        panels, notes = [], [short_name(sample["file_name"])] if "file_name" in sample else []
        size = shown_size(*sample["image"].shape[1:])
        if "weak" in sample:
            titles = [
                "weak view",
                "pseudo-labels of the weak view",
                "what the student sees",
                "its targets (black: no loss)",
            ]
            weak, found = resized(_channels_last(sample["weak"]), size), sample["pseudo_label"]
            panels += [weak, overlay_targets(weak, found, taxonomy)]
            notes += [f"{len(found)} segments in the weak view", f"{len(sample['targets'])} in the targets"]
        else:
            notes.append(f"{len(sample['targets'])} segments")
        image = resized(_channels_last(sample["image"]), size)
        panels += [image, overlay_targets(image, sample["targets"], taxonomy)]
        shown |= set(sample["targets"].labels.tolist())
        rows.append((", ".join(notes), panels))
    return with_legend(sheet(rows, titles), sorted(shown), taxonomy)


def _channels_last(image: torch.Tensor) -> np.ndarray:
    return image.cpu().numpy().transpose(1, 2, 0)


def with_legend(picture: np.ndarray, categories: list[int], taxonomy: Taxonomy) -> Image.Image:
    """The picture with a column of colour and name for each of the categories."""
    # as large as the picture, which is looked at as a whole, needs it
    row = max(_ROW, min(max(picture.shape[:2]) // 50, 3 * _ROW, picture.shape[0] // max(len(categories), 1)))
    font = ImageFont.load_default(row * 10 / _ROW)
    names = [taxonomy.main_names[c] for c in categories] or ["no segment"]
    box = row * 11 // _ROW
    width = max([int(font.getlength(name)) for name in names], default=0) + box + row
    height = max(picture.shape[0], row * len(names) + 8)
    canvas = Image.new("RGB", (picture.shape[1] + width, height), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for line, name in enumerate(names):
        x, y = picture.shape[1] + 8, 6 + line * row
        if categories:
            draw.rectangle((x, y, x + box, y + box), fill=taxonomy.colors[categories[line]])
        draw.text((x + box + 6, y), name, fill="black", font=font)
    return canvas


def annotation_sheet(dicts: Sequence[dict[str, Any]], taxonomy: Taxonomy, side: int = 320) -> Image.Image:
    """`labels_sheet` of data-set dicts with "pan_seg_file_name" and "segments_info"."""
    found = [(d["file_name"], segment_ids(read_panoptic(d["pan_seg_file_name"])), d["segments_info"]) for d in dicts]
    return labels_sheet(found, taxonomy, side)


def labels_sheet(
    labels: Iterable[tuple[str, np.ndarray, list[dict[str, Any]]]], taxonomy: Taxonomy, side: int = 320
) -> Image.Image:
    """Images beside their labels, one a row below the file's name.

    They keep their proportions, and their long side has `side` pixels.

    Args:
        labels: image file, (H, W) segment ids, and segments with "id" and "category_id".
        taxonomy: has names and colours.
        side: in pixels.
    """
    rows = []
    shown: set[int] = set()
    for file_name, ids, segments in labels:
        image = read_image(file_name)
        scale = side / max(image.shape[:2])
        height, width = (max(1, round(length * scale)) for length in image.shape[:2])
        small = resized(image, (height, width))
        truth = overlay(small, resize_labels(ids, (height, width)), segments, taxonomy)
        shown |= {s["category_id"] for s in segments}
        rows.append((short_name(file_name), [small, truth]))
    return with_legend(sheet(rows, ["image", "labels"]), sorted(shown), taxonomy)


def save_mask_picture(path: Path, image: np.ndarray, masks: np.ndarray) -> None:
    """Writes image | masks: class-agnostic (N, H, W) bool masks, large ones below, in colours that tell them apart."""
    order, size = np.argsort(-masks.sum((1, 2))), shown_size(image.shape[0], image.shape[1])
    image = resized(image, size)
    canvas = image.astype(np.float32) * (1 - _ALPHA)
    for number, colour in zip(order, spread_colors(len(masks)), strict=True):
        mask = resize_labels(masks[number], size)
        canvas[mask] = (1 - _ALPHA) * image[mask] + _ALPHA * np.array(colour, np.float32)
    row = (path.stem, [image, canvas.round().astype(np.uint8)])
    picture = Image.fromarray(sheet([row], ["image", f"{len(masks)} masks"]))
    write_atomically(path, lambda temporary: picture.save(temporary))


def prediction_picture(
    image: np.ndarray, panoptic: np.ndarray, segments: list[dict[str, Any]], taxonomy: Taxonomy
) -> Image.Image:
    """Segments over the image at its own size, a small one enlarged, with a legend."""
    size = shown_size(image.shape[0], image.shape[1], enlarge_only=True)
    drawn = overlay(resized(image, size), resize_labels(panoptic, size), segments, taxonomy)
    return with_legend(drawn, sorted({s["category_id"] for s in segments}), taxonomy)


def save_comparison(
    path: Path,
    file_name: str,
    image: np.ndarray,
    predictions: Mapping[str, tuple[np.ndarray, list[dict[str, Any]]]],
    taxonomy: Taxonomy,
    truth: dict[str, Any],
) -> None:
    """Writes image | predictions | ground truth, with titles and a legend of the classes shown.

    Args:
        predictions: (H, W) segment ids and their segments, by title.
        truth: data-set dict with "pan_seg_file_name" and "segments_info", in the classes of `taxonomy`.
    """
    size = shown_size(*image.shape[:2])
    image = resized(image, size)
    labels = segment_ids(read_panoptic(truth["pan_seg_file_name"])), truth["segments_info"]
    maps = {**predictions, "ground truth": labels}
    panels = [image, *(overlay(image, resize_labels(ids, size), segments, taxonomy) for ids, segments in maps.values())]
    shown = {s["category_id"] for _, segments in maps.values() for s in segments}
    titles = ["image", *(title if segments else f"{title}: no segment" for title, (_, segments) in maps.items())]
    canvas = with_legend(sheet([(short_name(file_name), panels)], titles), sorted(shown), taxonomy)
    write_atomically(path, lambda temporary: canvas.save(temporary))
