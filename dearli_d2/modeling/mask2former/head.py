"""Pixel decoder and transformer decoder as one head, under the published names `pixel_decoder` and `predictor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..backbone.pyramid import LEVELS
from ..linear import Linear
from ..precision import weights_cast_once
from .pixel_decoder import MSDeformAttnPixelDecoder, PixelFeatures, Refinement
from .transformer_decoder import MLP, DecoderOutput, GivenQueries, MultiScaleMaskedTransformerDecoder

# gets a decoder, the size of its finest map and its arguments; returns its output
RunDecoder = Callable[..., Any]


def _run(decoder: nn.Module, size: torch.Size, *args: Any) -> Any:
    return decoder(*args)


class MaskFormerHead(nn.Module):
    """Backbone features to predictions; see the two parts.

    `run_decoder` calls the two parts. `compile_decoders` replaces it.
    """

    def __init__(self, pixel_decoder: MSDeformAttnPixelDecoder, predictor: MultiScaleMaskedTransformerDecoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.run_decoder: RunDecoder = _run

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        """Predictions from the levels of a backbone, (B, C_l, H_l, W_l) each by name."""
        return self.queries(self.pixels(features))

    def pixels(self, features: dict[str, torch.Tensor], refine: Refinement | None = None) -> PixelFeatures:
        """Runs the pixel decoder. The arguments are those of its `forward`."""
        fine = features[LEVELS[0]]
        with weights_cast_once(self.pixel_decoder, fine.device):
            result: PixelFeatures = self.run_decoder(self.pixel_decoder, fine.shape[-2:], features, refine)
        return result

    def queries(self, pixels: PixelFeatures, given: GivenQueries | None = None) -> DecoderOutput:
        """Runs the transformer decoder. The arguments are those of its `forward`."""
        fine = pixels.mask_features
        with weights_cast_once(self.predictor, fine.device):
            result: DecoderOutput = self.run_decoder(self.predictor, fine.shape[-2:], pixels, given)
        return result


def build_head(
    cfg: CfgNode,
    in_channels: dict[str, int],
    *,
    num_queries: int,
    num_classes: int | None = None,
    embedding_dim: int | None = None,
) -> MaskFormerHead:
    """Both decoders with the sizes of a config.

    With neither `num_classes` nor `embedding_dim` the decoder is class-agnostic.

    Args:
        cfg: the config; it says nothing about queries and classes here.
        in_channels: channels of the backbone's maps.
        num_queries: learned queries.
        num_classes: K of a linear classifier, which gets K + 1 outputs.
        embedding_dim: width E of the text space of a text classifier.
    """
    decoder, former = cfg.MODEL.PIXEL_DECODER, cfg.MODEL.MASK_FORMER
    dim = former.HIDDEN_DIM
    class_head: nn.Module | None = None
    if embedding_dim is not None:
        class_head = MLP(dim, dim, embedding_dim, 3)
    elif num_classes is not None:
        class_head = Linear(dim, num_classes + 1)
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
            num_queries=num_queries,
            heads=former.HEADS,
            feedforward_dim=former.FEEDFORWARD_DIM,
            layers=former.LAYERS,
            logit_scale=embedding_dim is not None,
            mask_pooling=former.MASK_POOLING,
        ),
    )
