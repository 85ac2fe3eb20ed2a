"""Names and shapes of published checkpoints, `names/*.json.gz`, and random weights under them.

The lists were written by running the authors' model code: facebookresearch/Mask2Former at 9b0651c, bytedance/fc-clip at 2b0bbe2,
LiheYoung/UniMatch-V2 at f6afb4d, helen1c/DEARLi at 1de0dc8.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch

NAMES = Path(__file__).parent / "names"


def shapes_of(name: str, classes: int | None = None) -> dict[str, list[int]]:
    """{published name: shape}. `classes`: of the linear classifier of a Mask2Former, in place of COCO's 133."""
    shapes = json.loads(gzip.decompress((NAMES / f"{name}.json.gz").read_bytes()))
    if classes is not None:
        for key in ("sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias"):
            shapes[key][0] = classes + 1
    return shapes


def random_weights(shapes: Mapping[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that follow from their names, of a size that keeps features alive and queries apart through all layers."""
    weights = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            noise = 1 + 0.2 * noise.clamp(-2, 2)
        elif len(shape) > 1 and not any(part in name for part in ("relative_position", "query_", "level_embed")):
            noise /= noise[0].numel() ** 0.5
            if "predictor" in name and name.endswith(("out_proj.weight", "linear2.weight")):
                noise *= 0.1
        else:
            noise = 0.1 * noise + (1 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0)
        weights[name] = noise
    return weights
