"""SemiDAViL: semi-supervised domain adaptation with dense language guidance and a dynamic cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from ...data.build import TrainingImages
from ...data.taxonomy import Taxonomy
from ...errors import ConfigError, DatasetError
from ...modeling.backbone.open_clip import OpenCLIPBackbone
from ...modeling.backbone.pyramid import SimpleFeaturePyramid
from ...modeling.clip.language import language_beside
from ...modeling.clip.text_tower import text_tower_of
from ...modeling.mask2former.head import build_head
from ...modeling.mask2former.inference import resize_logits, semantic_inference
from ...modeling.per_pixel import DPTHead, UpsampleHead
from ...modeling.per_pixel.losses import PixelLoss, cross_entropy_loss
from ...modeling.per_pixel.segmenter import PixelSegmenter
from ...modeling.segmenter import BackbonePaths, ReadOut
from .correlation import CorrelationReasoning, WordPixelCorrelation
from .guidance import CaptionEncoder, DenseLanguageGuidance, text_width

_LOG_PERIOD = 20  # steps; as often as the trainer writes its scalars
_NEUTRAL = "a photo"  # caption where an image is not a sample, as in a memory estimate


class PyramidHead(nn.Module):
    """A head that wants four levels, over the pyramid of one map."""

    def __init__(self, in_dim: int, dim: int, stride: int, head: nn.Module) -> None:
        super().__init__()
        self.pyramid = SimpleFeaturePyramid(in_dim, dim, stride)
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.pyramid(features))


class QueryPixelHead(nn.Module):
    """The Mask2Former core as a head of class logits per pixel.

    The logits are the log of the class distribution that its queries give together. This combination is ours.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        output = self.head(features)
        marginal = semantic_inference(output.class_outputs[-1], output.mask_logits()).float()
        # losses on pixels train the ratios of the classes alone, so their sum says nothing about a pixel of no class
        return (marginal / marginal.sum(1, keepdim=True).clamp(min=1e-8)).clamp(min=1e-6).log()


def build_pixel_head(cfg: CfgNode, shape: ShapeSpec) -> nn.Module:
    """The head of MODEL.SEMIDAVIL.HEAD over one map of `shape`."""
    options, classes = cfg.MODEL.SEMIDAVIL, cfg.MODEL.NUM_CLASSES
    dim = options.HEAD_DIM
    if options.HEAD == "upsample":
        return UpsampleHead(shape.channels, dim, classes)
    levels = dict.fromkeys(("res2", "res3", "res4", "res5"), dim)
    if options.HEAD == "dpt":
        head: nn.Module = DPTHead(levels, dim, classes, "GN")
    else:
        head = QueryPixelHead(
            build_head(cfg, levels, num_queries=cfg.MODEL.MASK_FORMER.NUM_QUERIES, num_classes=cfg.MODEL.NUM_CLASSES)
        )
    return PyramidHead(shape.channels, dim, shape.stride, head)


class SemiDAViL(PixelSegmenter):
    """Per-pixel segmentation of CLIP features that captions guide.

    Args:
        feature: name of the backbone's map.
        head: (B, C, h, w) to logits.
        guidance: None = no language.
        language: CLIP beside a backbone without text.
        captions: what the guidance reads: "file", captions that samples bring; "class_names", one of all class names;
            "words", each class name alone, for a `WordPixelCorrelation`.
        loss: of annotated pixels.
        loss_weight, unlabeled_weight, confidence: keys MODEL.SEMIDAVIL.LOSS_WEIGHT, SSL.LOSS_WEIGHT, SSL.CONFIDENCE.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        feature: str,
        head: nn.Module,
        guidance: DenseLanguageGuidance | WordPixelCorrelation | None,
        language: OpenCLIPBackbone | None,
        captions: str,
        loss: PixelLoss,
        taxonomy: Taxonomy | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        loss_weight: float = 1.0,
        unlabeled_weight: float = 1.0,
        confidence: float = 0.95,
        read_out: ReadOut = ReadOut(),
    ) -> None:
        super().__init__(backbone, taxonomy, pixel_mean, pixel_std, read_out)
        self.feature, self.head, self.guidance = feature, head, guidance
        self.beside, self.captions, self.loss = language, captions, loss
        self.loss_weight, self.unlabeled_weight, self.confidence = loss_weight, unlabeled_weight, confidence
        self.encoder = None
        if guidance is not None:
            clip = self.language
            self.encoder = CaptionEncoder(clip.arch, len(text_tower_of(clip.clip_model).positional_embedding))
            if captions == "class_names" and taxonomy is not None:
                self.encoder.tokens(self._class_caption(), "MODEL.SEMIDAVIL.CAPTIONS class_names")

    @classmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict:
        options, backbone = cfg.MODEL.SEMIDAVIL, build_backbone(cfg)
        shape = _feature_shape(backbone, options.FEATURE)
        guidance = language = None
        if options.GUIDANCE:
            language = language_beside(cfg, backbone)
            clip = (backbone if language is None else language).clip_model
            sizes = shape.channels, text_width(clip), options.GUIDANCE_DIM
            if options.ATTENTION == "dlg":
                guidance = DenseLanguageGuidance(*sizes)
            else:
                kind = {"wpct": WordPixelCorrelation, "vlga": CorrelationReasoning}[options.ATTENTION]
                guidance = kind(*sizes, cfg.MODEL.NUM_CLASSES)
        loss_options = {"hard_fraction": options.HARD_FRACTION, "omega": options.OMEGA}
        return {
            "backbone": backbone,
            "feature": options.FEATURE,
            "head": build_pixel_head(cfg, shape),
            "guidance": guidance,
            "language": language,
            "captions": options.CAPTIONS if options.ATTENTION == "dlg" else "words",
            "loss": PixelLoss(options.LOSS, cfg.MODEL.NUM_CLASSES, **(loss_options if options.LOSS == "dyce" else {})),
            "taxonomy": taxonomy,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "loss_weight": options.LOSS_WEIGHT,
            "unlabeled_weight": cfg.SSL.LOSS_WEIGHT,
            "confidence": cfg.SSL.CONFIDENCE,
            "read_out": ReadOut.from_config(cfg),
        }

    @property
    def language(self) -> OpenCLIPBackbone:
        """The CLIP model whose text tower reads the captions."""
        return self.backbone if self.beside is None else self.beside

    @property
    def reads_captions(self) -> bool:
        return self.encoder is not None and self.captions == "file"

    def _class_caption(self) -> str:
        return ", ".join(self.known_taxonomy().main_text_names)

    def check_images(self, images: TrainingImages) -> None:
        """Takes the class weights of a weighted loss from the annotations. Every caption must fit into the text tower."""
        if self.loss.name == "weighted_ce":
            self.loss.weigh(torch.from_numpy(images.class_areas("MODEL.SEMIDAVIL.LOSS weighted_ce")))
        if self.captions == "file" and self.encoder is not None:
            for file_name, caption in images.captions():
                self.encoder.tokens(caption, f"{file_name}: its caption")

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        if self.encoder is not None:  # the text tower may be another one from now on
            self.encoder.forget()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def captions_of(self, samples: Sequence[dict] | None) -> list[str]:
        """The caption of each image, or one for all.

        Raises:
            DatasetError: a sample has none although the model was trained with captions.
        """
        if samples is None:
            return [_NEUTRAL]
        if self.captions == "class_names":
            return [self._class_caption()]
        without = [x.get("file_name", "an image") for x in samples if "caption" not in x]
        if without:
            raise DatasetError(
                f"{without[0]} has no caption, which this model reads beside the image; give captions, or one for all by "
                "MODEL.SEMIDAVIL.CAPTIONS class_names"
            )
        return [x["caption"] for x in samples]

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) the backbone's map that is classified."""
        return self.backbone.dense(images) if self.feature == "clip_vis_dense" else self.backbone(images)[self.feature]

    def backbone_paths(self) -> BackbonePaths:
        return [(self.backbone, lambda images: [self.feature_map(images)])]

    def logits(self, images: torch.Tensor, samples: Sequence[dict] | None) -> torch.Tensor:
        features = self.feature_map(images)
        if self.guidance is not None and self.encoder is not None:
            if self.captions == "words":
                features = self.guidance(features, self.class_words(self.encoder).expand(images.shape[0], -1, -1))
            else:
                text, present = self.encoder(self.language.clip_model, self.captions_of(samples))
                every = images.shape[0]
                features = self.guidance(features, text.expand(every, -1, -1), present.expand(every, -1))
        return self.head(features)

    def class_words(self, encoder: CaptionEncoder) -> torch.Tensor:
        """(K, text_dim) features of the class names, at their end tokens."""
        text, present = encoder(self.language.clip_model, self.known_taxonomy().main_text_names)
        return text[torch.arange(len(text)), present.sum(1) - 1]

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        """The chosen loss on annotated pixels, and cross-entropy on confident pixels of unlabelled images.

        Source and labelled target count together.
        """
        samples, images, known = self.joined(streams)
        logits = resize_logits(self.logits(images, samples), images.shape[-2:])
        target = self.class_maps(samples, images.shape[-2:])
        losses = {"loss_sup": self.loss_weight * self.loss(logits[:known], target[:known])}
        if known < len(samples):
            consistency = cross_entropy_loss(logits[known:], target[known:])
            losses["unlabeled_loss_con"] = self.unlabeled_weight * consistency
        self._log(logits[:known], target[:known])
        return losses

    @torch.no_grad()
    def _log(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Plain cross-entropy beside the chosen loss, whose scale differs."""
        if has_event_storage() and (get_event_storage().iter + 1) % _LOG_PERIOD == 0:
            get_event_storage().put_scalar("cross_entropy", cross_entropy_loss(logits, target).item())


def _feature_shape(backbone: Backbone, name: str) -> ShapeSpec:
    if name == "clip_vis_dense" and isinstance(backbone, OpenCLIPBackbone):
        return backbone.dense_shape
    shapes = backbone.output_shape()
    if name not in shapes:
        raise ConfigError(
            f"MODEL.SEMIDAVIL.FEATURE {name}: the backbone has {', '.join(shapes)}; clip_vis_dense is that of OpenCLIP"
        )
    return shapes[name]
