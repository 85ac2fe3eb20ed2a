"""A class list to start with, for masks whose values have no names yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from ..data.index_masks import count_values, read_index_mask
from ..errors import DatasetError, first_few

_LOOKED_AT = 500  # masks
_MANY = 100  # values; a photograph or a smoothed mask has more
_FOREGROUND = 255


class NoClassList(DatasetError):
    """Masks come without the names of their classes.

    Attributes:
        lines: a class list of the values found; () where they look like no classes.
    """

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)


def no_class_list(
    problem: str,
    masks: Sequence[Path],
    ignore: int,
    read: Callable[[Path], np.ndarray] = read_index_mask,
    binary_key: str = "",
) -> NoClassList:
    """The error for masks without a class list: the values found, with their shares of pixels, and a list to paste.

    Args:
        problem: the start of the message.
        masks: all of them; some are read, evenly chosen.
        ignore: DATASETS.CUSTOM.IGNORE_VALUE.
        read: reads a mask.
        binary_key: a further key that is needed where the masks are binary.

    Raises:
        DatasetError: masks that cannot be read.
    """
    chosen = [masks[i] for i in sorted(set(np.linspace(0, len(masks) - 1, min(_LOOKED_AT, len(masks))).astype(int)))]
    total: Counter[int] = Counter()
    for _, counts in count_values({str(mask): mask for mask in chosen}, read):
        total.update(counts)
    if not total:
        return NoClassList(problem)
    if len(total) > _MANY:
        return NoClassList(
            f"{problem}. The masks hold {len(total)} values, which are too many for classes: {first_few(sorted(total), 8)}. So many come "
            "from JPEG compression, or from resizing with interpolation; a colour mask that was made grey has them too"
        )
    pixels = sum(total.values())
    shares = [f"{value} ({100 * count / pixels:.3g} %)" for value, count in sorted(total.items())]
    where = "masks" if len(chosen) == len(masks) else f"{len(chosen)} of {len(masks)} masks, evenly chosen,"
    lines = _lines(total, ignore)
    return NoClassList(
        f"{problem}. The {where} hold these values, with their shares of pixels: {', '.join(shares)}. Put names in place of these, and "
        f'"thing" for what is counted: {as_key(lines)}{f" {binary_key}" if binary_key and is_binary(total) else ""}',
        lines,
    )


def as_key(lines: Sequence[str]) -> str:
    """Class lines as the command line takes them."""
    return f'DATASETS.CUSTOM.CLASSES "{list(lines)}"'


def is_binary(values: Collection[int]) -> bool:
    """True if masks hold 0 and 255 only."""
    return set(values) <= {0, _FOREGROUND} and _FOREGROUND in values


def _lines(total: Counter[int], ignore: int) -> list[str]:
    """A line for each value. Where 0 covers most of the pixels, objects lie on a background; else regions cover the image."""
    if is_binary(total):
        return ["0 stuff background", "1 thing object"]
    kind = "thing" if 2 * total[0] > sum(total.values()) else "stuff"
    return [
        f"{value} stuff background" if value == 0 else f"{value} {kind} class {value}"
        for value in sorted(total)
        if value != ignore
    ]
