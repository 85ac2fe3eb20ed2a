"""Progress bars of scans and conversions: none for what is done at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_QUIET = 2.0  # seconds
Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "image") -> Iterator[Item]:
    """The items, with a bar on stderr once they have taken two seconds."""
    return iter(tqdm(items, desc=description, total=total, unit=unit, delay=_QUIET, leave=False))
