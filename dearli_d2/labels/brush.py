"""Label Studio's run lengths of brush masks.

A bit stream: the number of values in 32 bits, the bits of a value less one in 5, four lengths less one in 4 bits each. Then runs:
a bit that says if one value is repeated or each is given, 2 bits that choose one of the lengths, the number of values less one in
as many bits, and the value or values. The values are RGBA pixels, of which the fourth channel is the mask.
"""

from __future__ import annotations

import numpy as np

_HEADER = 32 + 5 + 4 * 4
_LENGTHS = (3, 4, 8, 16)


def number_of_pixels(rle: bytes) -> int:
    """Number of pixels that run lengths stand for; -1 for a text that is none."""
    values = int.from_bytes(rle[:4], "big") if 8 * len(rle) > _HEADER else -1
    return values // 4 if values % 4 == 0 else -1


def decode(rle: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) bool; None for run lengths that are damaged, or of another size.

    Args:
        rle: the run lengths.
        size: (height, width).
    """
    total = 4 * size[0] * size[1]
    if number_of_pixels(rle) * 4 != total:
        return None
    place, end = 32, 8 * len(rle)

    def take(bits: int) -> int:
        nonlocal place
        first, last = place >> 3, (place + bits + 7) >> 3
        value = int.from_bytes(rle[first:last], "big") >> (8 * last - place - bits)
        place += bits
        return value & ((1 << bits) - 1)

    word = take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values: list[bool] = []
    runs: list[int] = []
    done = 0
    while done < total:
        if place + 3 > end:
            return None
        repeated = take(1)
        count = take(lengths[take(2)]) + 1
        done += count
        if done > total or place + word * (1 if repeated else count) > end:
            return None
        if repeated:
            values.append(take(word) > 0)
            runs.append(count)
        else:
            values += [take(word) > 0 for _ in range(count)]
            runs += [1] * count
    return np.repeat(values, runs)[3::4].reshape(size)


def encode(mask: np.ndarray) -> list[int]:
    """The run lengths of a (H, W) mask, as the bytes that Label Studio's JSON has."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat))
    parts = [f"{4 * len(flat):032b}", f"{7:05b}", *(f"{length - 1:04b}" for length in _LENGTHS)]
    for start, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True):
        value, left = "11111111" if flat[start] else "00000000", 4 * (end - start)
        while left:
            index = next((i for i, bits in enumerate(_LENGTHS) if left <= 1 << bits), len(_LENGTHS) - 1)
            count = min(left, 1 << _LENGTHS[index])
            parts.append(f"1{index:02b}{count - 1:0{_LENGTHS[index]}b}{value}")
            left -= count
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))
