"""Versions, devices, folders, and which optional parts are present."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys

import torch
from tabulate import tabulate

from . import __version__
from .data.catalog import datasets_root
from .files import cache_dir
from .modeling.backbone.package_weights import PACKAGES

_PACKAGES = (
    "torchvision",
    "open_clip_torch",
    "timm",
    "numpy",
    "segment-anything",
    "pycocotools",
    "transformers",
)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def report() -> str:
    """A table of two columns."""
    import detectron2

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    carried = [name for name, (package, _, _) in PACKAGES.items() if importlib.util.find_spec(package)]
    rows = [
        ("dearli_d2", __version__),
        ("python", f"{sys.version.split()[0]} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
        ("devices", ", ".join(gpus) or f"CPU, {torch.get_num_threads()} threads"),
        ("bf16 autocast", "yes" if not gpus or torch.cuda.is_bf16_supported() else "no, use SOLVER.AMP.DTYPE float16"),
        ("detectron2", f"{detectron2.__version__}"),
        *((package, _version(package)) for package in _PACKAGES),
        ("weights in packages", ", ".join(carried) or f"none (optional: {', '.join(PACKAGES)})"),
        ("DETECTRON2_DATASETS", f"{datasets_root()}{'' if datasets_root().is_dir() else ' (does not exist)'}"),
        ("cache", str(cache_dir())),
    ]
    return tabulate(rows, tablefmt="plain")


if __name__ == "__main__":  # `python -m dearli_d2.env`, the first name of `dearli env`
    from .cli import main

    sys.exit(main(["env", *sys.argv[1:]]))
