"""What models share whose queries each give a class and a mask (MaskFormer): losses, read-outs and pseudo-labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import nn

from ..data.taxonomy import Taxonomy
from ..errors import ConfigError
from ..structures import Targets
from .label_maps import LabelMaps, maps_of_classes, maps_of_masks
from .mask2former.criterion import Criterion, build_criterion
from .mask2former.inference import (
    candidates,
    enlarges_in_place,
    instance_inference,
    panoptic_inference,
    panoptic_regions,
    resize_logits,
    segments_of,
    semantic_inference,
)
from .mask2former.matcher import Matches
from .mask2former.transformer_decoder import DecoderOutput
from .segmenter import ReadOut, Segmenter


@dataclass(frozen=True)
class PseudoLabeling:
    """Settings of a teacher's labels (keys `SSL.*`).

    They are the weight of the learned posterior (eq. 6; 1 = no ensemble), the thresholds of the panoptic read-out, the least
    area of a segment in pixels, and the weight of the losses on pseudo-labels.
    """

    alpha: float = 0.6
    object_threshold: float = 0.0
    overlap_threshold: float = 0.8
    min_area: int = 0
    loss_weight: float = 1.0


@dataclass(frozen=True)
class Scoring:
    """Says how `MaskClassifier.semantic_scores` scores the classes of pixels; see `dearli_d2.deploy.metadata.ReadOut`.

    `ensembled`: whether `predict` asks CLIP too.
    """

    activation: str = "softmax"
    semantic: str = "marginal"
    penalty: tuple[float, ...] = ()
    ensembled: bool = False


class MaskClassifier(Segmenter):
    """A model whose queries each give a class and a mask. A subclass has `predict` and `losses`.

    Args:
        backbone: with `size_divisibility`.
        criterion: for training.
        taxonomy: classes; None only in a model that is never asked for panoptic output or text.
        pixel_mean, pixel_std: of 0..255 RGB.
        read_out: what inference returns.
        pseudo_labeling: what `pseudo_label` does.
    """

    def __init__(
        self,
        backbone: nn.Module,
        criterion: Criterion,
        taxonomy: Taxonomy | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        read_out: ReadOut = ReadOut(),
        pseudo_labeling: PseudoLabeling = PseudoLabeling(),
    ) -> None:
        super().__init__(backbone, taxonomy, pixel_mean, pixel_std, read_out)
        self.criterion = criterion
        self.pseudo_labeling = pseudo_labeling

    @staticmethod
    def common_arguments(cfg: CfgNode, taxonomy: Taxonomy | None, criterion: Criterion | None = None) -> dict[str, Any]:
        """The constructor's arguments from the config, all but the backbone.

        Args:
            cfg: the config.
            taxonomy: the classes.
            criterion: None = `build_criterion` of the config.
        """
        text = cfg.MODEL.CLASSIFIER == "text"
        return {
            "criterion": build_criterion(cfg) if criterion is None else criterion,
            "taxonomy": taxonomy,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "read_out": ReadOut.from_config(cfg),
            "pseudo_labeling": PseudoLabeling(
                alpha=cfg.MODEL.ENSEMBLE.ALPHA if text and cfg.MODEL.ENSEMBLE.IN_PSEUDO_LABELS else 1.0,
                object_threshold=cfg.SSL.OBJECT_THRESHOLD,
                overlap_threshold=cfg.SSL.OVERLAP_THRESHOLD,
                min_area=cfg.SSL.MIN_AREA,
                loss_weight=cfg.SSL.LOSS_WEIGHT,
            ),
        }

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.criterion.num_classes

    def set_taxonomy(self, taxonomy: Taxonomy) -> None:
        """Other names of as many classes from now on. Raises `ConfigError` for another number of classes."""
        if len(taxonomy) != self.num_classes:
            raise ConfigError(
                f"this model has a linear classifier for {self.num_classes} classes; only a text "
                "classifier (M2F-Lang) can take other classes"
            )
        self.taxonomy = taxonomy

    def class_logits(self, class_outputs: torch.Tensor) -> torch.Tensor:
        """Class outputs of the network to logits (..., Q, K + 1), last = no object."""
        return class_outputs

    @abstractmethod
    def predict(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Final predictions for normalised (B, 3, H, W) images.

        Returns:
            (B, Q, K + 1) class logits, or log-probabilities; (B, Q, H/4, W/4) mask logits.
        """

    def predict_labels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes the predictions of pseudo-labels; see `predict`."""
        return self.predict(images)

    def outputs(self, batch: list[dict]) -> list[dict]:
        images = self.preprocess(batch)
        class_logits, mask_logits = self.predict(images.tensor)
        return [
            self._read_out(class_logits[i : i + 1], mask_logits[i : i + 1], images, i, x) for i, x in enumerate(batch)
        ]

    def pending_maps(self, batch: list[dict], semantic: bool = True) -> list[Callable[[], LabelMaps]]:
        if self.read_out.window:
            return super().pending_maps(batch, semantic)
        images = self.preprocess(batch)
        class_logits, mask_logits = self.predict(images.tensor)
        padded = images.tensor.shape[-2:]
        result: list[Callable[[], LabelMaps]] = []
        for index, sample in enumerate(batch):
            height, width = images.image_sizes[index]
            size = sample.get("height", height), sample.get("width", width)
            own = class_logits[index : index + 1], mask_logits[index : index + 1]
            result.append(partial(self._label_map, *own, padded, (height, width), size, semantic))
        return result

    def _label_map(
        self,
        class_logits: torch.Tensor,
        mask_logits: torch.Tensor,
        padded: Sequence[int],
        inside: tuple[int, int],
        size: tuple[int, int],
        semantic: bool,
    ) -> LabelMaps:
        """The labels of one image.

        Args:
            class_logits, mask_logits: of the network, (1, Q, K + 1) and (1, Q, h, w).
            padded, inside: size of the network's input with and without its padding.
            size: of the labels.
            semantic: see `label_maps`.
        """
        options = self.read_out
        # full precision under autocast too: near ties decide pixels
        logits, rows = class_logits.float(), candidates(class_logits, options.object_threshold)
        if options.panoptic and not semantic:  # only these masks are read
            logits, mask_logits, rows = logits[:, rows], mask_logits[:, rows], slice(None)
        masks = resize_logits(mask_logits.float(), padded)[..., : inside[0], : inside[1]]
        if not options.panoptic:
            return maps_of_classes(*maps_of_masks(partial(self.semantic_scores, logits), masks, size))
        thresholds = options.object_threshold, options.overlap_threshold
        things = self.known_taxonomy().thing_ids
        full = resize_logits(masks[:, rows], size)
        panoptic, segments = panoptic_inference(logits[:, rows], full, things, *thresholds)[0]
        if not semantic:
            return LabelMaps(panoptic, segments)
        found = maps_of_masks(partial(self.semantic_scores, logits), masks, size)
        return LabelMaps(panoptic, segments, *found[:2])

    def inputs_of(self, streams: dict[str, list[dict]]) -> tuple[torch.Tensor, list[Targets]]:
        """(B, 3, H, W) normalised images of all streams, one after another, and their targets on the device."""
        samples = [x for stream in streams.values() for x in stream]
        images = self.preprocess(samples).tensor
        return images, [x["targets"].to(self.device).padded(*images.shape[-2:]) for x in samples]

    def stream_losses(
        self,
        streams: dict[str, list[dict]],
        output: DecoderOutput,
        targets: Sequence[Targets],
        matches: Matches | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of each stream with its own normalisers; the batch holds one stream after another. `matches`: see `Criterion`."""
        groups = [("" if name == "labeled" else f"{name}_", len(stream)) for name, stream in streams.items()]
        losses = self.criterion(self.class_logits(output.class_outputs), output, targets, groups, matches)
        weight = self.pseudo_labeling.loss_weight
        if weight == 1:
            return losses
        return {name: loss * weight if name.startswith("unlabeled_") else loss for name, loss in losses.items()}

    def raw_outputs(self, images: torch.Tensor, samples: Sequence[dict] | None = None) -> dict[str, torch.Tensor]:
        class_logits, mask_logits = self.predict(images)
        return {"class_logits": class_logits, "mask_logits": mask_logits}

    @property
    def scoring(self) -> Scoring:
        """Describes `semantic_scores` for programs that read out on their own."""
        return Scoring()

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
        class_logits, mask_logits = self.predict_labels(images.tensor)
        inside = [self._inside(sample) for sample in inputs]
        regions = []
        # one image at a time where full-size masks of all queries are written
        step = len(inputs) if enlarges_in_place(self.device) else 1
        for start in range(0, len(inputs), step):
            part = slice(start, start + step)
            logits, masks = class_logits[part], mask_logits[part]
            rows = candidates(logits)
            thresholds = options.object_threshold, options.overlap_threshold
            things, full = self.known_taxonomy().thing_ids, tuple(images.tensor.shape[-2:])
            region = panoptic_regions(logits[:, rows], masks[:, rows], things, *thresholds, full, tuple(size))
            for panoptic, valid in zip(region.panoptic, inside[part], strict=True):
                if valid is not None:
                    panoptic.mul_(valid)
            regions.append(region)
        segments = segments_of(regions, options.min_area)
        return [Targets(labels, masks, valid) for (labels, masks), valid in zip(segments, inside, strict=True)]

    def _inside(self, sample: dict) -> torch.Tensor | None:
        """(H, W) bool on the device, False = padding. None if the host knows that there is no padding."""
        inside = sample.get("inside")
        if inside is None or (inside.device.type == "cpu" and inside.all()):
            return None
        return inside.to(self.device, non_blocking=True)

    def _read_out(
        self, class_logits: torch.Tensor, mask_logits: torch.Tensor, images: ImageList, index: int, inputs: dict
    ) -> dict:
        """Outputs of one image at its asked size; (1, Q, ...) inputs."""
        height, width = images.image_sizes[index]
        mask_logits = resize_logits(mask_logits, images.tensor.shape[-2:])[..., :height, :width]
        mask_logits = resize_logits(mask_logits, (inputs.get("height", height), inputs.get("width", width)))
        return self.read_outs(class_logits, mask_logits)

    def read_outs(self, class_logits: torch.Tensor, mask_logits: torch.Tensor) -> dict[str, Any]:
        """The outputs that `read_out` asks for, of one image; (1, Q, K + 1) and (1, Q, H, W) at the size of the output."""
        options = self.read_out
        result: dict[str, Any] = {}
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
