"""Swin Transformers as Mask2Former uses them: detectron2's network, with its published names and a norm behind each stage."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer

from ...errors import ConfigError

# size: channels of the first stage, blocks and heads of each stage (Swin Transformer, Sec. 3.3)
_SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
_WINDOWS = {"7_224": 7, "12_384": 12}  # of pretraining at 224 and 384 pixels
_ARCHITECTURES = {f"swin_{size}_patch4_window{w}": (*_SIZES[size], _WINDOWS[w]) for size in _SIZES for w in _WINDOWS}


@BACKBONE_REGISTRY.register()
class SwinBackbone(SwinTransformer):
    """A Swin Transformer that gives `res2`..`res5`, each behind a norm of its own. No layer is dropped in training.

    Args:
        arch: such as "swin_tiny_patch4_window7_224" or "swin_large_patch4_window12_384".
        frozen: trains no weight of it.

    Raises:
        ConfigError: another `arch`.
    """

    @configurable
    def __init__(self, arch: str, frozen: bool = False) -> None:
        if arch not in _ARCHITECTURES:
            raise ConfigError(f"MODEL.BACKBONE.ARCH: there is no Swin {arch!r}; known: {', '.join(_ARCHITECTURES)}")
        dim, depths, heads, window = _ARCHITECTURES[arch]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid")  # on every start; a matter of detectron2
            super().__init__(embed_dim=dim, depths=depths, num_heads=heads, window_size=window, drop_path_rate=0.0)
        if frozen:
            self.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None) -> dict[str, Any]:
        """Reads the section MODEL.BACKBONE."""
        return {"arch": cfg.MODEL.BACKBONE.ARCH, "frozen": cfg.MODEL.BACKBONE.FREEZE}

    @property
    def size_divisibility(self) -> int:
        """The sides of images must be multiples of this."""
        return 32

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of `res2`..`res5`."""
        return {f"res{i + 2}": ShapeSpec(channels=n, stride=4 * 2**i) for i, n in enumerate(self.num_features)}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) normalised images, H and W multiples of `size_divisibility`."""
        return {f"res{i + 2}": level for i, level in enumerate(super().forward(images).values())}
