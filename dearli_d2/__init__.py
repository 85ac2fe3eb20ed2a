"""dearli_d2: segmentation from very few labels with foundation models, on detectron2.

Names below are loaded on first use, so that `import dearli_d2` is cheap.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictor", "build_model", "evaluate", "get_config", "train"]

# said of calls in fvcore and detectron2; users of this project can do nothing about it
for _call in ("torch.jit.script", "broadcast_buffers"):
    warnings.filterwarnings("ignore", message=f".*{_call}. is deprecated", category=FutureWarning)


def missing_detectron2() -> str:
    """Says how to install detectron2 where it is missing; "" where it is there. `dearli_d2.deploy` does not need it."""
    if importlib.util.find_spec("detectron2") is not None:
        return ""
    from .files import beside_package

    return (
        "dearli_d2 needs detectron2, which no package index carries under its own name; install it by: "
        f"bash {beside_package('scripts') / 'install_detectron2.sh'} {sys.executable}"
    )


if Path(sys.argv[0]).stem == "dearli" and (_advice := missing_detectron2()):  # Python would show a stack trace
    sys.exit(f"error: {_advice}")

_HOMES = {
    "Predictor": ".predict",
    "build_model": ".modeling",
    "evaluate": ".runs",
    "get_config": ".config",
    "train": ".runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dearli_d2' has no attribute {name!r}")
    if advice := missing_detectron2():
        raise ImportError(advice, name=__name__)
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
