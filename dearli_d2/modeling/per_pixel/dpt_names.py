"""Names of UniMatch V2's published checkpoints, whose network is a plain ViT of DINOv2 with a DPT head."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_LEVEL = r"(?P<level>[1-4])"
_UNIT = rf"^head\.scratch\.refinenet{_LEVEL}\.resConfUnit"
# theirs, and ours with {level} = number of the level, 2 to 5, and {conv} = place of a convolution in a residual block
_RULES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^backbone\.(?!model\.|pyramid\.)", "backbone.model.model."),
        (r"^head\.projects\.(?P<stage>\d)\.", "backbone.pyramid.stages.{stage}.0."),
        (r"^head\.resize_layers\.(?P<stage>\d)\.", "backbone.pyramid.stages.{stage}.1."),
        (rf"^head\.scratch\.layer{_LEVEL}_rn\.", "head.project.res{level}."),
        (rf"^head\.scratch\.refinenet{_LEVEL}\.out_conv\.", "head.out.res{level}."),
        (rf"{_UNIT}1\.conv(?P<conv>[12])\.", "head.refine.res{level}.layers.{conv}."),
        (rf"{_UNIT}2\.conv(?P<conv>[12])\.", "head.fuse.res{level}.layers.{conv}."),
        (r"^head\.scratch\.output_conv\.0\.", "head.last.0."),
        (r"^head\.scratch\.output_conv\.2\.", "head.classifier."),
    )
)
# parts that no image passes: the token of masked training, and the coarsest level's sum with a coarser one
_UNUSED = ("backbone.mask_token", "head.scratch.refinenet4.resConfUnit1.")


def our_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives the tensors of a published checkpoint our names; names that are ours already are kept."""
    if not any(name.startswith("head.scratch.") for name in state):
        return dict(state)
    return {_our_name(name): value for name, value in state.items() if not name.startswith(_UNUSED)}


def _our_name(name: str) -> str:
    for pattern, ours in _RULES:
        found = pattern.match(name)
        if found:
            parts = found.groupdict()
            if "level" in parts:
                parts["level"] = str(int(parts["level"]) + 1)
            if "conv" in parts:
                parts["conv"] = str(2 * int(parts["conv"]) - 1)  # activations stand between
            return ours.format(**parts) + name[found.end() :]
    return name
