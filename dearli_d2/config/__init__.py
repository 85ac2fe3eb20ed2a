"""Configuration: a detectron2 `CfgNode` whose keys, defaults and rules stand in typed sections.

Names below are loaded on first use, so that the typed sections can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import add_dearli_config, all_keys, find_config, get_config

__all__ = ["add_dearli_config", "all_keys", "find_config", "get_config"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".build", __name__), name)
