"""SegKC: cross pseudo supervision of a large and a small network with knowledge consultation (Than et al.)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone
from torch import nn

from ...data.taxonomy import Taxonomy
from ...errors import ConfigError, WeightsError
from ...modeling.labeler import SelfLabeler
from ...modeling.mask2former.inference import resize_logits
from ...modeling.per_pixel import DPTHead
from ...modeling.per_pixel.dpt_segmenter import DPTSegmenter, build_network, fitted, pyramid_of
from ...modeling.per_pixel.losses import consistency_loss
from ...modeling.per_pixel.semantic import confident_targets
from ...modeling.segmenter import BackbonePaths, input_divisor, levels_of
from ...pretrained import section_keys
from ...structures import Targets
from .losses import distillation_loss

logger = logging.getLogger(__name__)

Normalization = Sequence[Sequence[float]]  # mean and deviation


class Consultation(nn.Module):
    """Adds the junior's features to the senior's: h + g Conv1x1(h_junior), with g learned and 0 at the start.

    Args:
        junior_dim, dim: channels of the junior's and the senior's map.
    """

    def __init__(self, junior_dim: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(junior_dim, dim, 1)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, features: torch.Tensor, junior: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) and (B, D_junior, h', w') to (B, D, h, w)."""
        # scaling the weights rather than the map keeps no map for the gate's gradient
        bias = None if self.project.bias is None else self.gate * self.project.bias
        projected = F.conv2d(junior, self.gate * self.project.weight, bias)
        return features + resize_logits(projected, features.shape[-2:])


class Renormalization(nn.Module):
    """Images normalised with one mean and deviation to another; `before` and `after`: both, 3 values each."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, before: Normalization, after: Normalization) -> None:
        super().__init__()
        (mean, std), (new_mean, new_std) = (torch.tensor(values).view(2, 3, 1, 1) for values in (before, after))
        self.register_buffer("scale", std / new_std, persistent=False)
        self.register_buffer("shift", (mean - new_mean) / new_std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale + self.shift


class Senior(nn.Module):
    """The large network.

    `consultation`: None leaves the junior's features out. `renormalization` converts the junior's input to the normalisation
    that the senior's weights expect; None where both are the same.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DPTHead,
        consultation: Consultation | None,
        renormalization: Renormalization | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.consultation = backbone, head, consultation
        self.renormalization = renormalization

    def forward(self, images: torch.Tensor, junior: torch.Tensor, dropped: int = 0, views: int = 1) -> torch.Tensor:
        """(B, 3, H, W) normalised images and the junior's (B, D, h, w) features of them to (B, K, ...) logits.

        Args:
            dropped, views: see `pyramid_of`.
        """
        if self.renormalization is not None:
            images = self.renormalization(images)
        features = self.head.features(pyramid_of(self.backbone, images, dropped, views))
        if self.consultation is not None:
            features = self.consultation(features, junior)
        return self.head.classify(features)


class SegKC(DPTSegmenter):
    """Two networks that teach each other (SegKC).

    The junior is the model itself, with the parameter names of `DPTSegmenter`. The senior beside it takes part in training alone.

    Args:
        senior: the large network.
        consult_grad: whether the senior's losses reach the junior through its features.
        distillation_weight, temperature: of the senior's softened predictions (keys MODEL.SEGKC.KD_WEIGHT, KD_TEMPERATURE).
        read: "junior", or "senior" for a diagnosis: whose scores inference returns.
        junior: arguments of `DPTSegmenter`.
    """

    @configurable
    def __init__(
        self,
        *,
        senior: Senior,
        consult_grad: bool = False,
        distillation_weight: float = 1.0,
        temperature: float = 2.0,
        read: str = "junior",
        **junior: object,
    ) -> None:
        super().__init__(**junior)
        self.senior, self.consult_grad, self.read = senior, consult_grad, read
        self.distillation_weight, self.temperature = distillation_weight, temperature

    @classmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict:
        options = cfg.MODEL.SEGKC
        arguments = super().from_config(cfg, taxonomy)
        try:
            backbone, head = build_network(senior_config(cfg))
        except (ConfigError, WeightsError) as error:
            raise type(error)(section_keys(str(error), "MODEL.SENIOR")) from error
        before, after = ((part.PIXEL_MEAN, part.PIXEL_STD) for part in (cfg.MODEL, cfg.MODEL.SENIOR))
        renormalization = None if after == before else Renormalization(before, after)
        consultation = Consultation(arguments["head"].dim, head.dim) if options.CONSULT else None
        return {
            **arguments,
            "senior": Senior(backbone, head, consultation, renormalization),
            "consult_grad": options.CONSULT_GRAD,
            "distillation_weight": options.KD_WEIGHT,
            "temperature": options.KD_TEMPERATURE,
            "read": options.READ,
        }

    @property
    def training_divisor(self) -> int:
        return math.lcm(input_divisor(self.backbone), input_divisor(self.senior.backbone))

    @property
    def divisor(self) -> int:
        return self.training_divisor if self.read == "senior" else super().divisor

    def check_training(self, cfg: CfgNode) -> None:
        super().check_training(cfg)
        own, other = (sum(p.numel() for p in part.parameters()) for part in (self.backbone, self.senior.backbone))
        logger.info("parameters of the backbones: junior %.1f M, senior %.1f M", own / 1e6, other / 1e6)
        if _network_of(cfg) == _network_of(senior_config(cfg)):
            logger.warning(
                "senior and junior are the same network (MODEL.BACKBONE and MODEL.SENIOR.BACKBONE): cross supervision then "
                "lives from their different random starts alone"
            )

    def backbone_paths(self) -> BackbonePaths:
        return [
            *super().backbone_paths(),
            (self.senior.backbone, lambda images: levels_of(self.senior.backbone(images))),
        ]

    def network(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.both_logits(images)

    def both_logits(self, images: torch.Tensor, dropped: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of junior and senior, (B, K, ...) each; `dropped`: see `DPTSegmenter.features`."""
        features = self.features(images, dropped)
        consulted = features if self.consult_grad else features.detach()
        return self.head.classify(features), self.senior(images, consulted, dropped, self.strong_views)

    def logits(self, images: torch.Tensor, samples: Sequence[dict] | None) -> torch.Tensor:
        return self.both_logits(images)[1] if self.read == "senior" else super().logits(images, samples)

    def labeler(self, cfg: CfgNode) -> SelfLabeler:
        return SelfLabeler(self.cross_labels)

    @torch.no_grad()
    def cross_labels(self, inputs: list[dict]) -> dict[str, list[Targets]]:
        """Labels of weak views that each network makes for the other, both in eval mode.

        "targets" are the senior's labels for the junior, "senior_targets" the junior's for the senior. Pixels below the confidence
        are not valid.

        Args:
            inputs: "image" (3, H, W) 0..255, all of one size, and optionally "inside" (H, W) bool.
        """
        images, size = self.preprocess(inputs).tensor, inputs[0]["image"].shape[-2:]
        inside = [x["inside"].to(self.device, non_blocking=True) if "inside" in x else None for x in inputs]
        with evaluating(self):
            logits = self.both_logits(fitted(images, size, self.training_divisor))
        junior, senior = (
            confident_targets(resize_logits(x.float(), size).softmax(1), self.confidence, inside) for x in logits
        )
        return {"targets": senior, "senior_targets": junior}

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        """The paper's L_sup, L_con and L_KD; the first two as the halves of each network.

        Without unlabelled images (before SSL.START) both learn from labels alone.
        """
        samples, images, known = self.joined(streams)
        size = images.shape[-2:]
        dropped = len(samples) - known if self.feature_dropout else 0
        junior, senior = self.both_logits(images, dropped)
        target, inside = self.class_maps(samples, size), self.inside(samples)
        sup, con = self.label_weight / 2, self.unlabeled_weight / 2
        losses = {
            "loss_sup_junior": sup * self.label_loss(junior[:known], target[:known]),
            "loss_sup_senior": sup * self.label_loss(senior[:known], target[:known]),
        }
        if known < len(samples):
            crossed = self.class_maps(samples[known:], size, "senior_targets")
            rest = inside[known:]
            losses["unlabeled_loss_con_junior"] = con * consistency_loss(junior[known:], target[known:], rest)
            losses["unlabeled_loss_con_senior"] = con * consistency_loss(senior[known:], crossed, rest)
            if self.distillation_weight:
                distillation = distillation_loss(senior, junior, inside, self.temperature)
                losses["loss_kd"] = self.distillation_weight * distillation
        return losses


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside: running statistics are used and stay as they are, nothing is dropped."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def senior_config(cfg: CfgNode) -> CfgNode:
    """The config whose MODEL.BACKBONE and MODEL.DPT.DIM are the senior's."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE = cfg.MODEL.SENIOR.BACKBONE
    cfg.MODEL.DPT.DIM = cfg.MODEL.SENIOR.DIM
    return cfg


def _network_of(cfg: CfgNode) -> tuple[str, str, int]:
    backbone = cfg.MODEL.BACKBONE
    return backbone.NAME, backbone.ARCH, cfg.MODEL.DPT.DIM
