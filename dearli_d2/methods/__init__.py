"""The published methods, one folder each.

A folder below this one is a method: nothing else lists them, so deleting one leaves the others working.
"""

from __future__ import annotations

import importlib
import pkgutil


def load_methods() -> None:
    """Imports every method, which registers its model with detectron2."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}.model")
