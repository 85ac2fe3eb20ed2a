"""Makes COCO-panoptic files of labels, which may overlap and leave pixels without a label.

Each pixel belongs to one region: to stuff only where no object lies, among objects to the one of the highest level of drawing,
then to the smallest one, so that no object hides a smaller one, then to the one that the file names last.

Semantic labels do not tell objects apart: there each connected part of a class of things is an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.panoptic_png import segment_info
from .geometry import area, connected_parts, decode, encode, union
from .structures import LabeledImage, Shape


@dataclass(frozen=True)
class TargetClass:
    """A class of the training data.

    Attributes:
        id: in the panoptic file and in predictions.
        isthing: each shape is an object of its own; else all shapes of the class are one segment.
    """

    id: int
    isthing: bool


@dataclass(frozen=True)
class Drawn:
    """One image in the COCO-panoptic form.

    Attributes:
        ids: (H, W) int64 segment ids, 0 = no label.
        classes: (H, W) int64 ids of classes, -1 = none; objects that are too small for a segment have their class here.
        segments: `segments_info`.
        hidden: number of shapes of which no pixel is left.
    """

    ids: np.ndarray
    classes: np.ndarray
    segments: list[dict[str, Any]]
    hidden: int


@dataclass(frozen=True)
class _Region:
    """A part of the drawing: an object, all stuff of a class, or (`specks`) parts of a thing that are too small to be objects."""

    target: TargetClass
    shape: Shape
    specks: bool = False


def draw(
    image: LabeledImage, classes: dict[str, TargetClass], background: TargetClass | None = None, min_area: int = 1
) -> Drawn:
    """Draws the shapes of an image.

    Args:
        classes: by the name that shapes have.
        background: class of the pixels that no shape covers and that are not ignored; None leaves them without a label.
        min_area: smaller objects, in pixels, are no segments.
    """
    regions = _regions(image.shapes(), classes, min_area)
    ids = np.zeros(image.size, np.int64)
    for number, region in enumerate(regions, start=1):
        ids[decode(region.shape.rle)] = number
    semantic = np.array([-1, *(region.target.id for region in regions)])[ids]
    segments, hidden = [], 0
    for number, region in enumerate(regions, start=1):
        mask = ids == number
        pixels = int(mask.sum())
        if pixels == 0:
            hidden += 1
        elif region.specks or (region.target.isthing and pixels < min_area):
            ids[mask] = 0
        else:
            segments.append({**segment_info(number, region.target.id, mask), "iscrowd": int(region.shape.crowd)})
    if background is not None:
        rest = semantic < 0
        if image.ignored is not None:
            rest &= ~decode(image.ignored())
        if rest.any():
            number = len(regions) + 1
            ids[rest], semantic[rest] = number, background.id
            segments.append(segment_info(number, background.id, rest))
    return Drawn(ids, semantic, segments, hidden)


def _regions(shapes: Sequence[Shape], classes: dict[str, TargetClass], min_area: int) -> list[_Region]:
    """Regions in the order of drawing."""
    stuff: dict[int, list[Shape]] = {}
    things: list[_Region] = []
    for shape in shapes:
        target = classes[shape.name]
        if not target.isthing:
            stuff.setdefault(target.id, []).append(shape)
        elif shape.semantic:
            things += _objects(shape, target, min_area)
        else:
            things.append(_Region(target, shape))
    merged = [
        _Region(classes[group[0].name], Shape(group[0].name, union([s.rle for s in group]), level=group[-1].level))
        for group in stuff.values()
    ]
    # `sorted` keeps the order of the file among equals, so the last one lies on top
    merged.sort(key=lambda r: (r.shape.level, -area(r.shape.rle)))
    things.sort(key=lambda r: (not r.shape.crowd, r.shape.level, -area(r.shape.rle)))
    return [*merged, *things]


def _objects(shape: Shape, target: TargetClass, min_area: int) -> list[_Region]:
    """The connected parts of a region, and what is left of it."""
    rest = decode(shape.rle)
    found = []
    for part in connected_parts(rest, min_area):
        rest &= ~part
        found.append(_Region(target, replace(shape, rle=encode(part), semantic=False)))
    if rest.any():
        found.append(_Region(target, replace(shape, rle=encode(rest)), specks=True))
    return found
