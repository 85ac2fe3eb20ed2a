"""Mask2Former, and M2F-Lang: Mask2Former with a text-embedding classifier and zero-shot ensembling (DEARLi, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import nn

from ...data.taxonomy import Taxonomy
from ...errors import ConfigError
from ...structures import Targets
from ..clip.ensembling import geometric_ensemble, mask_pool
from ..clip.text import Vocabulary, build_vocabulary, cosine_similarity, read_templates
from ..segmenter import ReadOut, Segmenter, level_channels
from .criterion import SetCriterion
from .head import MaskFormerHead, build_head
from .inference import (
    instance_inference,
    panoptic_inference,
    panoptic_regions,
    resize_logits,
    segments_of,
    semantic_inference,
)
from .matcher import HungarianMatcher
from .transformer_decoder import DecoderOutput


@dataclass(frozen=True)
class PseudoLabeling:
    """How a teacher labels (keys `SSL.*`): weight of the learned posterior (eq. 6; 1 = no ensemble), thresholds of the
    panoptic read-out, least area of a segment in pixels, and the weight of the losses that pseudo-labels give."""

    alpha: float = 0.6
    object_threshold: float = 0.0
    overlap_threshold: float = 0.8
    min_area: int = 0
    loss_weight: float = 1.0


@META_ARCH_REGISTRY.register()
class MaskFormer(Segmenter):
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
        super().__init__(backbone, taxonomy, pixel_mean, pixel_std, read_out)
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.templates = templates
        self.ensemble_alpha, self.uniform_if_empty = ensemble_alpha, uniform_if_empty
        self.pseudo_labeling = pseudo_labeling
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
        former = cfg.MODEL.MASK_FORMER
        weights = {
            "class_weight": 0.0 if cfg.MODEL.CLASSIFIER == "none" else former.CLASS_WEIGHT,
            "mask_weight": former.MASK_WEIGHT,
            "dice_weight": former.DICE_WEIGHT,
        }
        return {
            "backbone": backbone,
            "sem_seg_head": build_head(
                cfg,
                level_channels(backbone, cfg.MODEL.BACKBONE.NAME),
                backbone.embedding_dim if text else None,
            ),
            "criterion": SetCriterion(
                cfg.MODEL.NUM_CLASSES,
                HungarianMatcher(**weights, num_points=former.TRAIN_NUM_POINTS),
                **weights,
                no_object_weight=former.NO_OBJECT_WEIGHT,
                num_points=former.TRAIN_NUM_POINTS,
                oversample_ratio=former.OVERSAMPLE_RATIO,
                importance_sample_ratio=former.IMPORTANCE_SAMPLE_RATIO,
            ),
            "taxonomy": taxonomy,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "templates": read_templates(cfg.MODEL.TEXT.TEMPLATES) if text else None,
            "ensemble_alpha": cfg.MODEL.ENSEMBLE.ALPHA if text and cfg.MODEL.ENSEMBLE.AT_INFERENCE else 1.0,
            "uniform_if_empty": cfg.MODEL.ENSEMBLE.EMPTY_MASKS == "uniform",
            "read_out": ReadOut.from_config(cfg),
            "pseudo_labeling": PseudoLabeling(
                alpha=cfg.MODEL.ENSEMBLE.ALPHA if text and cfg.MODEL.ENSEMBLE.IN_PSEUDO_LABELS else 1.0,
                object_threshold=cfg.SSL.OBJECT_THRESHOLD,
                overlap_threshold=cfg.SSL.OVERLAP_THRESHOLD,
                min_area=cfg.SSL.MIN_AREA,
                loss_weight=cfg.SSL.LOSS_WEIGHT,
            ),
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
        if self.templates is None and len(taxonomy) != len(self.criterion.empty_weight) - 1:
            raise ConfigError(
                f"this model has a linear classifier for {len(self.criterion.empty_weight) - 1} classes; only a text "
                "classifier (M2F-Lang) can take other classes"
            )
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

    def outputs(self, batch: list[dict]) -> list[dict]:
        images = self.preprocess(batch)
        class_logits, mask_logits = self.predict(images.tensor)
        return [
            self._read_out(class_logits[i : i + 1], mask_logits[i : i + 1], images, i, x) for i, x in enumerate(batch)
        ]

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        samples = [x for stream in streams.values() for x in stream]
        images = self.preprocess(samples)
        targets = [x["targets"].to(self.device).padded(*images.tensor.shape[-2:]) for x in samples]
        return self.stream_losses(streams, self.sem_seg_head(self.backbone(images.tensor)), targets)

    def stream_losses(
        self, streams: dict[str, list[dict]], output: DecoderOutput, targets: Sequence[Targets]
    ) -> dict[str, torch.Tensor]:
        """Losses of each stream with its own normalisers; the batch holds one stream after another."""
        groups = [("" if name == "labeled" else f"{name}_", len(stream)) for name, stream in streams.items()]
        losses = self.criterion(self.class_logits(output.class_outputs), output, targets, groups)
        weight = self.pseudo_labeling.loss_weight
        return {name: loss * weight if name.startswith("unlabeled_") else loss for name, loss in losses.items()}

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

    def semantic_scores(self, class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
        """(B, Q, K + 1) and (B, Q, H, W) to (B, K, H, W): what TEST.SEMANTIC_ON returns."""
        return semantic_inference(class_logits, mask_logits)

    def scores(self, inputs: ImageList, samples: list[dict]) -> torch.Tensor:
        class_logits, mask_logits = self.predict(inputs.tensor)
        return self.semantic_scores(class_logits, resize_logits(mask_logits, inputs.tensor.shape[-2:]))

    @torch.no_grad()
    def pseudo_label(self, inputs: list[dict]) -> list[Targets]:
        """Hard labels and masks of weak views, as the teacher of semi-supervised training gives them (DEARLi, Sec. 3.2).

        The panoptic read-out of the (ensembled) posterior: segments do not overlap, stuff of one class is one segment.

        Args:
            inputs: "image" (3, H, W) 0..255, all of one size, and optionally "inside" (H, W) bool: segments are cut to it.

        Returns:
            On the device, one per image; where "inside" is False nothing is valid.
        """
        images = self.preprocess(inputs)
        size, options = inputs[0]["image"].shape[-2:], self.pseudo_labeling
        class_logits, mask_logits = self.predict(images.tensor, options.alpha)
        regions, valid = [], []
        for index, sample in enumerate(inputs):  # one image at a time: full-size masks of all queries are large
            logits, masks = class_logits[index : index + 1], mask_logits[index : index + 1]
            if self.device.type == "cpu":  # few queries are objects; on a GPU to know them means to wait
                objects = (logits[0].argmax(-1) < logits.shape[-1] - 1).nonzero()[:, 0]
                rows = objects if len(objects) else slice(0, 1)
                logits, masks = logits[:, rows], masks[:, rows]
            full = resize_logits(masks, images.tensor.shape[-2:])[..., : size[0], : size[1]]
            thresholds = options.object_threshold, options.overlap_threshold
            region = panoptic_regions(logits, full, self.taxonomy.thing_ids, *thresholds)
            inside = sample["inside"].to(self.device, non_blocking=True) if "inside" in sample else None
            if inside is not None:
                region.panoptic.mul_(inside)
            regions.append(region)
            valid.append(inside)
        return [
            Targets(labels, masks, v)
            for (labels, masks), v in zip(segments_of(regions, options.min_area), valid, strict=True)
        ]

    def _read_out(
        self, class_logits: torch.Tensor, mask_logits: torch.Tensor, images: ImageList, index: int, inputs: dict
    ) -> dict:
        """Outputs of one image at its asked size; (1, Q, ...) inputs."""
        height, width = images.image_sizes[index]
        mask_logits = resize_logits(mask_logits, images.tensor.shape[-2:])[..., :height, :width]
        mask_logits = resize_logits(mask_logits, (inputs.get("height", height), inputs.get("width", width)))
        result, options = {}, self.read_out
        if options.semantic:
            result["sem_seg"] = self.semantic_scores(class_logits, mask_logits)[0]
        if options.panoptic or options.instance:
            if self.taxonomy is None:
                raise ConfigError("panoptic and instance read-out need to know which classes are things: no taxonomy")
            things = self.taxonomy.thing_ids
        if options.panoptic:
            thresholds = options.object_threshold, options.overlap_threshold
            result["panoptic_seg"] = panoptic_inference(class_logits, mask_logits, things, *thresholds)[0]
        if options.instance:
            result["instances"] = instance_inference(class_logits, mask_logits, things, options.topk)[0]
        return result
