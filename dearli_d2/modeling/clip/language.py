"""The CLIP model that a method asks for text and recognition: the backbone itself, or a frozen one beside it."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn

from ...errors import ConfigError
from ..backbone.open_clip import OpenCLIPBackbone, build_frozen_clip


def language_beside(cfg: CfgNode, backbone: nn.Module) -> OpenCLIPBackbone | None:
    """The frozen CLIP of MODEL.TEXT.ENCODER; None where the backbone is a CLIP model and nothing else is asked for.

    Raises:
        ConfigError: neither is there. WeightsError: weights that cannot be had.
    """
    if cfg.MODEL.TEXT.ENCODER:
        return build_frozen_clip(cfg.MODEL.TEXT.ENCODER, cfg.MODEL.TEXT.WEIGHTS, cfg.MODEL.TEXT.TAG)
    if isinstance(backbone, OpenCLIPBackbone):
        return None
    raise ConfigError(
        f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has no text tower: {cfg.MODEL.META_ARCHITECTURE} needs an OpenCLIP "
        "backbone, or a CLIP model beside it, MODEL.TEXT.ENCODER and MODEL.TEXT.WEIGHTS"
    )


def clip_normalization(clip: OpenCLIPBackbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of 0..255 RGB that the weights of a CLIP model expect, (3, 1, 1) each."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    return mean, std
