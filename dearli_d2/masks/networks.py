"""SAM, SAM 2 and SAM 3 by name, ready to make masks of a grid of points."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from ..files import file_digest
from .point_grid import PointGridGenerator, PointNetwork

TRANSFORMERS = ("sam2", "sam3")


def load_generator(
    model: str, weights: str | Path, device: str | torch.device, precision: str | None = None, **options: Any
) -> PointGridGenerator:
    """A generator of masks with published weights.

    Args:
        model: vit_b, vit_l or vit_h of SAM, or one of `TRANSFORMERS`.
        weights: a file for SAM; a folder, or the file of weights there, for SAM 2 and SAM 3.
        device: of the network.
        precision: see `PointGridGenerator`; None = bf16 where the device is fast at it.
        options: of `PointGridGenerator`.

    Raises:
        ConfigError: an optional package is missing.
        WeightsError: an unreadable file, or one of another model.
    """
    network: PointNetwork[Any]
    if model in TRANSFORMERS:
        from .sam2 import load_sam2

        network = load_sam2(model, weights, device)
    else:
        from .sam import SamNetwork, load_sam

        network = SamNetwork(load_sam(model, weights, device))
    precision = precision or default_precision(network.device)
    return PointGridGenerator(network, precision=precision, name=model, digest=_digest(Path(weights)), **options)


def default_precision(device: torch.device) -> str:
    """bf16 on a GPU that computes with it, else fp32."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if fast else "fp32"


def _digest(weights: Path) -> str:
    """SHA-256 of a file of weights, or of the checksums of all in a folder if they are several."""
    if weights.is_file() and weights.suffix != ".json":
        return file_digest(weights)
    folder = weights if weights.is_dir() else weights.parent
    digests = [file_digest(path) for path in sorted(folder.glob("*.safetensors"))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
