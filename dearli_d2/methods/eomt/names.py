"""Names of published checkpoints: the authors' and those of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

# begins of names of Hugging Face's `EomtForUniversalSegmentation`, and ours
_HUGGING_FACE = (
    ("embeddings.cls_token", "backbone.vit.cls_token"),
    ("embeddings.register_tokens", "backbone.vit.reg_token"),
    ("embeddings.patch_embeddings.projection.", "backbone.vit.patch_embed.proj."),
    ("embeddings.position_embeddings.weight", "backbone.vit.pos_embed"),
    ("layers.", "backbone.vit.blocks."),
    ("layernorm.", "backbone.vit.norm."),
    ("query.", "q."),
    ("upscale_block.block.", "upscale."),
    ("mask_head.fc1.", "mask_head.0."),
    ("mask_head.fc2.", "mask_head.2."),
    ("mask_head.fc3.", "mask_head.4."),
    ("class_predictor.", "class_head."),
)
_INSIDE = (
    (".attention.out_proj.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    (".mlp.down_proj.", ".mlp.fc2."),
    (".mlp.weights_in.", ".mlp.fc1."),  # as transformers called them before version 5
    (".mlp.weights_out.", ".mlp.fc2."),
    (".layernorm2d.", ".norm."),
)
# what is one tensor here and several there, in the order in which they are joined
_JOINED = (
    (".attn.qkv.", tuple(f".attention.{part}_proj." for part in "qkv")),
    (".mlp.fc1.", (".mlp.gate_proj.", ".mlp.up_proj.")),
)
_AUTHORS = re.compile(r"^(?:_orig_mod\.)?(?:network\.)?(?:_orig_mod\.)?")
_CONSTANTS = (
    "criterion.",
    "encoder.pixel_mean",
    "encoder.pixel_std",
    "embeddings.mask_token",
    "embeddings.position_ids",
)


def our_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives the tensors of a published checkpoint our names, and leaves out constants that follow from the config.

    Args:
        state: with the names of the authors, of Hugging Face, or with ours, which are kept.
    """
    if "embeddings.patch_embeddings.projection.weight" in state:
        return _from_hugging_face(state)
    result = {}
    for name, value in state.items():
        name = _AUTHORS.sub("", name)
        if not name.startswith(_CONSTANTS):
            result[re.sub(r"^encoder\.backbone\.", "backbone.vit.", name)] = value
    return result


def _from_hugging_face(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {}
    for name, value in state.items():
        if name.startswith(_CONSTANTS):
            continue
        if name == "embeddings.position_embeddings.weight":
            value = value[None]
        for joined, parts in _JOINED:
            if parts[0] in name:
                value = torch.cat([state[name.replace(parts[0], part)] for part in parts])
                name = name.replace(parts[0], joined)
        if any(part in name for _, parts in _JOINED for part in parts):
            continue  # joined to the first one
        for theirs, ours in _HUGGING_FACE:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        for theirs, ours in _INSIDE:
            name = name.replace(theirs, ours)
        result[name] = value
    return result
