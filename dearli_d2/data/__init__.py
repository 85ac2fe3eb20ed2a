"""Data: catalog, mappers, streams, the generated miniworld.

`Targets` is loaded on first use, so that places and lists of data sets can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..structures import Targets

__all__ = ["Targets"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .. import structures

    return getattr(structures, name)
