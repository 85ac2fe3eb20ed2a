"""Mask2Former, and M2F-Lang: Mask2Former with a text-embedding classifier and zero-shot ensembling (DEARLi, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn

from ...data.taxonomy import Taxonomy
from ...errors import ConfigError
from ..clip.ensembling import geometric_ensemble, mask_pool
from ..clip.text import Vocabulary, build_vocabulary, cosine_similarity, read_templates
from ..mask_classifier import MaskClassifier, PseudoLabeling
from ..segmenter import ReadOut, level_channels
from .criterion import SetCriterion
from .head import MaskFormerHead, build_head
from .transformer_decoder import DecoderOutput


@META_ARCH_REGISTRY.register()
class MaskFormer(MaskClassifier):
    """Mask2Former; with templates M2F-Lang, the model of DEARLi too.

    Args:
        backbone: gives `res2`..`res5`; for M2F-Lang also `clip_vis_dense`, `embed_pooled`, `logit_scale`, `clip_model`.
        sem_seg_head: see `MaskFormerHead`.
        criterion: for training.
        taxonomy: classes; None only in a model that is never asked for panoptic output or text.
        pixel_mean, pixel_std: of 0..255 RGB.
        templates: prompt templates; None makes a linear classifier (Mask2Former).
        ensemble_alpha: weight of the learned posterior at inference (eq. 6); 1 switches the ensemble off.
        uniform_if_empty: see `zero_shot_logits`.
        read_out: what inference returns.
        pseudo_labeling: what `pseudo_label` does.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: MaskFormerHead,
        criterion: SetCriterion,
        taxonomy: Taxonomy | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        templates: Sequence[str] | None = None,
        ensemble_alpha: float = 1.0,
        uniform_if_empty: bool = True,
        read_out: ReadOut = ReadOut(),
        pseudo_labeling: PseudoLabeling = PseudoLabeling(),
    ) -> None:
        super().__init__(backbone, criterion, taxonomy, pixel_mean, pixel_std, read_out, pseudo_labeling)
        self.sem_seg_head = sem_seg_head
        self.templates = templates
        self.ensemble_alpha, self.uniform_if_empty = ensemble_alpha, uniform_if_empty
        self._vocabulary: Vocabulary | None = None
        if templates is not None:
            self.void_embedding = nn.Embedding(1, backbone.embedding_dim)
            nn.init.normal_(self.void_embedding.weight)

    @classmethod
    def from_config(cls, cfg, taxonomy: Taxonomy | None = None) -> dict:
        backbone = build_backbone(cfg)
        text = cfg.MODEL.CLASSIFIER == "text"
        if text and not hasattr(backbone, "embed_pooled"):
            raise ConfigError(
                f"MODEL.CLASSIFIER text needs a backbone with a text tower, MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has none"
            )
        return {
            **cls.common_arguments(cfg, taxonomy),
            "backbone": backbone,
            "sem_seg_head": build_head(
                cfg,
                level_channels(backbone, cfg.MODEL.BACKBONE.NAME),
                backbone.embedding_dim if text else None,
            ),
            "templates": read_templates(cfg.MODEL.TEXT.TEMPLATES) if text else None,
            "ensemble_alpha": cfg.MODEL.ENSEMBLE.ALPHA if text and cfg.MODEL.ENSEMBLE.AT_INFERENCE else 1.0,
            "uniform_if_empty": cfg.MODEL.ENSEMBLE.EMPTY_MASKS == "uniform",
        }

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """Also accepts published checkpoints, which hold the criterion's constant weights (one criterion, or one for
        labels and one for pseudo-labels); they follow from the config. New weights make the text embeddings stale."""
        for name in [n for n in state_dict if n.startswith(f"{prefix}criterion") and n.endswith("empty_weight")]:
            del state_dict[name]
        self.forget_vocabulary()
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ------------------------------------------------------------------------------------------ classes

    @property
    def vocabulary(self) -> Vocabulary:
        """Text embeddings of the taxonomy, made on first use: the text tower may be loaded after construction."""
        if self._vocabulary is None:
            if self.taxonomy is None:
                raise ConfigError(
                    "the text classifier has no class names: register the data set of DATASETS.TRAIN, load a checkpoint "
                    "of this project, or give --text"
                )
            self._vocabulary = build_vocabulary(
                self.backbone.clip_model, self.backbone.arch, self.taxonomy.text_names, self.templates
            )
        return self._vocabulary.to(self.device)

    def forget_vocabulary(self) -> None:
        """Makes the text embeddings anew on next use (other names, other weights)."""
        self._vocabulary = None

    def set_taxonomy(self, taxonomy: Taxonomy) -> None:
        """Other classes from now on; only a text classifier can change them.

        Raises:
            ConfigError: for a linear classifier with another number of classes.
        """
        if self.templates is None:
            super().set_taxonomy(taxonomy)
        self.taxonomy = taxonomy
        self.forget_vocabulary()

    def class_logits(self, class_outputs: torch.Tensor) -> torch.Tensor:
        """Class outputs of the decoder (..., Q, K + 1 or E) to logits (..., Q, K + 1), last = no object."""
        if self.templates is None:  # linear, or none at all
            return class_outputs
        scale = self.sem_seg_head.predictor.logit_scale.exp().clamp(max=100)
        void = cosine_similarity(class_outputs, self.void_embedding.weight)
        return scale * torch.cat([self.vocabulary.cosine(class_outputs), void], -1)

    def zero_shot_logits(self, features: dict[str, torch.Tensor], mask_logits: torch.Tensor) -> torch.Tensor:
        """(B, Q, K): CLIP's classification of its features pooled under (B, Q, H, W) masks. A mask that covers no cell
        gets equal logits, so that its posterior is uniform; or, where `uniform_if_empty` is off, what CLIP's head makes of a
        zero vector, as in the authors' code: the same classes for all such masks."""
        pooled = mask_pool(features["clip_vis_dense"], mask_logits)
        logits = self.backbone.logit_scale() * self.vocabulary.cosine(self.backbone.embed_pooled(pooled))
        if not self.uniform_if_empty:
            return logits
        empty = (pooled == 0).all(-1, keepdim=True)
        return torch.where(empty, torch.zeros_like(logits), logits)

    # ------------------------------------------------------------------------------------------ passes

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        images, targets = self.inputs_of(streams)
        return self.stream_losses(streams, self.sem_seg_head(self.backbone(images)), targets)

    def network(self, images: torch.Tensor) -> DecoderOutput:
        """All predictions for normalised (B, 3, H, W) images, as inference makes them."""
        return self.sem_seg_head(self.backbone(images))

    def predict(self, images: torch.Tensor, alpha: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Final predictions for normalised (B, 3, H, W) images.

        Args:
            alpha: weight of the learned posterior; None = `ensemble_alpha`.

        Returns:
            (B, Q, K + 1) class logits, or log-probabilities where the ensemble is on; (B, Q, H/4, W/4) mask logits.
        """
        alpha = self.ensemble_alpha if alpha is None else alpha
        features = self.backbone(images)
        output = self.sem_seg_head(features)
        class_logits, mask_logits = self.class_logits(output.class_outputs[-1]), output.mask_logits()
        if alpha < 1:
            class_logits = geometric_ensemble(class_logits, self.zero_shot_logits(features, mask_logits), alpha)
        return class_logits, mask_logits

    def predict_labels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.predict(images, self.pseudo_labeling.alpha)
