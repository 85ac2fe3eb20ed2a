"""A backbone and a DPT head: semantic segmentation without queries.

It is SegKC's junior alone, and its labels-only and EMA-teacher baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_backbone
from detectron2.structures import ImageList

from ...data.taxonomy import Taxonomy
from ...errors import ConfigError
from ..backbone.pyramid import LEVELS
from ..backbone.timm import TimmBackbone
from ..mask2former.inference import resize_logits
from ..norms import norm_on
from ..precision import weights_cast_once
from ..segmenter import Fitting, ReadOut, input_divisor, level_channels
from . import DPTHead
from .dpt_names import our_names
from .losses import consistency_loss, hard_targets, supervised_loss
from .segmenter import PixelSegmenter


class DPTSegmenter(PixelSegmenter):
    """Semantic segmentation with a backbone and a DPT head.

    For inference images of any size are resized to the nearest multiples of the backbone's `size_divisibility`, and the scores
    back. Training takes crops that are multiples.

    Args:
        backbone: with res2..res5.
        head: over them.
        label_weight, unlabeled_weight, confidence: keys MODEL.DPT.LOSS_WEIGHT,
            SSL.LOSS_WEIGHT, SSL.CONFIDENCE. feature_dropout: of unlabelled images (UniMatch V2), see
            `pyramid_of`. strong_views: of each unlabelled image.
        hard_pixels, hard_below: of labelled images, see `hard_targets`; 0 pixels = all.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: DPTHead,
        taxonomy: Taxonomy | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        label_weight: float = 1.0,
        unlabeled_weight: float = 1.0,
        confidence: float = 0.95,
        feature_dropout: bool = False,
        strong_views: int = 1,
        hard_pixels: int = 0,
        hard_below: float = 0.7,
        read_out: ReadOut = ReadOut(),
    ) -> None:
        super().__init__(backbone, taxonomy, pixel_mean, pixel_std, read_out)
        self.head = head
        self.label_weight, self.unlabeled_weight, self.confidence = label_weight, unlabeled_weight, confidence
        self.feature_dropout, self.strong_views = feature_dropout, strong_views
        self.hard_pixels, self.hard_below = hard_pixels, hard_below

    @classmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict:
        backbone, head = build_network(cfg)
        return {
            "backbone": backbone,
            "head": head,
            "taxonomy": taxonomy,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "label_weight": cfg.MODEL.DPT.LOSS_WEIGHT,
            "unlabeled_weight": cfg.SSL.LOSS_WEIGHT,
            "confidence": cfg.SSL.CONFIDENCE,
            "feature_dropout": cfg.MODEL.DPT.FEATURE_DROPOUT,
            "strong_views": cfg.SSL.STRONG_VIEWS,
            "hard_pixels": cfg.MODEL.DPT.HARD_PIXELS,
            "hard_below": cfg.MODEL.DPT.HARD_BELOW,
            "read_out": ReadOut.from_config(cfg),
        }

    def own_names(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return our_names(state)

    @property
    def divisor(self) -> int:
        """The sides of the input are multiples of this at inference."""
        return input_divisor(self.backbone)

    @property
    def fitting(self) -> Fitting:
        return Fitting(self.divisor, "resize")

    @property
    def training_divisor(self) -> int:
        return self.divisor

    def check_training(self, cfg: CfgNode) -> None:
        """The crop must be a multiple of the patch, or of the coarsest stride."""
        size, divisor = cfg.INPUT.CROP_SIZE, self.training_divisor
        if size % divisor:
            below = size // divisor * divisor
            raise ConfigError(
                f"INPUT.CROP_SIZE {size} is no multiple of {divisor}, which the backbone needs; the nearest are "
                f"{f'{below} and ' if below else ''}{below + divisor}"
            )

    def features(self, images: torch.Tensor, dropped: int = 0) -> torch.Tensor:
        """(B, D, h, w) the fused map before the classifier. `dropped`: the last images of the batch that lose channels."""
        pyramid = pyramid_of(self.backbone, images, dropped, self.strong_views)
        with weights_cast_once(self.head, images.device, with_gradient=False):
            return self.head.features(pyramid)

    def logits(self, images: torch.Tensor, samples: Sequence[dict] | None) -> torch.Tensor:
        return self.head.classify(self.features(images))

    def scores(self, inputs: ImageList, samples: list[dict]) -> torch.Tensor:
        sizes, (height, width) = inputs.image_sizes, inputs.tensor.shape[-2:]
        if len(set(sizes)) == 1:
            return _padded(self._resized_scores(inputs.tensor, samples, sizes[0]), height, width)
        rows = zip(inputs.tensor.split(1), samples, sizes, strict=True)
        return torch.cat([_padded(self._resized_scores(x, [s], size), height, width) for x, s, size in rows])

    def _resized_scores(self, images: torch.Tensor, samples: list[dict], size: tuple[int, int]) -> torch.Tensor:
        """(B, K, *size) of images padded to more than `size`."""
        return resize_logits(self.logits(fitted(images, size, self.divisor), samples).float(), size).softmax(1)

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        """Cross-entropy on annotated and on confident pixels.

        On annotated pixels it is their mean, or that of the hard ones. On unlabelled images it is the sum over the confident pixels, divided by the number
        of all pixels (UniMatch).
        """
        samples, images, known = self.joined(streams)
        dropped = len(samples) - known if self.feature_dropout else 0
        logits = self.head.classify(self.features(images, dropped))
        target = self.class_maps(samples, images.shape[-2:])
        losses = {"loss_sup": self.label_weight * self.label_loss(logits[:known], target[:known])}
        if known < len(samples):
            consistency = consistency_loss(logits[known:], target[known:], self.inside(samples[known:]))
            losses["unlabeled_loss_con"] = self.unlabeled_weight * consistency
        return losses

    def label_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of annotated pixels, (B, C, h, w) logits and (B, H, W) classes."""
        if self.hard_pixels and len(target):
            target = hard_targets(logits, target, self.hard_pixels, self.hard_below)
        return supervised_loss(logits, target)

    def inside(self, samples: Sequence[dict]) -> torch.Tensor:
        """(B, H, W) bool: the pixels of the images that are no padding."""
        return torch.stack([x["inside"].to(self.device, non_blocking=True) for x in samples])


def fitted(images: torch.Tensor, size: tuple[int, int], divisor: int) -> torch.Tensor:
    """Cuts the padding off (B, 3, H, W) images of `size`, and resizes them to the nearest multiples of `divisor`.

    A side is at least one multiple. Of two multiples that are as near, the larger is taken (UniMatch V2).
    """
    multiples = tuple(max(1, (2 * side + divisor) // (2 * divisor)) * divisor for side in size)
    return resize_logits(images[..., : size[0], : size[1]], multiples)


def build_network(cfg: CfgNode) -> tuple[Backbone, DPTHead]:
    """Backbone of MODEL.BACKBONE and head of MODEL.DPT.

    Raises:
        ConfigError: a backbone without the four levels.
    """
    backbone = build_backbone(cfg)
    channels = level_channels(backbone, cfg.MODEL.BACKBONE.NAME)
    norm = norm_on(cfg.MODEL.DEVICE, cfg.MODEL.DPT.NORM)
    return backbone, DPTHead(channels, cfg.MODEL.DPT.DIM, cfg.MODEL.NUM_CLASSES, norm)


def pyramid_of(backbone: Backbone, images: torch.Tensor, dropped: int, views: int) -> Mapping[str, torch.Tensor]:
    """`LEVELS` of (B, 3, H, W) images, of which the last `dropped` lose channels.

    A timm network loses channels of its own maps, so a plain ViT those of its tokens before they are reassembled (UniMatch V2).
    Another backbone loses channels of its levels.
    """
    if not dropped:
        return backbone(images)
    if isinstance(backbone, TimmBackbone):
        return backbone.levels(channel_dropout(backbone.maps(images), dropped, views))
    pyramid = backbone(images)
    return dict(zip(LEVELS, channel_dropout([pyramid[name] for name in LEVELS], dropped, views), strict=True))


def channel_dropout(maps: Sequence[torch.Tensor], count: int, views: int) -> list[torch.Tensor]:
    """Drops channels of the last `count` images with probability 0.5, and doubles the others.

    Half of the images stay as they are. Maps of one width, such as the tokens of a ViT's blocks, lose the same channels. Of two
    views of an image, the second keeps the channels that the first loses (UniMatch V2, complementary dropout).

    Args:
        maps: (B, C, h, w) each.
        views: the last images are `views` parts of `count` / `views` images each.
    """
    images, device = count // views, maps[0].device
    whole = torch.zeros(images, dtype=torch.bool, device=device)
    whole[torch.randperm(images, device=device)[: images // 2]] = True
    factors = {}
    for channels in dict.fromkeys(x.shape[1] for x in maps):
        factor = 2.0 * torch.randint(0, 2, (images, channels, 1, 1), device=device)
        parts = [torch.where(whole[:, None, None, None], 1.0, f) for f in (factor, 2 - factor)[:views]]
        factors[channels] = torch.cat(parts)
    return [torch.cat([x[:-count], x[-count:] * factors[x.shape[1]].to(x.dtype)]) for x in maps]


def _padded(scores: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.pad(scores, (0, width - scores.shape[3], 0, height - scores.shape[2]))
