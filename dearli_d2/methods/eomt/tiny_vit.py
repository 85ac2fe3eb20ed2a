"""A Vision Transformer for miniworld, under a name of timm."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

default_cfgs = generate_default_cfgs({"vit_miniworld_patch8_reg4.untrained": {}})  # timm looks for this name


@register_model
def vit_miniworld_patch8_reg4(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """DINOv2's architecture with four registers: 6 blocks of 96 channels, 0.7 M parameters, no pretrained weights."""
    size: dict[str, Any] = {
        "patch_size": 8,
        "embed_dim": 96,
        "depth": 6,
        "num_heads": 4,
        "reg_tokens": 4,
        "no_embed_class": True,
    }
    name = "vit_miniworld_patch8_reg4"
    return build_model_with_cfg(VisionTransformer, name, pretrained, **{**size, "init_values": 1.0, **options})
