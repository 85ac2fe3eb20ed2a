"""Images of any size by tiles that overlap. Segments are joined across the seams.

Memory holds the maps of the image and one batch of tiles, whatever the number of classes and queries is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data.sizes import window_starts
from .data.taxonomy import Taxonomy
from .errors import ConfigError
from .prediction_files import Maps

_SAME = 0.5  # IoU in the overlap, or part of the shorter contact at the seam, from which on two segments are one


@dataclass(frozen=True)
class Tiles:
    """Cuts images.

    Args:
        size: side of a tile in pixels.
        overlap: pixels that neighbours share; those at the border of the image may share more.

    Raises:
        ConfigError: an overlap that is negative, or more than half of a tile.
    """

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.size // 2:
            raise ConfigError(f"--overlap {self.overlap}: it must be 0 to {self.size // 2}, half of --tile")

    def hold(self, height: int, width: int) -> bool:
        """True if one tile holds an image of this size."""
        return max(height, width) <= self.size

    def places(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns of each tile, all of one size, from the top left on."""
        step = self.size - self.overlap
        return [
            (slice(top, min(top + self.size, height)), slice(left, min(left + self.size, width)))
            for top in window_starts(height, self.size, step)
            for left in window_starts(width, self.size, step)
        ]


def predict_tiles(
    find: Callable[[Sequence[np.ndarray]], Sequence[Maps]],
    image: np.ndarray,
    tiles: Tiles,
    taxonomy: Taxonomy,
    batch: int = 1,
) -> Maps:
    """The prediction of a large image.

    In an overlap each pixel has the segment of the tile whose border is farther away. Its class is that with the largest
    probability times distance to the border, summed over the tiles that agree.

    Args:
        find: the predictions of several images of one size.
        image: (H, W, 3) uint8 RGB.
        tiles: cuts the image.
        taxonomy: of the predictions.
        batch: number of tiles that `find` gets at a time.

    Returns:
        As of one image. Stuff of one class is one segment. Things are joined that cover each other in the overlap, or, without
        one, that touch along most of the seam.
    """
    canvas = _Canvas(image.shape[:2], taxonomy)
    places = tiles.places(*image.shape[:2])
    for start in range(0, len(places), batch):
        chosen = places[start : start + batch]
        for place, maps in zip(chosen, find([np.ascontiguousarray(image[p]) for p in chosen]), strict=True):
            canvas.add(place, maps)
    return canvas.finish()


class _Canvas:
    """The maps of an image while tiles are added from the top left on."""

    def __init__(self, size: tuple[int, int], taxonomy: Taxonomy) -> None:
        self.things = taxonomy.thing_ids
        self.panoptic = np.zeros(size, np.int32)  # numbers of `parts`, 0 = none
        self.distance = np.zeros(size, np.uint16)  # of the owner's border, 0 = no tile yet
        self.parts: list[dict[str, Any]] = [{}]
        self.parent = [0]
        self.stuff: dict[int, int] = {}
        self.semantic: np.ndarray | None = None
        self.vote: np.ndarray | None = None
        self.weight: np.ndarray | None = None

    def add(self, place: tuple[slice, slice], maps: Maps) -> None:
        """Puts a tile to its place."""
        own = self._numbered(maps)
        distance = _distance(*maps.panoptic.shape)
        before, known = self.panoptic[place], self.distance[place] > 0
        self._join_overlap(before, own, known)
        nearer = distance > self.distance[place]
        top, left = place[0].start, place[1].start
        self.panoptic[place] = np.where(nearer, own, before)
        self.distance[place] = np.maximum(distance, self.distance[place])
        if top:
            self._join_contact(self.panoptic[top - 1, place[1]], self.panoptic[top, place[1]], own[0], known[0])
        if left:
            columns = self.panoptic[place[0], left - 1], self.panoptic[place[0], left]
            self._join_contact(*columns, own[:, 0], known[:, 0])
        if maps.semantic is not None and maps.confidence is not None:
            self._vote(place, maps.semantic, maps.confidence, distance)

    def _numbered(self, maps: Maps) -> np.ndarray:
        """The segment ids of a tile as numbers of `parts`."""
        table = np.zeros(max(int(maps.panoptic.max(initial=0)), *(s["id"] for s in maps.segments), 0) + 1, np.int32)
        for segment in maps.segments:
            self.parts.append(segment)
            number = len(self.parts) - 1
            self.parent.append(number)
            table[segment["id"]] = number
            if segment["category_id"] not in self.things:
                self._unite(self.stuff.setdefault(segment["category_id"], number), number)
        return table.take(maps.panoptic)

    def _join_overlap(self, before: np.ndarray, own: np.ndarray, known: np.ndarray) -> None:
        """Joins things that cover each other where tiles overlap."""
        if known.any():
            # parts that are joined already count as one
            values, index = np.unique(before[known], return_inverse=True)
            joined = np.array([self._root(value) for value in values.tolist()]).take(index)
            for (a, b), both, first, second in _pairs(joined, own[known]):
                if both >= _SAME * (first + second - both):
                    self._unite_if_alike(a, b)

    def _join_contact(self, before: np.ndarray, after: np.ndarray, own: np.ndarray, known: np.ndarray) -> None:
        """Joins things that touch along a seam where tiles do not overlap."""
        seam = ~known & (after == own)
        for (a, b), both, first, second in _pairs(before[seam], after[seam]):
            if both >= _SAME * min(first, second):
                self._unite_if_alike(a, b)

    def _vote(self, place: tuple[slice, slice], semantic: np.ndarray, sure: np.ndarray, distance: np.ndarray) -> None:
        if self.semantic is None or self.vote is None or self.weight is None:
            self.semantic = np.zeros(self.panoptic.shape, semantic.dtype)
            self.vote, self.weight = (
                np.zeros(self.panoptic.shape, np.float32),
                np.zeros(self.panoptic.shape, np.float32),
            )
        vote, label = self.vote[place], self.semantic[place]
        own = sure * distance.astype(np.float32)
        agree = label == semantic
        wins = ~agree & (own > vote)
        self.vote[place] = np.where(agree, vote + own, np.where(wins, own, vote))
        self.semantic[place] = np.where(wins, semantic, label)
        self.weight[place] += distance

    def finish(self) -> Maps:
        """The maps of the whole image. Segments are numbered in the order of their first parts."""
        areas = np.zeros(len(self.parts), np.int64)
        for row in self.panoptic:
            areas += np.bincount(row, minlength=len(areas))
        numbers: dict[int, int] = {}
        table = np.zeros(len(self.parts), np.int32)
        total: dict[int, float] = {}
        for part in range(1, len(self.parts)):
            if areas[part]:
                root = self._root(part)
                table[part] = numbers.setdefault(root, len(numbers) + 1)
                total[root] = total.get(root, 0.0) + float(areas[part]) * self.parts[part]["score"]
        area_of = np.bincount(table, weights=areas, minlength=len(numbers) + 1)
        segments = [
            {**self.parts[root], "id": number, "score": total[root] / float(area_of[number])}
            for root, number in numbers.items()
        ]
        for top in range(0, len(self.panoptic), 256):
            self.panoptic[top : top + 256] = table.take(self.panoptic[top : top + 256])
        if self.vote is None or self.weight is None:
            return Maps(self.panoptic, segments)
        self.vote /= self.weight
        return Maps(self.panoptic, segments, self.semantic, self.vote)

    def _unite_if_alike(self, a: int, b: int) -> None:
        if a and b and self.parts[a]["category_id"] == self.parts[b]["category_id"]:
            self._unite(a, b)

    def _unite(self, a: int, b: int) -> None:
        first, second = sorted((self._root(a), self._root(b)))
        self.parent[second] = first

    def _root(self, part: int) -> int:
        while self.parent[part] != part:
            self.parent[part] = self.parent[self.parent[part]]
            part = self.parent[part]
        return part


def _distance(height: int, width: int) -> np.ndarray:
    """(H, W) uint16: pixels to the border of a tile, from 1 on."""
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 1 for n in (height, width))
    return np.minimum(rows[:, None], columns).astype(np.uint16)


def _pairs(a: np.ndarray, b: np.ndarray) -> list[tuple[tuple[int, int], int, int, int]]:
    """Each pair of numbers at one place with how often it occurs, and how often each of the two does."""
    if not len(a):
        return []
    base = int(b.max()) + 1
    pairs, both = np.unique(a.astype(np.int64) * base + b, return_counts=True)
    first, second = np.bincount(a), np.bincount(b)
    return [
        ((int(p // base), int(p % base)), int(n), int(first[p // base]), int(second[p % base]))
        for p, n in zip(pairs, both, strict=True)
    ]
