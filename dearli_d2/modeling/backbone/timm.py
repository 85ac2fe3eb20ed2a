"""Any timm feature extractor as backbone: ResNet, EfficientNet, ConvNeXt, Swin, DINOv2, ..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import freeze_batch_norm_2d
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import ConfigError, WeightsError
from ...weight_list import fetch, find, in_place_of_file
from ...weights import read_state_dict
from ..precision import weights_cast_once
from .package_weights import PACKAGES, read_package_weights
from .pyramid import Reassemble, SimpleFeaturePyramid

_STRIDES = (4, 8, 16, 32)
_DINOV2_OFFSET = 0.1  # cells


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """A timm model that gives `res2`..`res5`.

    A network with stages gives those of strides 4, 8, 16, 32. A plain ViT gives its last block through a simple feature
    pyramid, or four of its blocks reassembled. Both are trainable even if the ViT is frozen.

    Args:
        arch: timm model name.
        weights: "pretrained" (of timm; downloaded unless it is here), "package:NAME" (from an installed Python package, see
            `package_weights`), a local file, or "" for a random start.
        frozen: eval mode and no gradient for the timm model.
        pyramid_dim: channels of the pyramid of a plain ViT.
        layers: four blocks of a plain ViT, counted from 0, that are reassembled instead, each behind the ViT's last norm.
        channels: of the reassembled levels.
        checkpoint: computes blocks again in the backward pass instead of keeping their inputs.
        trainable_blocks: number of the last blocks of a plain ViT that are trained, with its last norm; -1 = all of it.
        freeze_norm: batch norms keep their statistics, weights and biases (FrozenBN of Mask2Former's recipe).

    Raises:
        ConfigError: unknown `arch`, one without the strides or the layers, or batch norms that `checkpoint` would update twice.
        WeightsError: weights that are missing or do not fit.
    """

    @configurable
    def __init__(
        self,
        arch: str,
        weights: str = "",
        frozen: bool = False,
        pyramid_dim: int = 256,
        layers: Sequence[int] = (),
        channels: Sequence[int] = (),
        checkpoint: bool = False,
        trainable_blocks: int = -1,
        freeze_norm: bool = False,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.model: Any
        self.model, plain = _build(arch, weights == "pretrained", layers)
        if weights.startswith("package:"):
            _load(self.model, read_package_weights(weights.removeprefix("package:"), arch), weights)
        elif weights and weights != "pretrained":
            if not Path(weights).is_file():
                raise WeightsError(
                    f"MODEL.BACKBONE.WEIGHTS: {weights!r} is no file; use 'pretrained' (timm downloads them), "
                    f"'package:NAME' with NAME one of {', '.join(PACKAGES)}, the path of a local file, or '' for a random start"
                    f"{in_place_of_file(weights)}"
                )
            _load(self.model, read_state_dict(weights), weights)
        reductions, widths = self.model.feature_info.reduction(), self.model.feature_info.channels()
        self.pyramid: Reassemble | SimpleFeaturePyramid | None = None
        self._divisor = max(reductions)
        if plain:
            patch = reductions[-1]
            if layers:
                self.pyramid = Reassemble(widths[-1], channels, patch)
            else:
                self.pyramid = SimpleFeaturePyramid(widths[-1], pyramid_dim, patch)
                self._divisor = 2 * patch  # its max-pooling
            self._shapes = self.pyramid.output_shape()
        else:
            self._shapes = {
                f"res{i + 2}": ShapeSpec(channels=c, stride=r)
                for i, (c, r) in enumerate(zip(widths, reductions, strict=True))
            }
        if checkpoint:
            (self.model.model if plain else self.model).set_grad_checkpointing()
        if freeze_norm:
            self.model = freeze_batch_norm_2d(self.model)
        if checkpoint and any(isinstance(m, _BatchNorm) for m in self.model.modules()):
            raise ConfigError(
                f"MODEL.BACKBONE.CHECKPOINT_BLOCKS: {arch} has batch norms, whose statistics would take in each batch twice; keep "
                "them as they are with FREEZE_NORM True, or leave CHECKPOINT_BLOCKS False"
            )
        if frozen:
            self.model.requires_grad_(False)
        elif trainable_blocks >= 0:
            if not plain:
                raise ConfigError(f"MODEL.BACKBONE.TRAINABLE_BLOCKS {trainable_blocks}: {arch} is no plain ViT; use -1")
            self._train_last(trainable_blocks, arch)
        self.train()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None) -> dict[str, Any]:
        """Reads the section MODEL.BACKBONE."""
        return {
            "arch": cfg.MODEL.BACKBONE.ARCH,
            "weights": cfg.MODEL.BACKBONE.WEIGHTS,
            "frozen": cfg.MODEL.BACKBONE.FREEZE,
            "pyramid_dim": cfg.MODEL.BACKBONE.PYRAMID_DIM,
            "layers": cfg.MODEL.BACKBONE.LAYERS,
            "channels": cfg.MODEL.BACKBONE.LEVEL_DIMS,
            "checkpoint": cfg.MODEL.BACKBONE.CHECKPOINT_BLOCKS,
            "trainable_blocks": cfg.MODEL.BACKBONE.TRAINABLE_BLOCKS,
            "freeze_norm": cfg.MODEL.BACKBONE.FREEZE_NORM,
        }

    def _train_last(self, count: int, arch: str) -> None:
        vit = self.model.model
        if count > len(vit.blocks):
            raise ConfigError(f"MODEL.BACKBONE.TRAINABLE_BLOCKS is {count}, {arch} has {len(vit.blocks)}")
        self.model.requires_grad_(False)
        for part in (*vit.blocks[len(vit.blocks) - count :], vit.norm):
            part.requires_grad_(True)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Sets the mode; a frozen timm model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    @property
    def size_divisibility(self) -> int:
        """The sides of images must be multiples of this."""
        return self._divisor

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of `res2`..`res5`."""
        return self._shapes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) normalised images, H and W multiples of `size_divisibility`."""
        return self.levels(self.maps(images))

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The network's own maps of the images, (B, C, h, w) each."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            with weights_cast_once(self.model, images.device, with_gradient=False):
                maps: list[torch.Tensor] = self.model(images)
        if self.pyramid is not None:
            return maps
        # some families (Swin) give channels last
        return [
            m if m.shape[1] == shape.channels else m.permute(0, 3, 1, 2).contiguous()
            for m, shape in zip(maps, self._shapes.values(), strict=True)
        ]

    def levels(self, maps: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """`maps` to `res2`..`res5`; those of a plain ViT go through its pyramid."""
        if self.pyramid is not None:
            pyramid: dict[str, torch.Tensor] = self.pyramid(maps if isinstance(self.pyramid, Reassemble) else maps[-1])
            return pyramid
        return dict(zip(self._shapes, maps, strict=True))


def _build(arch: str, pretrained: bool, layers: Sequence[int]) -> tuple[Any, bool]:
    """The feature extractor of timm, and True if it is a plain network of one stride."""
    if not timm.is_model(arch):
        similar = ", ".join(timm.list_models(f"*{arch.split('_')[0]}*")[:5]) or "see timm.list_models()"
        raise ConfigError(f"MODEL.BACKBONE.ARCH: timm has no model {arch!r}; similar: {similar}")
    weights = published(arch) if pretrained else {}
    try:
        probe: Any = timm.create_model(arch, features_only=True, pretrained=False)
        reductions = probe.feature_info.reduction()
        plain = len(set(reductions)) == 1
        if layers:
            blocks = len(getattr(getattr(probe, "model", probe), "blocks", ()))
            if not plain or max(layers) >= blocks:
                raise ConfigError(
                    f"MODEL.BACKBONE.LAYERS {tuple(layers)}: {arch} "
                    + (
                        f"has the blocks 0 to {blocks - 1}"
                        if plain
                        else "is no plain ViT, its stages are taken: use ()"
                    )
                )
            whole = timm.create_model(arch, **weights, num_classes=0, dynamic_img_size=True)
            _as_published(whole, arch)
            return FeatureGetterNet(whole, out_indices=tuple(layers), norm=True), True
        if plain:
            network: Any = timm.create_model(arch, **weights, features_only=True, dynamic_img_size=True)
            _as_published(network.model, arch)
            return network, True
        indices = [reductions.index(stride) for stride in _STRIDES if stride in reductions]
        if len(indices) != len(_STRIDES):
            raise ConfigError(f"MODEL.BACKBONE.ARCH: {arch} has strides {reductions}, not {_STRIDES}")
        return timm.create_model(arch, **weights, features_only=True, out_indices=indices), False
    except ConfigError:
        raise
    except Exception as error:  # timm raises many types
        if not pretrained:
            raise ConfigError(f"MODEL.BACKBONE.ARCH: {arch} cannot be used as a feature extractor: {error}") from error
        raise WeightsError(
            f"{weights['pretrained_cfg_overlay']['file']} does not fit timm's {arch}: {error}"
        ) from error


def published(arch: str) -> dict[str, Any]:
    """Arguments of `timm.create_model` for the published weights of a model, in a file on this machine.

    Raises:
        WeightsError: there are none, or they are not here and cannot be downloaded.
    """
    weights = find(f"timm/{arch}")
    tag = weights.name.partition(".")[2]
    path = fetch(weights.name, f"set MODEL.BACKBONE.WEIGHTS to the file and MODEL.BACKBONE.TAG to {tag}")
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}


def _as_published(vit: Any, arch: str) -> None:
    """Makes DINOv2 without registers resize its position embeddings as in its training, in a way of its own."""
    if arch.startswith("vit_") and "_dinov2" in arch and "_reg" not in arch:
        vit._pos_embed = MethodType(_dinov2_pos_embed, vit)


def _dinov2_pos_embed(vit: Any, x: torch.Tensor) -> torch.Tensor:
    """(B, h, w, C) patches to (B, 1 + h * w, C) tokens with positions, in place of timm's method.

    It is bicubic without antialiasing. The scale is that of a grid a tenth of a cell larger (DINOv2's `interpolate_offset`).
    """
    grid, native, position = tuple(x.shape[1:3]), tuple(vit.patch_embed.grid_size), vit.pos_embed
    if grid != native:
        patches = position[:, 1:].transpose(1, 2).unflatten(2, native).float()
        scale = tuple((side + _DINOV2_OFFSET) / old for side, old in zip(grid, native, strict=True))
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        position = torch.cat([position[:, :1], patches.flatten(2).transpose(1, 2).to(position.dtype)], 1)
    return vit.pos_drop(torch.cat([vit.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], 1) + position)


def _load(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Loads classification weights into a feature extractor.

    The extractor renames `a.b` to `a_b` for its stages, or puts "model." before all names. Those of a ViT may be DINOv2's own.
    """
    own = model.state_dict()
    vit = getattr(model, "model", None)
    if isinstance(vit, VisionTransformer) and "mask_token" in state:
        state = checkpoint_filter_fn(dict(state), vit)
    by_flat_name = {name.removeprefix("model.").replace(".", "_"): name for name in own}
    renamed = {by_flat_name[k.replace(".", "_")]: v for k, v in state.items() if k.replace(".", "_") in by_flat_name}
    missing = [name for name in own if name not in renamed and not name.endswith("num_batches_tracked")]
    wrong = [name for name, value in renamed.items() if value.shape != own[name].shape]
    if missing or wrong:
        raise WeightsError(
            f"{source} does not fit this backbone: {len(missing)} of {len(own)} names missing, {len(wrong)} of other "
            f"shape, first {(missing + wrong)[0]}"
        )
    model.load_state_dict(renamed, strict=False)
