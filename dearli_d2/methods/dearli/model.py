"""DEARLi's model, M2F-Lang: Mask2Former with a text classifier and zero-shot recognition of its masks (DEARLi, Sec. 3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import build_backbone
from torch import nn

from ...data.taxonomy import Taxonomy, names_in
from ...errors import ConfigError
from ...modeling.clip.ensembling import geometric_ensemble, mask_pool
from ...modeling.clip.text import (
    GivenVocabulary,
    Vocabulary,
    build_vocabulary,
    padded_embeddings,
    read_templates,
    text_fingerprint,
)
from ...modeling.mask2former.head import build_head
from ...modeling.mask2former.segmenter import MaskFormerSegmenter
from ...modeling.mask_classifier import Scoring
from ...modeling.segmenter import Words, level_channels


class DEARLi(MaskFormerSegmenter):
    """Queries are classified by their cosine with text embeddings of the class names and with a learned "no object".

    Args:
        templates: prompt templates of the text embeddings.
        ensemble_alpha: weight of the learned posterior at inference (eq. 6); 1 switches the ensemble off.
        seen: class names of the training, in lower case; classes without one of them have `alpha_unseen` in place of
            `ensemble_alpha` (FC-CLIP). Empty = all classes are seen.
        alpha_unseen: see `seen`.
        uniform_if_empty: see `zero_shot_logits`.
        core: see `MaskFormerSegmenter`; the backbone also gives `clip_vis_dense`, `embed_pooled`, `logit_scale` and
            `clip_model`.
    """

    takes_words = True

    @configurable
    def __init__(
        self,
        *,
        templates: Sequence[str],
        ensemble_alpha: float = 1.0,
        seen: Collection[str] = (),
        alpha_unseen: float = 1.0,
        uniform_if_empty: bool = True,
        **core: Any,
    ) -> None:
        super().__init__(**core)
        self.templates = templates
        self.ensemble_alpha, self.uniform_if_empty = ensemble_alpha, uniform_if_empty
        self.seen, self.alpha_unseen = frozenset(seen), alpha_unseen
        self._vocabulary: Vocabulary | GivenVocabulary | None = None
        self.void_embedding = nn.Embedding(1, self.backbone.embedding_dim)
        nn.init.normal_(self.void_embedding.weight)

    @classmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        if not hasattr(backbone, "embed_pooled"):
            raise ConfigError(
                f"MODEL.CLASSIFIER text needs a backbone with a text tower, MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has none"
            )
        channels, ensemble = level_channels(backbone, cfg.MODEL.BACKBONE.NAME), cfg.MODEL.ENSEMBLE
        return {
            **cls.common_arguments(cfg, taxonomy),
            "backbone": backbone,
            "sem_seg_head": build_head(
                cfg, channels, num_queries=cfg.MODEL.MASK_FORMER.NUM_QUERIES, embedding_dim=backbone.embedding_dim
            ),
            "templates": read_templates(cfg.MODEL.TEXT.TEMPLATES),
            "ensemble_alpha": ensemble.ALPHA if ensemble.AT_INFERENCE else 1.0,
            "seen": names_in(ensemble.SEEN, "MODEL.ENSEMBLE.SEEN") if ensemble.SEEN else (),
            "alpha_unseen": ensemble.ALPHA_UNSEEN if ensemble.AT_INFERENCE else 1.0,
            "uniform_if_empty": ensemble.EMPTY_MASKS == "uniform",
        }

    @property
    def vocabulary(self) -> Vocabulary | GivenVocabulary:
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
        self._vocabulary = None

    def set_taxonomy(self, taxonomy: Taxonomy) -> None:
        """Takes other classes, as many as there are names."""
        self.taxonomy = taxonomy
        self.forget_vocabulary()

    def class_logits(self, class_outputs: torch.Tensor) -> torch.Tensor:
        """(..., Q, E) embeddings of the decoder to (..., Q, K + 1) logits, last = no object."""
        scale = self.sem_seg_head.predictor.logit_scale.exp().clamp(max=100)
        return scale * self.vocabulary.cosine(class_outputs, self.void_embedding.weight)

    def inference_alpha(self) -> float | torch.Tensor:
        """Weight of the learned posterior at inference; (K,) where seen and unseen classes have different ones."""
        if not self.seen or self.alpha_unseen == self.ensemble_alpha:
            return self.ensemble_alpha
        names = self.known_taxonomy().text_names
        seen = [any(name.lower() in self.seen for name in synonyms) for synonyms in names]
        return torch.where(torch.tensor(seen, device=self.device), self.ensemble_alpha, self.alpha_unseen)

    def zero_shot_logits(self, features: dict[str, torch.Tensor], mask_logits: torch.Tensor) -> torch.Tensor:
        """CLIP's classification of its own features, pooled under the masks (eq. 4 and 5).

        A mask that covers no cell gets equal logits, so that its posterior is uniform. Where `uniform_if_empty` is off it
        gets what CLIP's head makes of a zero vector, the same classes for all such masks, as in the authors' code.

        Args:
            features: of the backbone.
            mask_logits: (B, Q, H, W).

        Returns:
            (B, Q, K), scaled by CLIP's temperature.
        """
        pooled = mask_pool(features["clip_vis_dense"], mask_logits)
        logits = self.backbone.logit_scale() * self.vocabulary.cosine(self.backbone.embed_pooled(pooled))
        if not self.uniform_if_empty:
            return logits
        empty = (pooled == 0).all(-1, keepdim=True)
        return torch.where(empty, torch.zeros_like(logits), logits)

    def words(self) -> Words:
        alpha, vocabulary = self.inference_alpha(), self.vocabulary
        clip = self.backbone
        assert isinstance(vocabulary, Vocabulary)  # the given one lives within `raw_outputs_of`
        return Words(
            padded_embeddings(vocabulary),
            alpha if isinstance(alpha, torch.Tensor) else None,
            text_fingerprint(clip.clip_model, clip.arch, self.templates),
        )

    def raw_outputs_of(
        self, images: torch.Tensor, embeddings: torch.Tensor, alpha: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        own, self._vocabulary = self._vocabulary, GivenVocabulary(embeddings)
        try:
            class_logits, mask_logits = self.predict(images, alpha)
        finally:
            self._vocabulary = own
        return {"class_logits": class_logits, "mask_logits": mask_logits}

    @property
    def scoring(self) -> Scoring:
        alpha = self.inference_alpha()
        return Scoring(ensembled=isinstance(alpha, torch.Tensor) or alpha < 1)

    def predict(
        self, images: torch.Tensor, alpha: float | torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Final predictions for normalised (B, 3, H, W) images.

        Args:
            alpha: weight of the learned posterior; None = `inference_alpha`.

        Returns:
            (B, Q, K + 1) class logits, or log-probabilities where the ensemble is on; (B, Q, H/4, W/4) mask logits.
        """
        alpha = self.inference_alpha() if alpha is None else alpha
        features = self.backbone(images)
        output = self.sem_seg_head(features)
        class_logits, mask_logits = self.class_logits(output.class_outputs[-1]), output.mask_logits()
        if isinstance(alpha, torch.Tensor) or alpha < 1:
            class_logits = geometric_ensemble(class_logits, self.zero_shot_logits(features, mask_logits), alpha)
        return class_logits, mask_logits

    def opinions(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The semantic scores of the learned and of the zero-shot classifier."""
        alphas = {"learned": 1.0, "zero-shot": 0.0}
        return {name: self.semantic_scores(*self.predict(images, alpha)) for name, alpha in alphas.items()}

    def predict_labels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.predict(images, self.pseudo_labeling.alpha)
