"""Progress bars of scans and conversions: none for what is done at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

_QUIET = 2.0  # seconds
Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "image") -> Iterator[Item]:
    """The items, with a bar on stderr once they have taken two seconds."""
    from tqdm import tqdm  # not at the top: an image is read without it

    return iter(tqdm(items, desc=description, total=total, unit=unit, delay=_QUIET, leave=False))
