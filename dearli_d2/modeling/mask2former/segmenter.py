"""A segmenter with the decoders of Mask2Former; its methods differ in queries, classifier and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import nn

from ...data.taxonomy import Taxonomy
from ..mask_classifier import MaskClassifier, PseudoLabeling
from ..segmenter import ReadOut, level_channels
from .criterion import Criterion
from .head import MaskFormerHead, build_head
from .names import our_names
from .transformer_decoder import DecoderOutput


class MaskFormerSegmenter(MaskClassifier):
    """Backbone, pixel decoder and transformer decoder (Mask2Former, Sec. 3.2). Its classes are those of the decoder.

    Args:
        backbone: gives `res2`..`res5`.
        sem_seg_head: the two decoders; the name is that of published checkpoints.
        criterion: the losses.
        taxonomy: the classes; None only in a model that is never asked for panoptic output or text.
        pixel_mean: mean of 0..255 RGB, 3 values.
        pixel_std: deviation of 0..255 RGB, 3 values.
        read_out: what inference returns.
        pseudo_labeling: how `pseudo_label` labels.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: MaskFormerHead,
        criterion: Criterion,
        taxonomy: Taxonomy | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        read_out: ReadOut = ReadOut(),
        pseudo_labeling: PseudoLabeling = PseudoLabeling(),
    ) -> None:
        super().__init__(backbone, criterion, taxonomy, pixel_mean, pixel_std, read_out, pseudo_labeling)
        self.sem_seg_head = sem_seg_head

    @classmethod
    def linear_arguments(
        cls, cfg: CfgNode, taxonomy: Taxonomy | None, criterion: Criterion | None = None
    ) -> dict[str, Any]:
        """The constructor's arguments from a config without a text classifier.

        Args:
            cfg: the config.
            taxonomy: the classes.
            criterion: None = the one of the config.
        """
        backbone = build_backbone(cfg)
        head = build_head(
            cfg,
            level_channels(backbone, cfg.MODEL.BACKBONE.NAME),
            num_queries=cfg.MODEL.MASK_FORMER.NUM_QUERIES,
            num_classes=None if cfg.MODEL.CLASSIFIER == "none" else cfg.MODEL.NUM_CLASSES,
        )
        return {**cls.common_arguments(cfg, taxonomy, criterion), "backbone": backbone, "sem_seg_head": head}

    def own_names(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return our_names(state)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """Also accepts published checkpoints, which hold the constant weights of one criterion or of two.

        These follow from the config. New weights make text embeddings stale.
        """
        for name in [n for n in state_dict if n.startswith(f"{prefix}criterion") and n.endswith("empty_weight")]:
            del state_dict[name]
        self.forget_vocabulary()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_taxonomy(self, taxonomy: Taxonomy) -> None:
        super().set_taxonomy(taxonomy)
        self.forget_vocabulary()

    def forget_vocabulary(self) -> None:
        """Drops text embeddings that a method keeps, since names or weights have changed."""

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        images, targets = self.inputs_of(streams)
        return self.stream_losses(streams, self.network(images), targets)

    def network(self, images: torch.Tensor) -> DecoderOutput:
        """All predictions for normalised (B, 3, H, W) images."""
        return self.sem_seg_head(self.backbone(images))

    def predict(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.network(images)
        return self.class_logits(output.class_outputs[-1]), output.mask_logits()
