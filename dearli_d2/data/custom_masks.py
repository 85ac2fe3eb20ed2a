"""Index masks of own data, converted to the COCO-panoptic format of all other data sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..errors import DatasetError, first_few
from ..files import remove_leftovers
from ..labels.geometry import connected_parts
from ..progress import progress
from .custom_classes import VOID, CustomClass, parse_classes
from .custom_split import cache_folder, digest, held_back_of, key_of, write_splits
from .foreign import layout_hint
from .images import files_below, find_images, image_sizes, relative_name
from .index_masks import check_values, read_index_mask, size_problem
from .panoptic_png import ids_to_rgb, segment_info
from .preparation import convert_all, save_png


def _pairs(custom: CfgNode, root: Path) -> dict[str, tuple[Path, Path]]:
    """Path below the image folder to (image, mask). Raises `DatasetError` where one has no other."""
    images, masks = root / custom.IMAGES, root / custom.MASKS
    if not masks.is_dir():
        raise DatasetError(
            f"no folder {masks} of index masks (DATASETS.CUSTOM.ROOT / DATASETS.CUSTOM.MASKS){layout_hint(root)}"
        )
    files = {relative_name(p, images): p for p in find_images([images])}
    by_key = {key_of(name): name for name in files}
    if len(by_key) != len(files):
        double = sorted(name for name in files if by_key[key_of(name)] != name)
        raise DatasetError(
            f"{images}: {len(double)} images share a name with another and differ in the suffix only: {first_few(double)}"
        )
    found = [p for p in files_below(masks) if p.suffix.lower() == ".png"]
    pngs = {key_of(relative_name(p, masks)): p for p in found}
    if len(pngs) != len(found):
        double = [relative_name(p, masks) for p in found if pngs[key_of(relative_name(p, masks))] != p]
        raise DatasetError(f"{masks}: {len(double)} masks share a name with another: {first_few(double)}")
    without_mask, without_image = sorted(set(by_key) - set(pngs)), sorted(set(pngs) - set(by_key))
    if without_mask:
        raise DatasetError(
            f"{len(without_mask)} of {len(files)} images in {images} have no mask of the same name in {masks}: "
            f"{first_few(without_mask)}; move images without masks to {root / custom.UNLABELED}"
            f"{layout_hint(root, masks, without_mask)}"
        )
    if without_image:
        others = [p for p in files_below(images) if key_of(relative_name(p, images)) in without_image]
        raise DatasetError(
            f"{len(without_image)} masks in {masks} have no image in {images}: {first_few(without_image)}"
            + (
                f"; {others[0]} is there, but files of this suffix are not read: convert it to JPEG or PNG"
                if others
                else ""
            )
        )
    return {by_key[key]: (files[by_key[key]], pngs[key]) for key in sorted(by_key)}


def from_masks(custom: CfgNode, root: Path) -> tuple[Path, Path]:
    """Converts the masks unless the cache has them; returns the folder of the JSON files and that of the panoptic PNG files.

    Raises:
        DatasetError: an image without a mask or the reverse, other sizes, values that are no class ids.
    """
    classes, pairs = parse_classes(custom.CLASSES, custom.IGNORE_VALUE), _pairs(custom, root)
    names = list(pairs)
    sizes = dict(zip(names, image_sizes([image for image, _ in pairs.values()]), strict=True))
    held_back = held_back_of(custom, root, names)
    masks = {name: mask for name, (_, mask) in pairs.items()}
    folder = cache_folder(
        list(custom.CLASSES), custom.MIN_THING_AREA, custom.IGNORE_VALUE, sorted(held_back),
        [[name, *sizes[name], digest(mask)] for name, mask in progress(masks.items(), "looking for changes", len(masks))],
    )  # fmt: skip
    panoptic = folder / "panoptic"
    if (folder / "val.json").is_file():
        return folder, panoptic
    for place in (folder, panoptic, folder / "semantic"):
        remove_leftovers(place)
    _check_sizes(pairs, sizes)
    check_values(masks, {c.id for c in classes}, custom.IGNORE_VALUE)
    convert = partial(_convert, folder, classes, custom.MIN_THING_AREA, {n: str(m) for n, m in masks.items()})
    records = convert_all(names, convert, folder / "journal.jsonl", 1, "index masks")
    content = {
        "images": [{"id": key_of(n), "file_name": n, "height": sizes[n][0], "width": sizes[n][1]} for n in names],
        "annotations": [
            {"image_id": key_of(n), "file_name": f"{key_of(n)}.png", "segments_info": r["segments_info"]}
            for n, r in zip(names, records, strict=True)
        ],
        "categories": [c.category for c in classes],
    }
    write_splits(folder, content, held_back)
    return folder, panoptic


def _check_sizes(pairs: dict[str, tuple[Path, Path]], sizes: dict[str, tuple[int, int]]) -> None:
    """Every mask has the size of its image as it is seen."""
    measured = progress(pairs.items(), "sizes of masks", len(pairs))
    problems = [p for name, (image, mask) in measured if (p := size_problem(mask, image, sizes[name]))]
    if problems:
        raise DatasetError(
            f"{len(problems)} of {len(pairs)} masks have another size than their image: {first_few(problems)}"
        )


def segments_of(
    values: np.ndarray, classes: Sequence[CustomClass], min_area: int
) -> tuple[np.ndarray, list[dict[str, Any]], np.ndarray]:
    """Makes panoptic labels of an index mask: a thing is a connected region.

    Args:
        values: (H, W) ids of classes; others mean void.
        classes: in their order.
        min_area: pixels below which a region of a thing stays void.

    Returns:
        (H, W) segment ids, their infos, and (H, W) uint8 indices of classes, 255 = void.
    """
    ids = np.zeros(values.shape, np.int64)
    segments: list[dict[str, Any]] = []
    semantic = np.full(values.shape, VOID, np.uint8)
    for index, cls in enumerate(classes):
        here = values == cls.id
        if not here.any():
            continue
        semantic[here] = index
        for mask in connected_parts(here, min_area) if cls.isthing else [here]:
            identifier = len(segments) + 1
            ids[mask] = identifier
            segments.append(segment_info(identifier, cls.id, mask))
    return ids, segments, semantic


def _convert(folder: Path, classes: list[CustomClass], min_area: int, masks: dict[str, str], name: str) -> dict:
    """Writes the panoptic and the semantic PNG of one image; returns its segments."""
    ids, segments, semantic = segments_of(read_index_mask(masks[name]), classes, min_area)
    save_png(folder / "panoptic" / f"{key_of(name)}.png", ids_to_rgb(ids))
    save_png(folder / "semantic" / f"{key_of(name)}.png", semantic)
    return {"segments_info": segments}
