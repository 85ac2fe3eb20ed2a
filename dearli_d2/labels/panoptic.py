"""Makes COCO-panoptic files of labels, which may overlap and leave pixels without a label.

Each pixel belongs to one region: to stuff only where no object lies, among objects to the one of the highest level of drawing,
then to the smallest one, so that no object hides a smaller one, then to the one that the file names last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.preparation import segment_info
from .geometry import area, decode, union
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
        segments: `segments_info`.
        hidden: number of shapes of which no pixel is left.
    """

    ids: np.ndarray
    segments: list[dict[str, Any]]
    hidden: int


def draw(
    image: LabeledImage, classes: dict[str, TargetClass], background: TargetClass | None = None, min_area: int = 1
) -> Drawn:
    """Draws the shapes of an image.

    Args:
        classes: by the name that shapes have.
        background: class of the pixels that no shape covers; None leaves them without a label.
        min_area: smaller objects, in pixels, are left without a label.
    """
    regions = _regions(image.shapes(), classes)
    ids = np.zeros(image.size, np.int64)
    for number, (_, shape) in enumerate(regions, start=1):
        ids[decode(shape.rle)] = number
    segments, hidden = [], 0
    for number, (target, shape) in enumerate(regions, start=1):
        mask = ids == number
        pixels = int(mask.sum())
        if pixels == 0:
            hidden += 1
        elif target.isthing and pixels < min_area:
            ids[mask] = 0
        else:
            segments.append({**segment_info(number, target.id, mask), "iscrowd": int(shape.crowd)})
    if background is not None:
        rest = ids == 0
        if rest.any():
            number = len(regions) + 1
            ids[rest] = number
            segments.append(segment_info(number, background.id, rest))
    return Drawn(ids, segments, hidden)


def _regions(shapes: Sequence[Shape], classes: dict[str, TargetClass]) -> list[tuple[TargetClass, Shape]]:
    """Shapes in the order of drawing; those of a stuff class are one."""
    stuff: dict[int, list[Shape]] = {}
    things: list[Shape] = []
    for shape in shapes:
        target = classes[shape.name]
        if target.isthing:
            things.append(shape)
        else:
            stuff.setdefault(target.id, []).append(shape)
    merged = [Shape(group[0].name, union([s.rle for s in group]), level=group[-1].level) for group in stuff.values()]
    # `sorted` keeps the order of the file among equals, so the last one lies on top
    merged.sort(key=lambda s: (s.level, -area(s.rle)))
    things.sort(key=lambda s: (not s.crowd, s.level, -area(s.rle)))
    return [(classes[s.name], s) for s in (*merged, *things)]
