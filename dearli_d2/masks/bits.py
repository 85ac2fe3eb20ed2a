"""Checks compressed run lengths (RLE) of many masks at once, and decodes them into one bit for each mask and pixel."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as rle

_CHARACTERS = bytes(range(48, 48 + 64))  # of 6 bits each
_GROUP = 32  # masks that are decoded together, one for each bit of a uint32


def run_lengths(texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of the runs of N compressed RLEs.

    The format is that of pycocotools' `rleFrString`. A number is a run of characters of 6 bits. Five of them are part of its signed
    value, the lowest part first. The sixth says that another character follows. From the fourth number on, a number is stored as its
    difference from the number two before it.

    Returns:
        (R,) int64 lengths, one mask after another, and (N,) int64 index of the first length of each mask. A damaged mask, in which a
        length is negative or cut off, has the single length -1.
    """
    if not texts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    content = [text.encode() if isinstance(text, str) else text for text in texts]
    damaged = np.array([not t or bool(t.translate(None, _CHARACTERS)) or t[-1] >= 48 + 32 for t in content])
    content = [b"0" if bad else t for t, bad in zip(content, damaged.tolist(), strict=True)]
    values = np.frombuffer(b"".join(content), np.uint8).astype(np.int64) - 48
    ends = (values & 0x20) == 0
    last = ends.nonzero()[0]  # character of each number
    first = np.concatenate([[0], last[:-1] + 1])
    shift = 5 * (np.arange(len(values)) - np.repeat(first, last - first + 1))
    too_long = shift > 30
    lengths = np.add.reduceat((values & 0x1F) << np.where(too_long, 0, shift), first)
    negative = (values[last] & 0x10) != 0
    lengths[negative] -= np.left_shift(1, np.minimum(shift[last][negative], 30) + 5)
    # for each mask the index of its first number, and for each number its place in the mask
    text_ends = np.cumsum([len(t) for t in content])
    stop = np.searchsorted(last, text_ends - 1) + 1
    begin = np.concatenate([[0], stop[:-1]])
    place = np.arange(len(lengths)) - np.repeat(begin, stop - begin)
    # numbers at odd and at even places: each is the difference from the one before it in its chain
    for chain in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        steps, starts = lengths[chain], place[chain] < 3
        sums = np.cumsum(steps)
        before = (sums - steps)[starts]
        lengths[chain] = sums - np.repeat(before, np.diff([*starts.nonzero()[0], len(steps)]))
    damaged |= np.minimum.reduceat(lengths, begin) < 0
    damaged |= np.logical_or.reduceat(too_long, np.concatenate([[0], text_ends[:-1]]))
    if not damaged.any():
        return lengths, begin
    parts = [
        np.array([-1]) if bad else part
        for part, bad in zip(np.split(lengths, begin[1:]), damaged.tolist(), strict=True)
    ]
    return np.concatenate(parts), np.cumsum([0, *map(len, parts[:-1])])


def mask_bits(codes: Sequence[dict], rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, int]:
    """Pixels of masks at chosen rows and columns. Masks without a pixel there are left out.

    Args:
        codes: valid compressed RLEs of one size. The masks may overlap.
        rows, columns: (h,) and (w,) indices into the masks, in any order.

    Returns:
        (ceil(N / 8), h, w) uint8, in which mask 8 p + k is bit k of plane p, and N, the number of masks that are left.
    """
    boxes = rle.toBbox(list(codes)).reshape(-1, 4) if codes else np.zeros((0, 4))
    left, top, right, bottom = boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    near = (left <= columns.max()) & (right > columns.min()) & (top <= rows.max()) & (bottom > rows.min())
    chosen = [code for code, shown in zip(codes, near.tolist(), strict=True) if shown]
    planes = _planes(chosen, rows, columns)
    seen = [
        bool(found >> bit & 1)
        for found, first in zip(
            np.bitwise_or.reduce(planes, (1, 2)).tolist(), range(0, len(chosen), _GROUP), strict=True
        )
        for bit in range(min(_GROUP, len(chosen) - first))
    ]
    if not all(seen):  # a mask may lie between two of the rows or columns
        chosen = [code for code, shown in zip(chosen, seen, strict=True) if shown]
        planes = _planes(chosen, rows, columns)
    count = len(chosen)
    parts = [part for plane in planes for part in cv2.split(plane.view(np.uint8).reshape(*plane.shape, 4))]
    bits = np.stack(parts[: -(-count // 8)]) if count else np.zeros((0, len(rows), len(columns)), np.uint8)
    return bits, count


def _planes(codes: Sequence[dict], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(ceil(N / 32), h, w) uint32: mask 32 p + k is bit k of plane p."""
    planes = np.empty((-(-len(codes) // _GROUP), len(rows), len(columns)), "<u4")
    if not codes:
        return planes
    height, width = codes[0]["size"]
    pixels = height * width
    lengths, begin = run_lengths([code["counts"] for code in codes])
    mask = np.repeat(np.arange(len(codes)), np.diff([*begin, len(lengths)]))
    # a mask changes at the end of each run; runs go down the columns, and the last one ends one place after the pixels
    ends = np.cumsum(lengths) - mask * pixels
    changes = np.zeros((len(planes), pixels + 1), "<u4")
    np.bitwise_xor.at(
        changes.reshape(-1),
        mask // _GROUP * (pixels + 1) + ends,
        np.left_shift(np.uint32(1), (mask % _GROUP).astype(np.uint32)),
    )
    for plane, change in zip(planes, changes, strict=True):
        values = np.bitwise_xor.accumulate(change[:-1]).reshape(width, height)
        plane[:] = cv2.transpose(values[columns].view(np.int32)).view("<u4")[rows]
    return planes
