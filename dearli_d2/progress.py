"""Progress bars. Nothing is shown where tqdm is missing, as beside an exported model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any, TypeVar

_QUIET = 2.0  # seconds
Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "image") -> Iterator[Item]:
    """The items, with a bar on stderr once they have taken two seconds."""
    from tqdm import tqdm  # not at the top: an image is read without it

    return iter(tqdm(items, desc=description, total=total, unit=unit, delay=_QUIET, leave=False))


def progress_bar(total: int, initial: int = 0, description: str | None = None, unit: str = "image") -> Any:
    """A bar with `update`, and `write` of lines above it, as a context; without tqdm one that shows the lines alone."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=total, initial=initial, desc=description, unit=unit)


class _NoBar:
    def update(self) -> None:
        pass

    def write(self, text: str, file: IO[str] | None = None) -> None:
        print(text, file=file)

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass
