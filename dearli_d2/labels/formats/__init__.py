"""The formats of labels, one module each.

A module below this one is a format: it holds a `FORMAT`. Nothing else lists them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from ..structures import Format


@cache
def formats() -> Mapping[str, Format]:
    """Every format by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").FORMAT for name in names]
    return {format.name: format for format in found}
