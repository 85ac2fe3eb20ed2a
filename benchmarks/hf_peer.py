"""Hugging Face's Mask2Former with our weights: the independent implementation for tests and benchmarks."""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from dearli_d2.modeling.mask2former.criterion import SetCriterion
from dearli_d2.modeling.mask2former.head import MaskFormerHead
from dearli_d2.modeling.mask2former.matcher import HungarianMatcher
from dearli_d2.modeling.mask2former.pixel_decoder import MSDeformAttnPixelDecoder
from dearli_d2.modeling.mask2former.transformer_decoder import MultiScaleMaskedTransformerDecoder

_PIXEL = "model.pixel_level_module.decoder."
_DECODER = "model.transformer_module."
# ours (regular expression): theirs
_RULES = (
    (r"pixel_decoder\.input_proj\.(.*)", _PIXEL + r"input_projections.\1"),
    (r"pixel_decoder\.transformer\.level_embed", _PIXEL + "level_embed"),
    (r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.self_attn\.(.*)", _PIXEL + r"encoder.layers.\1.self_attn.\2"),
    (r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.norm1\.(.*)", _PIXEL + r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.norm2\.(.*)", _PIXEL + r"encoder.layers.\1.final_layer_norm.\2"),
    (r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.linear([12])\.(.*)", _PIXEL + r"encoder.layers.\1.fc\2.\3"),
    (r"pixel_decoder\.mask_features\.(.*)", _PIXEL + r"mask_projection.\1"),
    (r"pixel_decoder\.(adapter_1|layer_1)\.norm\.(.*)", _PIXEL + r"\1.1.\2"),
    (r"pixel_decoder\.(adapter_1|layer_1)\.(weight)", _PIXEL + r"\1.0.\2"),
    (r"predictor\.query_embed\.(.*)", _DECODER + r"queries_embedder.\1"),
    (r"predictor\.query_feat\.(.*)", _DECODER + r"queries_features.\1"),
    (r"predictor\.level_embed\.(.*)", _DECODER + r"level_embed.\1"),
    (r"predictor\.decoder_norm\.(.*)", _DECODER + r"decoder.layernorm.\1"),
    (r"predictor\.mask_embed\.layers\.(\d)\.(.*)", _DECODER + r"decoder.mask_predictor.mask_embedder.\1.0.\2"),
    (r"predictor\.class_embed\.(.*)", r"class_predictor.\1"),
    (r"predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.(.*)", _DECODER + r"decoder.layers.\1.cross_attn.\2"),
    (r"predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.(.*)", _DECODER + r"decoder.layers.\1.cross_attn_layer_norm.\2"),
    (r"predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.out_proj\.(.*)", _DECODER + r"decoder.layers.\1.self_attn.out_proj.\2"),
    (r"predictor\.transformer_self_attention_layers\.(\d+)\.norm\.(.*)", _DECODER + r"decoder.layers.\1.self_attn_layer_norm.\2"),
    (r"predictor\.transformer_ffn_layers\.(\d+)\.linear([12])\.(.*)", _DECODER + r"decoder.layers.\1.fc\2.\3"),
    (r"predictor\.transformer_ffn_layers\.(\d+)\.norm\.(.*)", _DECODER + r"decoder.layers.\1.final_layer_norm.\2"),
)  # fmt: skip
_PACKED = re.compile(r"predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.in_proj_(weight|bias)")


def build_pair(
    num_classes: int,
    dim: int,
    num_queries: int,
    heads: int,
    pixel_layers: int,
    decoder_layers: int,
    feedforward_dim: int,
    pixel_feedforward_dim: int,
    num_points: int,
    embed_dim: int = 16,
) -> tuple[MaskFormerHead, SetCriterion, Mask2FormerForUniversalSegmentation]:
    """Our head and criterion, and theirs with a small random Swin backbone and our weights."""
    channels = {f"res{i + 2}": embed_dim * 2**i for i in range(4)}
    head = MaskFormerHead(
        MSDeformAttnPixelDecoder(channels, dim, dim, pixel_feedforward_dim, heads, layers=pixel_layers),
        MultiScaleMaskedTransformerDecoder(
            dim, nn.Linear(dim, num_classes + 1), dim, dim, num_queries, heads, feedforward_dim, decoder_layers
        ),
    )
    criterion = SetCriterion(num_classes, HungarianMatcher(num_points=num_points), num_points=num_points)
    stages = [f"stage{i + 1}" for i in range(4)]
    backbone = SwinConfig(
        embed_dim=embed_dim,
        depths=[1] * 4,
        num_heads=[1, 2, 2, 2],
        window_size=4,
        out_features=stages,
        drop_path_rate=0.0,
    )
    peer = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone, feature_size=dim, mask_feature_size=dim, hidden_dim=dim, num_queries=num_queries,
            encoder_feedforward_dim=pixel_feedforward_dim, dim_feedforward=feedforward_dim, encoder_layers=pixel_layers,
            decoder_layers=decoder_layers + 1, num_attention_heads=heads, num_labels=num_classes,
            train_num_points=num_points, output_auxiliary_logits=True,
        )
    )  # fmt: skip
    copy_weights(head, peer)
    return head, criterion, peer


def copy_weights(head: MaskFormerHead, peer: nn.Module) -> None:
    """Copies every parameter of our head; raises if any of ours, or any of theirs outside the backbone, is left over."""
    theirs = {}
    for name, value in head.state_dict().items():
        packed = _PACKED.fullmatch(name)
        if packed:
            layer, kind = packed.groups()
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                theirs[f"{_DECODER}decoder.layers.{layer}.self_attn.{letter}_proj.{kind}"] = part
            continue
        targets = [re.sub(f"^{rule}$", target, name) for rule, target in _RULES if re.fullmatch(rule, name)]
        if len(targets) != 1:
            raise KeyError(f"{name} has {len(targets)} counterparts")
        theirs[targets[0]] = value
    result = peer.load_state_dict(theirs, strict=False)
    left = [n for n in result.missing_keys if "pixel_level_module.encoder" not in n and n != "criterion.empty_weight"]
    if left or result.unexpected_keys:
        raise KeyError(f"not covered: {left}; not known: {result.unexpected_keys}")


def features_of(peer: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The peer's backbone features under our names."""
    maps = peer.model.pixel_level_module.encoder(images).feature_maps
    return {f"res{i + 2}": m for i, m in enumerate(maps)}
