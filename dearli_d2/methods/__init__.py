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
    """Every method by the name of its folder."""
    folders = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {name: importlib.import_module(f"{__name__}.{name}").METHOD for name in folders}


def method_of(cfg: CfgNode) -> Method:
    """The method that takes a config.

    Raises:
        ConfigError: MODEL.META_ARCHITECTURE is unknown, or not exactly one of its methods takes the other keys.
    """
    found = {folder: method for folder, method in methods().items() if method.takes(cfg)}
    if len(found) > 1:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: the methods {' and '.join(found)} both take this config; "
            "change `takes` or the architecture of one of them"
        )
    if found:
        return next(iter(found.values()))
    name, known = cfg.MODEL.META_ARCHITECTURE, sorted({method.architecture for method in methods().values()})
    if name in known:
        raise ConfigError(f"MODEL.META_ARCHITECTURE {name}: no method has MODEL.CLASSIFIER {cfg.MODEL.CLASSIFIER}")
    raise ConfigError(f"MODEL.META_ARCHITECTURE: there is no {name!r}; known: {', '.join(known)}")
