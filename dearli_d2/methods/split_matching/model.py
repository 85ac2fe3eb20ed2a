"""Split Matching: inductive zero-shot semantic segmentation (Chen et al.).

It has queries for annotated classes, and queries for regions that nobody annotated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import build_backbone
from torch import nn

from ...data.taxonomy import Taxonomy
from ...data.zero_shot import unseen_classes
from ...errors import ConfigError
from ...modeling.backbone.open_clip import OpenCLIPBackbone
from ...modeling.clip.ensembling import mask_pool
from ...modeling.clip.language import clip_normalization, language_beside
from ...modeling.clip.text import Vocabulary, build_vocabulary, read_templates
from ...modeling.mask2former.head import build_head
from ...modeling.mask2former.mask_losses import point_options
from ...modeling.mask2former.matcher import loss_weights
from ...modeling.mask2former.pixel_decoder import PixelFeatures
from ...modeling.mask2former.segmenter import MaskFormerSegmenter
from ...modeling.mask2former.transformer_decoder import MLP, DecoderOutput, GivenQueries
from ...modeling.mask_classifier import Scoring
from ...modeling.norms import norm_on
from ...modeling.segmenter import level_channels
from ...structures import Targets
from .matching import (
    FocalIoUMatcher,
    MultiScaleEnhancement,
    SplitCriterion,
    SplitMatcher,
    label_map,
    pixel_losses,
)
from .options import RegionOptions, SplitOptions
from .region_folder import RegionFolder
from .regions import RegionFinder, RegionSettings, candidate_masks, equal_stripes
from .structures import Regions, SplitTargets

_START_PROBABILITY = 0.01  # of a class, as focal losses want it


class SplitMatching(MaskFormerSegmenter):
    """Mask2Former that classifies a query by its cosine with text embeddings, and in training also with those of regions.

    Args:
        options: see `SplitOptions`.
        mfe_norm: norm of the auxiliary head on the device of the run.
        language: frozen CLIP model beside the backbone; None = the backbone itself, which must then be frozen.
        clip_mean: mean of 0..255 RGB for CLIP, 3 values.
        clip_std: deviation of 0..255 RGB for CLIP, 3 values.
        region_settings: settings of the regions that are found during training.
        unseen: names of the classes that training does not know.
        fixed_templates: prompt templates of the text embeddings.
        level_dim: channels of the pixel decoder.
        ensemble_alpha: weight of the learned posterior at inference; 1 leaves CLIP's out.
        core: see `MaskFormerSegmenter`.
    """

    seen_index: torch.Tensor
    language_model: OpenCLIPBackbone | None

    @configurable
    def __init__(
        self,
        *,
        options: SplitOptions,
        mfe_norm: str,
        language: OpenCLIPBackbone | None,
        clip_mean: torch.Tensor,
        clip_std: torch.Tensor,
        region_settings: RegionSettings,
        unseen: Sequence[str],
        fixed_templates: Sequence[str],
        level_dim: int,
        ensemble_alpha: float,
        **core: Any,
    ) -> None:
        super().__init__(**core)
        self.options, self.ensemble_alpha = options, ensemble_alpha
        self.fixed_templates = fixed_templates
        self.language_model = language
        self.unseen_names = tuple(unseen)
        classes = self.criterion.num_classes + len(unseen)
        self.register_buffer("seen_index", torch.full((classes,), -1), persistent=False)
        self._text: dict[tuple[int, ...], Vocabulary] = {}
        self._noise: list[torch.Tensor] = []
        if self.taxonomy is not None:  # else a checkpoint brings the names
            self.set_taxonomy(self.taxonomy)
        self.class_bias = nn.Parameter(torch.tensor(_START_PROBABILITY).logit())
        self.enhancement = (
            MultiScaleEnhancement(
                level_dim, self.language.embedding_dim, self.sem_seg_head.predictor.num_levels, mfe_norm
            )
            if options.mfe_weight
            else None
        )
        width = self.language.embedding_dim
        self.candidate_mlp = (
            MLP(width, width, width, 2)
            if options.candidate_embedding == "dense_mlp" and options.candidate_queries
            else None
        )
        self.finder = RegionFinder(self.language, clip_mean, clip_std, region_settings)

    @classmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict[str, Any]:
        """The constructor's arguments from a config.

        Raises:
            ConfigError: the CLIP model is not frozen.
        """
        split, former = SplitOptions.of(cfg), cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        language = language_beside(cfg, backbone)
        clip = language or backbone
        if not clip.frozen:
            raise ConfigError(
                "regions come from a frozen CLIP model: set MODEL.BACKBONE.FREEZE True, or MODEL.TEXT.ENCODER to one beside it"
            )
        head = build_head(
            cfg,
            level_channels(backbone, cfg.MODEL.BACKBONE.NAME),
            num_queries=former.NUM_QUERIES + split.candidate_queries,
            embedding_dim=clip.embedding_dim,
        )
        mean, std = torch.tensor(cfg.MODEL.PIXEL_MEAN), torch.tensor(cfg.MODEL.PIXEL_STD)
        if language is not None:
            mean, std = clip_normalization(language)
        return {
            **cls.common_arguments(cfg, taxonomy, build_criterion(cfg)),
            "backbone": backbone,
            "sem_seg_head": head,
            "options": split,
            "mfe_norm": norm_on(cfg.MODEL.DEVICE, split.mfe_norm),
            "language": language,
            "clip_mean": mean,
            "clip_std": std,
            "region_settings": region_settings(cfg),
            "unseen": cfg.DATASETS.UNSEEN_CLASSES,
            "fixed_templates": read_templates(cfg.MODEL.TEXT.TEMPLATES),
            "level_dim": cfg.MODEL.PIXEL_DECODER.DIM,
            "ensemble_alpha": cfg.MODEL.ENSEMBLE.ALPHA if cfg.MODEL.ENSEMBLE.AT_INFERENCE else 1.0,
        }

    # ------------------------------------------------------------------------------------------ classes

    @property
    def language(self) -> OpenCLIPBackbone:
        """The frozen CLIP model."""
        return self.backbone if self.language_model is None else self.language_model

    def set_taxonomy(self, taxonomy: Taxonomy) -> None:
        if len(taxonomy) != len(self.seen_index):
            raise ConfigError(
                f"{len(taxonomy)} class names, this model has {len(self.seen_index)} seen and unseen classes together"
            )
        self.unseen = unseen_classes(self.unseen_names, taxonomy)  # fails before anything has changed
        self.taxonomy = taxonomy
        self.seen = tuple(c for c in range(len(taxonomy)) if c not in self.unseen)
        self.seen_index.fill_(-1)
        self.seen_index[list(self.seen)] = torch.arange(len(self.seen), device=self.seen_index.device)
        self.forget_vocabulary()

    def forget_vocabulary(self) -> None:
        super().forget_vocabulary()
        self._text = {}

    def text(self, classes: tuple[int, ...]) -> Vocabulary:
        """Text embeddings of some classes. The names of the others are not read."""
        if self.taxonomy is None:
            raise ConfigError("there are no class names: register the data set of DATASETS.TRAIN or load a checkpoint")
        if classes not in self._text:
            names = [self.taxonomy.text_names[c] for c in classes]
            language = self.language
            self._text[classes] = build_vocabulary(language.clip_model, language.arch, names, self.fixed_templates)
        return self._text[classes].to(self.device)

    def _logits(self, cosines: torch.Tensor) -> torch.Tensor:
        scale = self.sem_seg_head.predictor.logit_scale.exp().clamp(max=100)
        return scale * cosines + self.class_bias

    # ------------------------------------------------------------------------------------------ training

    def cache_settings(self, cfg: CfgNode) -> dict:
        """The entries of a cache's manifest: CLIP and its weights, clustering, data, and the annotated classes."""
        finder, digest = self.finder, hashlib.sha256()
        for name, tensor in sorted(finder.clip.clip_model.visual.state_dict().items()):
            digest.update(
                name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return {
            "generator": "clip_regions",
            "clip": finder.clip.arch,
            "clip_sha256": digest.hexdigest(),
            "clip_features": [finder.clip.dense_form, "QuickGELU" if finder.clip.quick_gelu else "GELU"],
            "normalization": [[round(float(v), 4) for v in x.flatten()] for x in (finder.mean, finder.std)],
            "settings": finder.settings.to_json(),
            "data": list(cfg.DATASETS.TRAIN),
            "unseen": sorted(cfg.DATASETS.UNSEEN_CLASSES),
        }

    def check_training(self, cfg: CfgNode) -> None:
        cache = RegionOptions.of(cfg).cache
        if cache and self.options.candidate_queries:
            RegionFolder(cache).check_settings(self.cache_settings(cfg))

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        """Losses of the labelled stream. Samples are those of `ZeroShotTrainMapper`."""
        samples = streams["labeled"]
        images = self.preprocess(samples).tensor
        size = images.shape[-2:]
        pixels = self.sem_seg_head.pixels(self.backbone(images))
        targets = self._targets(samples, size)
        output = self.sem_seg_head.queries(pixels)
        cosines, exists = self._training_cosines(output.class_outputs, targets)
        logits = self._logits(cosines).masked_fill(~exists[:, None], -torch.inf)
        losses = self.criterion(logits, output, targets)
        if self.enhancement is not None:
            losses["loss_mfe"] = self.options.mfe_weight * self._enhancement_loss(pixels, targets)
        return losses

    def _targets(self, samples: Sequence[dict], size: Sequence[int]) -> list[SplitTargets]:
        regions = self._regions(samples)
        targets = []
        for sample, found in zip(samples, regions, strict=True):
            seen = sample["targets"].to(self.device)
            annotated = seen.masks.any(0)
            masks = candidate_masks(found, sample["pixels"].to(self.device, non_blocking=True), annotated)
            rows = masks.flatten(1).any(1).nonzero()[:, 0]
            candidates = Targets(rows, masks[rows], seen.valid).padded(*size)
            labels = self.seen_index[seen.labels]
            seen = Targets(labels, seen.masks, seen.valid).padded(*size)
            targets.append(SplitTargets(seen, candidates, self._candidate_classes(found.embeddings)))
        return targets

    def _candidate_classes(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(U, E) unit-norm class embeddings C_u of an image's regions."""
        if self.candidate_mlp is None:
            return embeddings
        return F.normalize(self.candidate_mlp(embeddings).float(), dim=-1)

    def _regions(self, samples: Sequence[dict]) -> list[Regions]:
        """Regions of each image, from the cache; those of the other images are found now, together."""
        if not self.options.candidate_queries:
            cells = torch.zeros(1, 1, dtype=torch.uint8, device=self.device)
            none = torch.zeros(0, self.language.embedding_dim, device=self.device)
            return [Regions(cells, none, 1)] * len(samples)
        here = partial(torch.Tensor.to, device=self.device, non_blocking=True)
        results: list[Regions | None] = [
            None if r is None else Regions(here(r.cells), here(r.embeddings), r.size)
            for r in (s.get("regions") for s in samples)
        ]
        missing = [i for i, r in enumerate(results) if r is None]
        if missing:
            images = torch.stack([samples[i]["whole_image"] for i in missing]).to(self.device, non_blocking=True)
            unannotated = torch.stack([samples[i]["unannotated"] for i in missing]).to(self.device, non_blocking=True)
            for index, found in zip(missing, self.finder(images, unannotated), strict=True):
                results[index] = found
        return [r for r in results if r is not None]

    def _training_cosines(
        self, vectors: torch.Tensor, targets: Sequence[SplitTargets]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines with the text of the seen classes and with each image's own regions.

        Args:
            vectors: (R, B, Q, E) class embeddings.
            targets: one per image.

        Returns:
            (R, B, Q, N_s + U) cosines; (B, N_s + U) bool, the columns that an image has.
        """
        seen = self.text(self.seen).cosine(vectors)
        width = max(len(t.embeddings) for t in targets)
        padded = torch.stack([F.pad(t.embeddings, (0, 0, 0, width - len(t.embeddings))) for t in targets])
        count = torch.tensor([len(t.embeddings) for t in targets]).to(vectors.device, non_blocking=True)
        with torch.autocast(vectors.device.type, enabled=False):  # scaled by up to 100
            unit = F.normalize(vectors.float(), dim=-1)
            regions = torch.einsum("rbqe,bue->rbqu", unit, padded)
        exists = torch.arange(width, device=vectors.device) < count[:, None]
        return torch.cat([seen, regions], -1), F.pad(exists, (len(self.seen), 0), value=True)

    def _enhancement_loss(self, pixels: PixelFeatures, targets: Sequence[SplitTargets]) -> torch.Tensor:
        assert self.enhancement is not None  # its weight is not 0
        features = self.enhancement(pixels)
        vectors = features.flatten(2).transpose(1, 2)[None]  # (1, B, N, E)
        cosines, exists = self._training_cosines(vectors, targets)
        logits = (cosines[0] / self.options.mfe_temperature).masked_fill(~exists[:, None], -1e4)
        labels = label_map([t.joint(len(self.seen)) for t in targets], features.shape[-2:])
        return pixel_losses(logits.transpose(1, 2).unflatten(2, features.shape[-2:]), labels)

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        clustering, self.finder.cluster = self.finder.cluster, equal_stripes
        try:
            yield
        finally:
            self.finder.cluster = clustering

    # ------------------------------------------------------------------------------------------ inference

    def network(self, images: torch.Tensor) -> DecoderOutput:
        pixels = self.sem_seg_head.pixels(self.backbone(images))
        return self.sem_seg_head.queries(pixels, self._random_queries(images.shape[0]))

    def _random_queries(self, batch: int) -> GivenQueries | None:
        """Random queries with the mean and variance of the learned ones, the same in every call."""
        count = self.options.random_queries
        if not count:
            return None
        predictor = self.sem_seg_head.predictor
        learned = predictor.query_feat.weight, predictor.query_embed.weight
        if not torch.compiler.is_exporting():  # a graph draws nothing: it has the noise of the call before
            generator = torch.Generator().manual_seed(self.options.random_seed)
            drawn = [torch.randn(count, x.shape[1], generator=generator) for x in learned]
            self._noise = [x.to(self.device, non_blocking=True) for x in drawn]
        content, position = (
            (x.mean(0) + x.std(0) * noise).detach().expand(batch, -1, -1)
            for x, noise in zip(learned, self._noise, strict=True)
        )
        return GivenQueries(content, position, torch.zeros(batch, count, dtype=torch.bool, device=self.device))

    def predict(self, images: torch.Tensor, alpha: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Final predictions for normalised (B, 3, H, W) images.

        Args:
            images: the images.
            alpha: weight of the learned posterior; None = `ensemble_alpha`.

        Returns:
            (B, Q, K) logits of independent classes, seen and unseen; (B, Q, H/4, W/4) mask logits.
        """
        alpha = self.ensemble_alpha if alpha is None else alpha
        output, text = self.network(images), self.text(tuple(range(len(self.seen_index))))
        logits, mask_logits = self._logits(text.cosine(output.class_outputs[-1])), output.mask_logits()
        if alpha < 1:
            logits = self._ensembled(logits, self._zero_shot(images, mask_logits, text), alpha)
        return logits, mask_logits

    def _zero_shot(self, images: torch.Tensor, mask_logits: torch.Tensor, text: Vocabulary) -> torch.Tensor:
        """(B, Q, K) posterior of CLIP's features pooled under the masks; of normalised images."""
        clip, finder = self.language, self.finder
        pixels = images * self.pixel_std + self.pixel_mean
        with torch.autocast(images.device.type, enabled=False):
            features = clip.encode((pixels - finder.mean.to(images.device)) / finder.std.to(images.device))
            pooled = mask_pool(features["clip_vis_dense"], mask_logits.float())
            return (clip.logit_scale() * text.cosine(clip.embed_pooled(pooled))).softmax(-1)

    @staticmethod
    def _ensembled(logits: torch.Tensor, posterior: torch.Tensor, alpha: float) -> torch.Tensor:
        """Logits of the geometric mean of independent class probabilities and a posterior (DEARLi, eq. 6)."""
        log_mean = alpha * F.logsigmoid(logits.float()) + (1 - alpha) * posterior.clamp(min=1e-8).log()
        return log_mean - torch.log1p(-log_mean.exp().clamp(max=1 - 1e-6))

    @property
    def scoring(self) -> Scoring:
        penalties = [self.options.seen_penalty * (c in self.seen) for c in range(len(self.seen_index))]
        return Scoring(
            activation="sigmoid",
            penalty=tuple(penalties) if self.options.seen_penalty else (),
            ensembled=self.ensemble_alpha < 1,
        )

    def semantic_scores(self, class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
        """Sum over queries of class times mask probability; seen classes less the penalty (calibrated stacking)."""
        with torch.autocast(mask_logits.device.type, enabled=False):
            probability = class_logits.float().sigmoid()
            scores = torch.einsum("bqk,bqhw->bkhw", probability, mask_logits.float().sigmoid())
        if self.options.seen_penalty:
            scores[:, list(self.seen)] -= self.options.seen_penalty
        return scores


def build_criterion(cfg: CfgNode) -> SplitCriterion:
    """The criterion of a config."""
    split, weights, points = SplitOptions.of(cfg), loss_weights(cfg), point_options(cfg)
    matcher = FocalIoUMatcher(**weights, num_points=points["num_points"])
    return SplitCriterion(
        cfg.MODEL.NUM_CLASSES - len(cfg.DATASETS.UNSEEN_CLASSES),
        SplitMatcher(matcher, cfg.MODEL.MASK_FORMER.NUM_QUERIES),
        **weights,
        **points,
        cosine_weight=split.cosine_weight if split.candidate_queries else 0.0,
    )


def region_settings(cfg: CfgNode) -> RegionSettings:
    """The settings of a config's regions."""
    options = RegionOptions.of(cfg)
    return RegionSettings(
        image_size=options.image_size,
        windows=tuple(options.windows),
        iterations=options.iterations,
        fusion=options.fusion,
        min_area=options.min_area,
        crop_size=options.crop_size,
        embedding="cls" if SplitOptions.of(cfg).candidate_embedding == "cls" else "dense",
    )
