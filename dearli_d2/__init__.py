"""dearli_d2: segmentation from very few labels with foundation models, on detectron2.

Names below are loaded on first use, so that `import dearli_d2` is cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictor", "build_model", "get_config"]

_HOMES = {"get_config": ".config", "build_model": ".modeling", "Predictor": ".predict"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dearli_d2' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
