"""OpenCLIP image towers as backbones; the whole CLIP model stays together, since its text tower makes the classifier."""

from __future__ import annotations

import logging
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from ...errors import ConfigError, WeightsError
from ...weights import read_state_dict
from ..ensembling import clip_head
from . import tiny_clip  # makes the shipped model known to open_clip
from .pyramid import SimpleFeaturePyramid


def build_clip(arch: str, weights: str) -> nn.Module:
    """An OpenCLIP model in fp32 on the CPU.

    Args:
        arch: name of an OpenCLIP model configuration, or the path of such a JSON file.
        weights: a pretrained tag (downloaded by `open_clip`), a local file, "shipped" (in this package), or "" for a
            random start.

    Raises:
        ConfigError: unknown `arch`. WeightsError: weights that cannot be had or do not fit.
    """
    if arch.endswith(".json"):
        if not Path(arch).is_file():
            raise ConfigError(f"MODEL.BACKBONE.ARCH: no file {arch}")
        open_clip.add_model_config(Path(arch))
        arch = Path(arch).stem
    if arch not in open_clip.list_models():
        raise ConfigError(f"MODEL.BACKBONE.ARCH: open_clip has no model {arch!r}")
    if weights == "shipped":
        weights = str(tiny_clip.ASSETS / f"{arch}.safetensors")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if weights in tags:
        try:
            return open_clip.create_model(arch, pretrained=weights)
        except Exception as error:  # the hub client raises many types when there is no network
            raise WeightsError(
                f"open_clip could not download {arch} / {weights}: {error}. Without network access put the file "
                "on this machine and set MODEL.BACKBONE.WEIGHTS to its path"
            ) from error
    if weights and not Path(weights).is_file():
        raise WeightsError(
            f"MODEL.BACKBONE.WEIGHTS: {weights!r} is no file and no pretrained tag of {arch}; tags: {', '.join(tags) or 'none'}"
        )
    model = _create_random(arch)
    if not weights:
        return model
    state = {k: v.float() if v.is_floating_point() else v for k, v in read_state_dict(weights).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise WeightsError(
            f"{weights} is not {arch}: {len(missing)} names missing, {len(unexpected)} unexpected, first {(missing + unexpected)[0]}"
        )
    return model


def _create_random(arch: str) -> nn.Module:
    # open_clip warns on the root logger about the random start that is wanted here
    logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(arch, pretrained=None)
    finally:
        logging.disable(logging.NOTSET)


class _OpenCLIPBackbone(Backbone):
    """What both towers share: freezing, and the text side of the model.

    The text tower is always frozen. `frozen` also freezes the image tower: eval mode whatever `train()` says, no
    gradient, no graph.
    """

    def __init__(self, arch: str, weights: str, frozen: bool) -> None:
        super().__init__()
        self.arch, self.frozen = Path(arch).stem if arch.endswith(".json") else arch, frozen
        self.clip_model = build_clip(arch, weights)
        self.clip_model.requires_grad_(False)
        if not frozen:
            self.clip_model.visual.requires_grad_(True)
        self.train()

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        return {
            "arch": cfg.MODEL.BACKBONE.ARCH,
            "weights": cfg.MODEL.BACKBONE.WEIGHTS,
            "frozen": cfg.MODEL.BACKBONE.FREEZE,
        }

    def train(self, mode: bool = True) -> _OpenCLIPBackbone:
        super().train(mode)
        self.clip_model.eval()
        if not self.frozen:
            self.clip_model.visual.train(mode)
        return self

    @property
    def embedding_dim(self) -> int:
        """Width E of the joint space."""
        return self.clip_model.text_projection.shape[-1]

    def logit_scale(self) -> torch.Tensor:
        """CLIP's own temperature, at most 100."""
        return self.clip_model.logit_scale.exp().clamp(max=100)


@BACKBONE_REGISTRY.register()
class OpenCLIPConvNeXt(_OpenCLIPBackbone):
    """ConvNeXt tower: `res2`..`res5` and `clip_vis_dense`, the last stage before the head, (B, D, h, w)."""

    @configurable
    def __init__(self, arch: str, weights: str, frozen: bool = True) -> None:
        super().__init__(arch, weights, frozen)
        trunk = getattr(self.clip_model.visual, "trunk", None)
        if not hasattr(trunk, "stages") or not hasattr(trunk, "stem"):
            raise ConfigError(f"MODEL.BACKBONE.ARCH: {arch} has no ConvNeXt tower; use MODEL.BACKBONE.NAME OpenCLIPViT")
        info = trunk.feature_info
        self._shapes = {
            f"res{i + 2}": ShapeSpec(channels=stage["num_chs"], stride=stage["reduction"])
            for i, stage in enumerate(info)
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) normalised images; see the class."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            trunk = self.clip_model.visual.trunk
            x, features = trunk.stem(images), {}
            for index, stage in enumerate(trunk.stages, start=2):
                x = features[f"res{index}"] = stage(x)
            features["clip_vis_dense"] = trunk.norm_pre(x)
        return features

    def embed_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, Q, D) pooled `clip_vis_dense` to (B, Q, E) unit-norm embeddings in the joint space."""
        return clip_head(self.clip_model.visual, pooled)


@BACKBONE_REGISTRY.register()
class OpenCLIPViT(_OpenCLIPBackbone):
    """ViT tower: a simple feature pyramid on the last block's tokens, and `clip_vis_dense`, here (B, E, h, w): tokens
    through the value path of the last attention (MaskCLIP), already in the joint space. Any input size: position
    embeddings are interpolated."""

    @configurable
    def __init__(self, arch: str, weights: str, frozen: bool = True, pyramid_dim: int = 256) -> None:
        super().__init__(arch, weights, frozen)
        visual = self.clip_model.visual
        if not hasattr(visual, "conv1") or not hasattr(visual, "transformer"):
            raise ConfigError(f"MODEL.BACKBONE.ARCH: {arch} has no OpenCLIP ViT tower")
        patch = visual.conv1.stride[0]
        self.pyramid = SimpleFeaturePyramid(visual.conv1.out_channels, pyramid_dim, patch)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        return {**super().from_config(cfg, input_shape), "pyramid_dim": cfg.MODEL.BACKBONE.PYRAMID_DIM}

    @property
    def size_divisibility(self) -> int:
        return self.clip_model.visual.conv1.stride[0] * 2

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.pyramid.output_shape()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) normalised images, H and W multiples of the patch size."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens, dense, (height, width) = self._tokens(images)
        maps = tokens.transpose(1, 2).unflatten(2, (height, width))
        features = self.pyramid(maps)
        features["clip_vis_dense"] = dense.transpose(1, 2).unflatten(2, (height, width))
        return features

    def _tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        """Patch tokens of the last block (B, N, C), dense embeddings (B, N, E), and the grid."""
        visual = self.clip_model.visual
        patches = visual.conv1(images)
        grid = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
        x = visual.ln_pre(x + self._position(grid).to(x.dtype))
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            x = block(x)
        dense = visual.ln_post(x + last.ls_1(_value_path(last.attn, last.ln_1(x))))[:, 1:] @ visual.proj
        return last(x)[:, 1:], dense, (grid[0], grid[1])

    def _position(self, grid: torch.Size) -> torch.Tensor:
        """(1 + N, C): the learned position embeddings resized to the grid (bicubic)."""
        position = self.clip_model.visual.positional_embedding
        native = self.clip_model.visual.grid_size
        if tuple(grid) == tuple(native):
            return position
        patches = position[1:].T.unflatten(1, native)[None].float()
        resized = F.interpolate(patches, size=tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat([position[:1], resized[0].flatten(1).T.to(position.dtype)])

    def embed_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, Q, E) pooled `clip_vis_dense` to unit norm."""
        return F.normalize(pooled.float(), dim=-1)


def _value_path(attention: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    """What each token would pass on if it attended to itself alone."""
    dim = attention.embed_dim
    value = F.linear(x, attention.in_proj_weight[2 * dim :], attention.in_proj_bias[2 * dim :])
    return attention.out_proj(value)
