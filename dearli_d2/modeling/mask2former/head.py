"""Pixel decoder and transformer decoder as one head, under the published names `pixel_decoder` and `predictor`."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn

from ..backbone.pyramid import LEVELS
from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MLP, DecoderOutput, MultiScaleMaskedTransformerDecoder


class MaskFormerHead(nn.Module):
    """Backbone features to predictions; see the two parts."""

    def __init__(self, pixel_decoder: MSDeformAttnPixelDecoder, predictor: MultiScaleMaskedTransformerDecoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        return self.predictor(self.pixel_decoder(features))


def build_head(cfg: CfgNode, in_channels: dict[str, int], embedding_dim: int | None) -> MaskFormerHead:
    """From the config; `embedding_dim` is the width of the text space of a text classifier."""
    decoder, former = cfg.MODEL.PIXEL_DECODER, cfg.MODEL.MASK_FORMER
    dim = former.HIDDEN_DIM
    class_head = {
        "linear": lambda: nn.Linear(dim, cfg.MODEL.NUM_CLASSES + 1),
        "text": lambda: MLP(dim, dim, embedding_dim, 3),
        "none": lambda: None,
    }[cfg.MODEL.CLASSIFIER]()
    return MaskFormerHead(
        MSDeformAttnPixelDecoder(
            {name: in_channels[name] for name in LEVELS},
            dim=decoder.DIM,
            mask_dim=former.MASK_DIM,
            feedforward_dim=decoder.FEEDFORWARD_DIM,
            heads=decoder.HEADS,
            points=decoder.POINTS,
            layers=decoder.LAYERS,
            implementation=cfg.MODEL.DEFORM_ATTN_IMPL,
        ),
        MultiScaleMaskedTransformerDecoder(
            decoder.DIM,
            class_head,
            dim=dim,
            mask_dim=former.MASK_DIM,
            num_queries=former.NUM_QUERIES,
            heads=former.HEADS,
            feedforward_dim=former.FEEDFORWARD_DIM,
            layers=former.LAYERS,
            logit_scale=cfg.MODEL.CLASSIFIER == "text",
        ),
    )
