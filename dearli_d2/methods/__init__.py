"""The published methods, one folder each.

A folder below this one is a method: its `__init__.py` holds a `METHOD`. Nothing else lists the methods, so deleting a folder
leaves the others working.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from .base import Method


@cache
def methods() -> Mapping[str, Method]:
    """Every method by its MODEL.META_ARCHITECTURE."""
    folders = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    found = [importlib.import_module(f"{__name__}.{name}").METHOD for name in folders]
    return {method.architecture: method for method in found}


def method_of(cfg: CfgNode) -> Method:
    """The method of a config.

    Raises:
        ConfigError: MODEL.META_ARCHITECTURE names none; the message lists the known ones.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in methods():
        raise ConfigError(f"MODEL.META_ARCHITECTURE: there is no {name!r}; known: {', '.join(sorted(methods()))}")
    return methods()[name]
