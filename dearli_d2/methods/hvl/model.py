"""HVL: queries from class names, refined by the image, beside free queries; semantic segmentation (Nadeem et al.)."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import ImageList
from torch import nn

from ...data.taxonomy import Taxonomy
from ...errors import ConfigError
from ...modeling.backbone.open_clip import OpenCLIPBackbone
from ...modeling.backbone.pyramid import LEVELS
from ...modeling.clip.language import clip_normalization, language_beside
from ...modeling.clip.text import build_vocabulary, read_templates
from ...modeling.clip.text_tower import text_tower_of
from ...modeling.mask2former.criterion import build_criterion
from ...modeling.mask2former.inference import resize_logits, semantic_inference
from ...modeling.mask2former.matcher import build_matcher
from ...modeling.mask2former.segmenter import MaskFormerSegmenter
from ...modeling.mask2former.transformer_decoder import DecoderOutput, GivenQueries
from ...modeling.mask_classifier import Scoring
from ...modeling.per_pixel.semantic import confident_targets, entropy, normalized, semantic_argmax
from ...modeling.segmenter import BackbonePaths, levels_of
from ...structures import Targets
from .options import HVLOptions
from .prompts import PromptGenerator, PromptLearner, prompt_loss
from .textual_matcher import TextualMatcher
from .textual_queries import (
    PixelDecoderSizes,
    PixelTextExchange,
    TextualQueryGenerator,
    background_classes,
    diversity_loss,
    presence_of_cells,
    presence_of_logits,
    presence_of_targets,
)
from .vision_language import masked_regions, region_losses

_LEVELS = len(LEVELS) - 1  # of the pixel decoder: all maps of the backbone but the finest
# class logits of a query that takes no part
_SILENT = 20.0


class HVL(MaskFormerSegmenter):
    """Mask2Former with queries from class names beside its free queries.

    Each class has a query at each level of the pixel decoder, made from the class's name (HTQG). These queries exchange
    information with the pixels inside the pixel decoder (PTRM). The transformer decoder reads them together with the free
    queries (DQTD). With `textual_queries` off and all weights 0 the model is Mask2Former with a semantic read-out.

    Args:
        options: see `HVLOptions`.
        confidence: least probability of a pixel's class in a pseudo-label (SSL.CONFIDENCE).
        language: frozen CLIP model beside the backbone, for text and zero-shot recognition; None = the backbone itself.
        fixed_templates: prompts of CLIP's own text embeddings.
        sizes: sizes of the pixel decoder.
        core: see `MaskFormerSegmenter`.
    """

    background: torch.Tensor
    language_model: OpenCLIPBackbone | None

    @configurable
    def __init__(
        self,
        *,
        options: HVLOptions,
        confidence: float,
        language: OpenCLIPBackbone | None,
        fixed_templates: Sequence[str],
        sizes: PixelDecoderSizes,
        **core: Any,
    ) -> None:
        super().__init__(**core)
        self.options, self.confidence = options, confidence
        self.fixed_templates = fixed_templates
        self._fixed: torch.Tensor | None = None
        self.language_model = language
        self.reference_tower: nn.Module | None = None
        if not options.textual_queries:
            return
        if language is None and not self.backbone.frozen:  # CLIP's start weights, for presence and reference features
            self.reference_tower = copy.deepcopy(self.backbone.clip_model.visual).requires_grad_(False).eval()
        self.levels = self.sem_seg_head.predictor.num_levels
        self.generator = TextualQueryGenerator(self.language.embedding_dim, sizes.dim, self.levels, options.hierarchy)
        self.exchange = (
            PixelTextExchange(sizes.layers, sizes.dim, sizes.heads, sizes.feedforward_dim)
            if options.refinement
            else None
        )
        self.prompts = PromptLearner(
            text_tower_of(self.language.clip_model), options.prompt_tokens, self.num_classes, options.per_class_prompts
        )
        self.prompt_generator = PromptGenerator(self.language.embedding_dim)
        self.register_buffer("background", torch.zeros(self.num_classes, dtype=torch.bool), persistent=False)
        if self.taxonomy is not None:
            self._name_prompts()

    @classmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict[str, Any]:
        """The constructor's arguments from a config."""
        options, free = HVLOptions.of(cfg), build_matcher(cfg)
        matcher = TextualMatcher(free, cfg.MODEL.NUM_CLASSES, _LEVELS) if options.textual_queries else free
        core = cls.linear_arguments(cfg, taxonomy, build_criterion(cfg, matcher))
        return {
            **core,
            "options": options,
            "confidence": cfg.SSL.CONFIDENCE,
            "language": language_beside(cfg, core["backbone"]) if options.textual_queries else None,
            "fixed_templates": read_templates(cfg.MODEL.TEXT.TEMPLATES),
            "sizes": PixelDecoderSizes.of(cfg),
        }

    def check_training(self, cfg: CfgNode) -> None:
        check_query_memory(cfg)

    def train(self, mode: bool = True) -> HVL:
        super().train(mode)
        if self.reference_tower is not None:
            self.reference_tower.eval()
        return self

    # ------------------------------------------------------------------------------------------ text and presence

    @property
    def language(self) -> OpenCLIPBackbone:
        """The CLIP model behind text and presence."""
        return self.backbone if self.language_model is None else self.language_model

    def set_taxonomy(self, taxonomy: Taxonomy) -> None:
        super().set_taxonomy(taxonomy)
        if self.options.textual_queries:
            self._name_prompts()

    def forget_vocabulary(self) -> None:
        super().forget_vocabulary()
        self._fixed = None

    def _name_prompts(self) -> None:
        taxonomy = self.known_taxonomy()
        self.prompts.set_names(self.language.arch, taxonomy.main_text_names)
        self.background.copy_(background_classes(taxonomy.names))

    def fixed_text(self) -> torch.Tensor:
        """(K, E) unit-norm CLIP embeddings of the class names with the fixed prompt."""
        if self._fixed is None:
            if self.taxonomy is None:
                raise ConfigError(
                    "textual queries have no class names: register the data set of DATASETS.TRAIN or load a checkpoint"
                )
            names = [(name,) for name in self.taxonomy.main_text_names]
            language = self.language
            self._fixed = build_vocabulary(language.clip_model, language.arch, names, self.fixed_templates).embeddings
        self._fixed = self._fixed.to(self.device)
        return self._fixed

    @torch.no_grad()
    def _reference(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of the frozen CLIP image tower for normalised images."""
        language = self.language
        if language is not self.backbone:  # its normalisation may be another
            mean, std = (x.to(images.device) for x in clip_normalization(language))
            images = (images * self.pixel_std + self.pixel_mean - mean) / std
        return language.encode(images, self.reference_tower)

    @torch.no_grad()
    def zero_shot_presence(self, images: torch.Tensor) -> torch.Tensor:
        """Presence of the classes as CLIP sees it.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            (B, K) in 0..1, where 0 means absent. Each image has at least one class, and "background" is always there.
        """
        options, language, text = self.options, self.language, self.fixed_text()
        if options.presence == "all":
            return torch.ones(images.shape[0], self.num_classes, device=images.device)
        features, tower = self._reference(images), self.reference_tower
        with torch.autocast(images.device.type, enabled=False):  # scaled by up to 100
            if options.presence == "image":
                similarity = language.embed_image(features, tower).float() @ text.T
                return presence_of_logits(
                    language.logit_scale() * similarity, options.presence_threshold, self.background
                )
            cells = language.embed_dense(features, tower).float().flatten(2).transpose(1, 2) @ text.T
            return presence_of_cells(language.logit_scale() * cells, options.presence_threshold, self.background)

    def presence(self, images: torch.Tensor, targets: Sequence[Targets], labeled: Sequence[bool]) -> torch.Tensor:
        """Presence of the classes: of the ground truth where an image has one, else of zero-shot CLIP.

        Args:
            images: (B, 3, H, W), normalised.
            targets: one per image.
            labeled: whether the targets of an image are ground truth. One without any segment counts as unknown.

        Returns:
            (B, K) in 0..1. "background" is always present.
        """
        if self.options.presence == "all":
            return torch.ones(len(images), self.num_classes, device=images.device)
        presence = presence_of_targets([t.labels for t in targets], self.background)
        guessed = [i for i, (t, known) in enumerate(zip(targets, labeled, strict=True)) if not (known and len(t))]
        if guessed:
            rows = torch.tensor(guessed).to(images.device, non_blocking=True)
            presence[rows] = self.zero_shot_presence(images[rows])
        return presence

    # ------------------------------------------------------------------------------------------ passes

    def decode(
        self, features: dict[str, torch.Tensor], presence: torch.Tensor | None, queries: torch.Tensor | None
    ) -> DecoderOutput:
        """Runs the pixel decoder and the transformer decoder with textual and free queries.

        Args:
            features: maps of the backbone.
            presence: (B, K); None without textual queries.
            queries: (L, K, D) of `generator`; None without textual queries.
        """
        if queries is None or presence is None:
            output: DecoderOutput = self.sem_seg_head(features)
            return output
        return self.decode_present(features, presence[:, None, :, None] * queries[None], presence == 0)

    def decode_present(
        self, features: dict[str, torch.Tensor], content: torch.Tensor, absent: torch.Tensor
    ) -> DecoderOutput:
        """Runs both decoders with textual queries that are scaled by their presence already.

        Args:
            features: maps of the backbone.
            content: (B, L, K, D), the queries.
            absent: (B, K) bool, the classes that take no part.
        """
        head, position = self.sem_seg_head, content
        if self.exchange is None:
            pixels = head.pixels(features)
        else:
            exchange = self.exchange.start(content, absent)
            pixels = head.pixels(features, exchange)
            content = exchange.queries
        given = GivenQueries(
            content.flatten(1, 2), position.flatten(1, 2), absent.repeat(1, self.levels), self.options.joint_decoder
        )
        return _silenced(head.queries(pixels, given))

    def embedded_names(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, E) text embeddings of the learned prompt, and (K, E) outputs of the prompt generator for them."""
        text = self.prompts(text_tower_of(self.language.clip_model))
        return text, self.prompt_generator(text)

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        options = self.options
        samples = [x for stream in streams.values() for x in stream]
        labeled = [name != "unlabeled" for name, stream in streams.items() for _ in stream]
        images = self.preprocess(samples).tensor
        targets = [x["targets"].to(self.device).padded(*images.shape[-2:]) for x in samples]
        text = generated = queries = presence = None
        if options.textual_queries:
            text, generated = self.embedded_names()
            queries, presence = self.generator(generated), self.presence(images, targets, labeled)
        output = self.decode(self.backbone(images), presence, queries)
        losses = self.stream_losses(streams, output, targets)
        if queries is not None and options.diversity_weight:
            losses["loss_diversity"] = options.diversity_weight * diversity_loss(queries)
        if text is not None and generated is not None and options.prompt_weight:
            loss = prompt_loss(text, generated, self.fixed_text(), options.anchor_beta)
            losses["loss_prompt"] = options.prompt_weight * loss
        if queries is not None and options.vl_weight:
            known = [i for i, flag in enumerate(labeled) if flag]
            rows = torch.tensor(known).to(images.device, non_blocking=True)
            losses |= self._vision_language_losses(images[rows], [targets[i] for i in known])
        if "unlabeled" in streams and options.entropy_weight:
            unknown = [i for i, flag in enumerate(labeled) if not flag]
            rows = torch.tensor(unknown).to(images.device, non_blocking=True)
            scores = semantic_inference(output.class_outputs[-1, rows], output.mask_logits()[rows])
            losses["unlabeled_loss_entropy"] = options.entropy_weight * entropy(normalized(scores))
        return losses

    def _vision_language_losses(self, images: torch.Tensor, targets: Sequence[Targets]) -> dict[str, torch.Tensor]:
        """Losses of the trainable encoder on images in which the pixels of one class are hidden.

        Its features at the hidden pixels are pulled towards those of the frozen encoder, which sees the pixels, and towards
        the class's text (HVL, "Segmentation Supervision").
        """
        options, backbone = self.options, self.backbone
        region, label = masked_regions(targets)
        hidden = backbone.encode(images * ~region[:, None])  # 0 is the mean of the data
        seen = self._reference(images)
        with torch.autocast(images.device.type, enabled=False):
            features = backbone.embed_dense({k: v.float() for k, v in hidden.items()})
            reference = backbone.embed_dense({k: v.float() for k, v in seen.items()}, self.reference_tower)
            align, consistency = region_losses(
                features, reference.detach(), region, label, self.fixed_text(), options.temperature
            )
        losses = {"loss_align": align * options.align_weight, "loss_consistency": consistency * options.mask_weight}
        return {name: options.vl_weight * loss for name, loss in losses.items()}

    def backbone_paths(self) -> BackbonePaths:
        def used(images: torch.Tensor) -> list[torch.Tensor]:
            features = self.backbone(images)
            aligned = self.options.textual_queries and self.options.vl_weight
            return levels_of(features) + ([self.backbone.embed_dense(features)] if aligned else [])

        return [(self.backbone, used)]

    def network(self, images: torch.Tensor) -> DecoderOutput:
        queries = presence = None
        if self.options.textual_queries:
            queries, presence = self.generator(self.embedded_names()[1]), self.zero_shot_presence(images)
        return self.decode(self.backbone(images), presence, queries)

    def predict(self, images: torch.Tensor, alpha: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.network(images)
        return output.class_outputs[-1], output.mask_logits()

    @property
    def scoring(self) -> Scoring:
        return Scoring(semantic=self.options.inference)

    def semantic_scores(self, class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
        read_out = {"marginal": semantic_inference, "argmax": semantic_argmax}[self.options.inference]
        return read_out(class_logits, mask_logits)

    @torch.no_grad()
    def pseudo_label(self, inputs: list[dict]) -> list[Targets]:
        """The best class of each pixel; pixels below the confidence are not valid. See `MaskClassifier.pseudo_label`."""
        images: ImageList = self.preprocess(inputs)
        height, width = inputs[0]["image"].shape[-2:]
        class_logits, mask_logits = self.predict(images.tensor)
        targets = []
        for index, sample in enumerate(inputs):  # one image at a time: full-size masks of all queries are large
            masks = resize_logits(mask_logits[index : index + 1], images.tensor.shape[-2:])[..., :height, :width]
            probability = normalized(semantic_inference(class_logits[index : index + 1], masks))
            valid = sample["inside"].to(self.device, non_blocking=True) if "inside" in sample else None
            targets += confident_targets(probability, self.confidence, [valid])
        return targets


def check_query_memory(cfg: CfgNode) -> None:
    """Raises `ConfigError` if the masks of all queries cannot fit into the memory of the machine.

    The estimate: full-size masks of one image (logits, resized logits, probabilities) for a pseudo-label, and those of
    all unlabelled images at stride 4 (logits, probabilities, their gradients) for the entropy term, in fp32.
    """
    options, classes, former = HVLOptions.of(cfg), cfg.MODEL.NUM_CLASSES, cfg.MODEL.MASK_FORMER
    queries = former.NUM_QUERIES + (_LEVELS * classes if options.textual_queries else 0)
    pixels = cfg.INPUT.CROP_SIZE**2
    images = cfg.SSL.IMS_PER_BATCH if cfg.DATASETS.UNLABELED and options.entropy_weight else 0
    needed = 4 * queries * pixels * (3 + 4 * images / 16)
    if cfg.MODEL.DEVICE == "cuda":
        available = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ConfigError(
            f"{classes} classes x {_LEVELS} levels and {former.NUM_QUERIES} free queries are {queries}: their masks at "
            f"INPUT.CROP_SIZE {cfg.INPUT.CROP_SIZE} need about {needed / 2**30:.0f} GiB, this machine has "
            f"{available / 2**30:.0f}; lower INPUT.CROP_SIZE, SSL.IMS_PER_BATCH or MODEL.MASK_FORMER.NUM_QUERIES, or set "
            "MODEL.HVL.ENTROPY_WEIGHT 0"
        )


def _silenced(output: DecoderOutput) -> DecoderOutput:
    """Replaces the predictions of queries that take no part by "no object" and an empty mask."""
    assert output.absent is not None  # textual queries were given
    absent = output.absent[None, ..., None]
    silent = output.class_outputs.new_full(output.class_outputs.shape[-1:], -_SILENT)
    silent[-1].fill_(_SILENT)
    return replace(
        output,
        class_outputs=torch.where(absent, silent, output.class_outputs),
        mask_embeddings=output.mask_embeddings.masked_fill(absent, 0),
    )
