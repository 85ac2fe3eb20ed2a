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
_CLASSIFIERS = ("sem_seg_head.predictor.class_embed.", "head.scratch.output_conv.2.")


def shapes_of(name: str, outputs: int | None = None) -> dict[str, list[int]]:
    """{published name: shape}.

    Args:
        name: of a list.
        outputs: of the linear classifier, for another data set than that of the list.
    """
    shapes = json.loads(gzip.decompress((NAMES / f"{name}.json.gz").read_bytes()))
    if outputs is not None:
        (classifier,) = {key.rpartition(".")[0] for key in shapes if key.startswith(_CLASSIFIERS)}
        for part in ("weight", "bias"):
            shapes[f"{classifier}.{part}"][0] = outputs
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
            factors = len(shape) == 1 and name.endswith(("weight", "gamma"))  # of norms and layer scales
            noise = 0.1 * noise + (1 if factors else 3 if name.endswith("logit_scale") else 0)
        weights[name] = noise
    return weights
