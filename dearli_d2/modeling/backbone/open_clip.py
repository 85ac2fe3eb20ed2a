"""OpenCLIP image towers as backbones; the whole CLIP model stays together, since its text tower makes the classifier."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from open_clip.transformer import QuickGELU
from timm.models.eva import Eva
from torch import nn
from torch.utils.checkpoint import checkpoint as compute_again

from ...errors import ConfigError, WeightsError
from ...pretrained import OPENAI_MEAN, OPENAI_STD, clip_facts, text_keys
from ..clip.ensembling import clip_head, mask_pool
from ..clip.text_tower import ClipModel, text_tower_of
from ..precision import autocast_type, low_precision, weights_cast_once
from .clip_model import build_clip
from .pyramid import SimpleFeaturePyramid

logger = logging.getLogger(__name__)


class OpenCLIPBackbone(Backbone):
    """Base of the OpenCLIP towers: freezing, the text side of the model, and embeddings in the joint space.

    Methods that take a `tower` work with another image tower of the same architecture, such as a frozen copy of the start
    weights. None is the backbone's own.

    Args:
        arch, weights, tag: see `build_clip`.
        frozen: also freezes the image tower: it stays in eval mode and has no gradient and no graph. The text tower is always
            frozen.
        trainable_blocks: number of its last blocks (stages of a ConvNeXt) that are trained, with all layers after them;
            -1 = all.
        checkpoint: computes the blocks of the image tower again in the backward pass instead of keeping what is inside of them.

    Attributes:
        mean, std: the normalisation of 0..255 RGB that the weights expect; OpenAI's for a random start.
        quick_gelu: True if it has OpenAI's activation in place of GELU.
        dense_form: names the kind of `clip_vis_dense`, for caches that depend on it.
        image_size: side of the images in pretraining, in pixels; None where the weights follow no published tag.
    """

    dense_form = "last stage"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        arch: str,
        weights: str,
        frozen: bool,
        trainable_blocks: int = -1,
        tag: str = "",
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.arch, self.frozen = Path(arch).stem if arch.endswith(".json") else arch, frozen
        self.clip_model: ClipModel = build_clip(arch, weights, tag)
        facts = clip_facts(arch, weights, tag)
        self.quick_gelu = any(isinstance(m, QuickGELU) for m in self.clip_model.modules())
        self.image_size = None if facts is None else facts.size
        self.mean, self.std = (OPENAI_MEAN, OPENAI_STD) if facts is None else (facts.mean, facts.std)
        self.trainable_blocks, self.checkpoint = trainable_blocks, checkpoint
        self._choose_trainable()
        self.train()

    def _choose_trainable(self) -> None:
        """Selects the trainable parameters of the image tower."""
        count = self.trainable_blocks
        self.clip_model.requires_grad_(False)
        if self.frozen:
            return
        visual = self.clip_model.visual
        if count < 0:
            visual.requires_grad_(True)
            return
        blocks, after = self._parts(visual)
        if count > len(blocks):
            raise ConfigError(
                f"MODEL.BACKBONE.TRAINABLE_BLOCKS is {count}, the image tower of {self.arch} has {len(blocks)}"
            )
        for part in (*blocks[len(blocks) - count :], *after):
            part.requires_grad_(True)

    @staticmethod
    @abstractmethod
    def _parts(visual: ClipModel) -> tuple[list[nn.Module], list[nn.Module | nn.Parameter]]:
        """The blocks of an image tower in their order, and the layers after them."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None) -> dict[str, Any]:
        """Reads the section MODEL.BACKBONE."""
        return {
            "arch": cfg.MODEL.BACKBONE.ARCH,
            "weights": cfg.MODEL.BACKBONE.WEIGHTS,
            "frozen": cfg.MODEL.BACKBONE.FREEZE,
            "trainable_blocks": cfg.MODEL.BACKBONE.TRAINABLE_BLOCKS,
            "tag": cfg.MODEL.BACKBONE.TAG,
            "checkpoint": cfg.MODEL.BACKBONE.CHECKPOINT_BLOCKS,
        }

    def _run(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The output of a block. With `checkpoint` a backward pass keeps its input alone, and has the same random numbers."""
        if self.checkpoint and torch.is_grad_enabled():
            return compute_again(block, *args, use_reentrant=False, **kwargs)
        return block(*args, **kwargs)

    def train(self, mode: bool = True) -> OpenCLIPBackbone:
        """Sets the mode of the trainable parts; frozen towers stay in eval mode."""
        super().train(mode)
        self.clip_model.eval()
        if not self.frozen:
            self.clip_model.visual.train(mode)
        return self

    @property
    def embedding_dim(self) -> int:
        """Width E of the joint space."""
        projection = text_tower_of(self.clip_model).text_projection
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[-1])

    def logit_scale(self) -> torch.Tensor:
        """CLIP's own temperature, at most 100."""
        return self.clip_model.logit_scale.exp().clamp(max=100)

    def encode(self, images: torch.Tensor, tower: ClipModel | None = None) -> dict[str, torch.Tensor]:
        """Features of the image tower, without the feature pyramid.

        Under autocast a frozen tower computes everything in the autocast type, norms and residual sums included.

        Args:
            images: (B, 3, H, W), normalised.
            tower: another image tower of the same architecture.

        Returns:
            "clip_vis_dense"; "clip_pooled" (B, 1, D), the input of `embed_pooled` for the whole image; and the stages of a
            tower that has them.
        """
        visual = self.clip_model.visual if tower is None else tower
        frozen = self.frozen if tower is None else not any(p.requires_grad for p in tower.parameters())
        dtype = autocast_type(images.device)
        if dtype is None or not frozen:
            with weights_cast_once(visual, images.device, with_gradient=False):
                return self._encode(images, visual)
        with torch.autocast(images.device.type, enabled=False):
            return self._encode(images.to(dtype), low_precision(visual, dtype, self._simplify))

    @abstractmethod
    def _encode(self, images: torch.Tensor, visual: ClipModel) -> dict[str, torch.Tensor]:
        """Computes `encode` with the image tower `visual`."""

    @staticmethod
    def _simplify(visual: ClipModel, copied: ClipModel) -> None:
        """Merges layers of a low-precision copy, from the full-precision weights of the tower."""

    def dense(self, images: torch.Tensor) -> torch.Tensor:
        """`clip_vis_dense` alone, without a feature pyramid."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode(images)["clip_vis_dense"]

    @abstractmethod
    def embed_pooled(self, pooled: torch.Tensor, tower: ClipModel | None = None) -> torch.Tensor:
        """(B, Q, D) pooled `clip_vis_dense` to (B, Q, E) unit-norm embeddings in the joint space."""

    def embed_dense(self, features: dict[str, torch.Tensor], tower: ClipModel | None = None) -> torch.Tensor:
        """(B, E, h, w) unit-norm embeddings of every cell of `clip_vis_dense`."""
        dense = features["clip_vis_dense"]
        return self.embed_pooled(dense.flatten(2).transpose(1, 2), tower).transpose(1, 2).unflatten(2, dense.shape[2:])

    def embed_image(self, features: dict[str, torch.Tensor], tower: nn.Module | None = None) -> torch.Tensor:
        """(B, E) unit-norm embeddings of the whole images."""
        return self.embed_pooled(features["clip_pooled"], tower)[:, 0]

    def embed_region(self, features: dict[str, torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
        """(B, E) unit-norm embeddings of blank images that show a region each, at the (B, H, W) bool `masks`."""
        return self.embed_image(features)


@BACKBONE_REGISTRY.register()
class OpenCLIPConvNeXt(OpenCLIPBackbone):
    """ConvNeXt tower: `res2`..`res5` and `clip_vis_dense`, the last stage before the head, (B, D, h, w)."""

    @configurable
    def __init__(
        self,
        arch: str,
        weights: str,
        frozen: bool = True,
        trainable_blocks: int = -1,
        tag: str = "",
        checkpoint: bool = False,
    ) -> None:
        super().__init__(arch, weights, frozen, trainable_blocks, tag, checkpoint)
        trunk: Any = getattr(self.clip_model.visual, "trunk", None)
        if not hasattr(trunk, "stages") or not hasattr(trunk, "stem"):
            raise ConfigError(f"MODEL.BACKBONE.ARCH: {arch} has no ConvNeXt tower; use MODEL.BACKBONE.NAME OpenCLIPViT")
        info = trunk.feature_info
        self._shapes = {
            f"res{i + 2}": ShapeSpec(channels=stage["num_chs"], stride=stage["reduction"])
            for i, stage in enumerate(info)
        }

    @staticmethod
    def _parts(visual: ClipModel) -> tuple[list[nn.Module], list[nn.Module | nn.Parameter]]:
        if not hasattr(getattr(visual, "trunk", None), "stages"):
            return [], []  # no ConvNeXt; the constructor raises the error
        return list(visual.trunk.stages), [visual.trunk.norm_pre, visual.trunk.head, visual.head]

    @property
    def dense_shape(self) -> ShapeSpec:
        """Channels and stride of `clip_vis_dense`."""
        return self._shapes["res5"]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of `res2`..`res5`."""
        return self._shapes

    def _encode(self, images: torch.Tensor, visual: ClipModel) -> dict[str, torch.Tensor]:
        """The base's features, and the stages `res2`..`res5`."""
        trunk = visual.trunk
        x, features = trunk.stem(images), {}
        for index, stage in enumerate(trunk.stages, start=2):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self._run(block, x)
            features[f"res{index}"] = x
        features["clip_vis_dense"] = trunk.norm_pre(x)
        features["clip_pooled"] = features["clip_vis_dense"].mean((2, 3))[:, None]
        return features

    @staticmethod
    def _simplify(visual: ClipModel, copied: ClipModel) -> None:
        """Multiplies the scale of each block into its last layer."""
        for stage, other in zip(visual.trunk.stages, copied.trunk.stages, strict=True):
            for block, new in zip(stage.blocks, other.blocks, strict=True):
                if block.gamma is None:
                    continue
                old, last = block.mlp.fc2, new.mlp.fc2
                last.weight.copy_(old.weight * block.gamma.view(-1, *[1] * (old.weight.dim() - 1)))
                last.bias.copy_(old.bias * block.gamma)
                new.gamma = None

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) normalised images; see the class."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode(images)

    def embed_pooled(self, pooled: torch.Tensor, tower: ClipModel | None = None) -> torch.Tensor:
        """(B, Q, D) pooled `clip_vis_dense` through the tower's head, to (B, Q, E) of unit norm."""
        return clip_head(tower or self.clip_model.visual, pooled)

    def embed_region(self, features: dict[str, torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
        """Averages over the cells that are not blank: a tower without a class token would average over all of them."""
        pooled = mask_pool(features["clip_vis_dense"], masks[:, None].float() - 0.5)
        pooled = torch.where((pooled == 0).all(-1, keepdim=True), features["clip_pooled"], pooled)
        return self.embed_pooled(pooled)[:, 0]


@BACKBONE_REGISTRY.register()
class OpenCLIPViT(OpenCLIPBackbone):
    """ViT tower: a simple feature pyramid on the last block's tokens, and `clip_vis_dense`.

    `clip_vis_dense`, here (B, E, h, w), is already in the joint space. In the last block attention gives each token its own
    value, so that no token sees another. Residual and feed-forward stay, as in MaskCLIP's published code for ViTs. (Their paper,
    Sec. 3.1, describes attention pooling, which a ViT does not have.) Images may have any size, since position embeddings are
    interpolated.
    """

    dense_form = "MaskCLIP, whole last block"

    @configurable
    def __init__(
        self,
        arch: str,
        weights: str,
        frozen: bool = True,
        trainable_blocks: int = -1,
        tag: str = "",
        pyramid_dim: int = 256,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(arch, weights, frozen, trainable_blocks, tag, checkpoint)
        width, self.patch = self._prepare_tower()
        self.pyramid = SimpleFeaturePyramid(width, pyramid_dim, self.patch)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None) -> dict[str, Any]:
        """Reads the section MODEL.BACKBONE."""
        return {**super().from_config(cfg, input_shape), "pyramid_dim": cfg.MODEL.BACKBONE.PYRAMID_DIM}

    def _prepare_tower(self) -> tuple[int, int]:
        """Channels and patch size."""
        visual = self.clip_model.visual
        if not hasattr(visual, "conv1") or not hasattr(visual, "transformer"):
            raise ConfigError(f"MODEL.BACKBONE.ARCH: {self.arch} has no OpenCLIP ViT tower")
        return visual.conv1.out_channels, visual.conv1.stride[0]

    @staticmethod
    def _parts(visual: ClipModel) -> tuple[list[nn.Module], list[nn.Module | nn.Parameter]]:
        if not hasattr(visual, "transformer"):
            return [], []  # no ViT; the constructor raises the error
        return list(visual.transformer.resblocks), [visual.ln_post, visual.proj]

    @property
    def dense_shape(self) -> ShapeSpec:
        """Channels and stride of `clip_vis_dense`."""
        return ShapeSpec(channels=self.embedding_dim, stride=self.patch)

    @property
    def size_divisibility(self) -> int:
        """The sides of images must be multiples of this."""
        return self.patch * 2

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of `res2`..`res5`."""
        return self.pyramid.output_shape()

    def _encode(self, images: torch.Tensor, visual: ClipModel) -> dict[str, torch.Tensor]:
        """The base's features, and "tokens", (B, C, h, w) of the last block."""
        height, width = (side // self.patch for side in images.shape[-2:])
        tokens, dense, whole = self._tokens(visual, images)
        grid = (2, (height, width))
        return {
            "tokens": tokens.transpose(1, 2).unflatten(*grid),
            "clip_vis_dense": dense.transpose(1, 2).unflatten(*grid),
            "clip_pooled": whole,
        }

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) normalised images, H and W multiples of the patch size."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            encoded = self.encode(images)
        return {**self.pyramid(encoded.pop("tokens")), **encoded}

    def _tokens(self, visual: ClipModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patch tokens of the last block (B, N, C); embeddings of patches (B, N, E) and of the image (B, 1, E)."""
        patches = visual.conv1(images)
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
        x = visual.ln_pre(x + _position(visual, patches.shape[-2:]).to(x.dtype))
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            x = self._run(block, x)
        dense = visual.ln_post(self._run(_dense_block, last, x))[:, 1:] @ visual.proj
        x = self._run(last, x)
        return x[:, 1:], dense, visual.ln_post(x[:, :1]) @ visual.proj

    def embed_pooled(self, pooled: torch.Tensor, tower: ClipModel | None = None) -> torch.Tensor:
        """(B, Q, E) pooled `clip_vis_dense` to unit norm."""
        return F.normalize(pooled.float(), dim=-1)


@BACKBONE_REGISTRY.register()
class OpenCLIPEVA(OpenCLIPViT):
    """The `OpenCLIPViT` of EVA02-CLIP towers (`EVA02-L-14`, ...), which are timm models with rotary positions."""

    def _prepare_tower(self) -> tuple[int, int]:
        visual = self.clip_model.visual
        trunk = getattr(visual, "trunk", None)
        if not isinstance(trunk, Eva):
            raise ConfigError(
                f"MODEL.BACKBONE.ARCH: {self.arch} has no EVA02 tower; use OpenCLIPViT or OpenCLIPConvNeXt"
            )
        # the same network for any image size
        name = open_clip.get_model_config(self.arch)["vision_cfg"]["timm_model_name"]
        visual.trunk = timm.create_model(
            name, num_classes=self.embedding_dim, global_pool="token", dynamic_img_size=True
        )
        try:
            visual.trunk.load_state_dict(trunk.state_dict())
        except RuntimeError as error:
            raise ConfigError(
                f"MODEL.BACKBONE.ARCH: the tower of {self.arch} does not end as EVA02-CLIP's do (timm_pool token, timm_proj null)"
            ) from error
        self._choose_trainable()
        return trunk.embed_dim, trunk.patch_embed.patch_size[0]

    @staticmethod
    def _parts(visual: ClipModel) -> tuple[list[nn.Module], list[nn.Module | nn.Parameter]]:
        if not isinstance(getattr(visual, "trunk", None), Eva):
            return [], []  # no EVA02; the constructor raises the error
        return list(visual.trunk.blocks), [visual.trunk.norm, visual.trunk.fc_norm, visual.trunk.head]

    def _tokens(self, visual: ClipModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        trunk = visual.trunk
        x, rope = trunk._pos_embed(trunk.patch_embed(images))
        x = trunk.norm_pre(x)
        *blocks, last = trunk.blocks
        for block in blocks:
            x = self._run(block, x, rope=rope)
        dense = trunk.norm(self._run(_eva_dense_block, last, x))
        x = self._run(last, x, rope=rope)
        embed = lambda tokens: trunk.head(trunk.fc_norm(tokens))  # noqa: E731
        start = trunk.num_prefix_tokens
        return x[:, start:], embed(dense[:, start:]), embed(trunk.norm(x[:, :1]))


def _eva_dense_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    """(B, N, C) through a block in which each token attends to itself alone."""
    first, second = (1 if gamma is None else gamma for gamma in (block.gamma_1, block.gamma_2))
    x = x + first * _eva_value_path(block.attn, block.norm1(x))
    return x + second * block.mlp(block.norm2(x))


def _eva_value_path(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """See `_value_path`."""
    if attention.qkv is None:
        value = attention.v_proj(x)
    else:
        value = F.linear(x, attention.qkv.weight.chunk(3)[2], attention.v_bias)
    return attention.proj(attention.norm(value))


def _position(visual: ClipModel, grid: torch.Size) -> torch.Tensor:
    """(1 + N, C): the learned position embeddings resized to the grid (bicubic)."""
    position, native = visual.positional_embedding, visual.grid_size
    if tuple(grid) == tuple(native):
        return position
    patches = position[1:].T.unflatten(1, native)[None].float()
    resized = F.interpolate(patches, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([position[:1], resized[0].flatten(1).T.to(position.dtype)])


def _dense_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    """See `_eva_dense_block`."""
    x = x + block.ls_1(_value_path(block.attn, block.ln_1(x)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _value_path(attention: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    """The output of attention in which each token attends to itself alone."""
    dim = attention.embed_dim
    value = F.linear(x, attention.in_proj_weight[2 * dim :], attention.in_proj_bias[2 * dim :])
    return attention.out_proj(value)


def build_frozen_clip(arch: str, weights: str, tag: str = "") -> OpenCLIPBackbone:
    """A frozen CLIP model beside another backbone, for its text and its zero-shot recognition; arguments of `build_clip`.

    Raises:
        ConfigError: an architecture that no backbone here fits. WeightsError: see `build_clip`.
    """
    vision = (open_clip.get_model_config(arch) or {}).get("vision_cfg")
    if vision is None:
        raise ConfigError(f"MODEL.TEXT.ENCODER: open_clip has no model {arch!r}")
    tower = vision.get("timm_model_name", "")
    kind = OpenCLIPEVA if tower.startswith("eva") else OpenCLIPConvNeXt if tower else OpenCLIPViT
    try:
        return kind(arch=arch, weights=weights, tag=tag, frozen=True).requires_grad_(False)
    except (ConfigError, WeightsError) as error:
        raise type(error)(text_keys(str(error))) from error
