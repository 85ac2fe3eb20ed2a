"""What all models share: normalised and padded input, training or inference, sliding windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import nn

from ..data.taxonomy import Taxonomy
from ..errors import ConfigError
from ..structures import Targets
from .backbone.pyramid import LEVELS
from .label_maps import LabelMaps, maps_of_output
from .labeler import Labeler
from .linear import with_fast_products
from .mask2former.inference import resize_logits
from .per_pixel.semantic import sliding_window

if TYPE_CHECKING:
    from ..data.build import TrainingImages

_PAD_TO = 32

# backbones of a model, each with what losses take from it: (B, 3, H, W) images to tensors
BackbonePaths = list[tuple[nn.Module, Callable[[torch.Tensor], Sequence[torch.Tensor]]]]


def input_divisor(backbone: Backbone) -> int:
    """The sides of a backbone's input must be multiples of this number of pixels."""
    return backbone.size_divisibility or _PAD_TO


def level_channels(backbone: Backbone, name: str) -> dict[str, int]:
    """Channels of each map of a backbone, `LEVELS` among them.

    Args:
        name: MODEL.BACKBONE.NAME, for the error.

    Raises:
        ConfigError: one of `LEVELS` is missing.
    """
    channels = {level: shape.channels for level, shape in backbone.output_shape().items()}
    missing = [level for level in LEVELS if level not in channels]
    if missing:
        advice = f"; set MODEL.RESNETS.OUT_FEATURES {list(LEVELS)}" if name == "build_resnet_backbone" else ""
        raise ConfigError(
            f"MODEL.BACKBONE.NAME {name} gives {', '.join(channels)}; the head needs {', '.join(missing)} too{advice}"
        )
    return channels


def levels_of(features: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The four maps that decoders read."""
    return [features[name] for name in LEVELS]


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a parameter, relative to that of the run.

    Args:
        factor: multiplies SOLVER.BASE_LR.
        delay: number of first steps in which it is 0.
        warmup: number of steps of the linear warm-up after the delay; None = SOLVER.WARMUP_ITERS.
    """

    factor: float = 1.0
    delay: int = 0
    warmup: int | None = None


@dataclass(frozen=True)
class ReadOut:
    """The outputs of inference and their thresholds (keys `TEST.*`)."""

    panoptic: bool = True
    semantic: bool = True
    instance: bool = False
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    topk: int = 100
    window: int = 0
    window_stride: int = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ReadOut:
        """Reads the section TEST."""
        test = cfg.TEST
        return cls(
            panoptic=test.PANOPTIC_ON,
            semantic=test.SEMANTIC_ON,
            instance=test.INSTANCE_ON,
            object_threshold=test.OBJECT_THRESHOLD,
            overlap_threshold=test.OVERLAP_THRESHOLD,
            topk=test.DETECTIONS_PER_IMAGE,
            window=test.WINDOW,
            window_stride=test.WINDOW_STRIDE or max(1, test.WINDOW * 2 // 3),
        )


@dataclass(frozen=True)
class Fitting:
    """Says how the sides of an image become those of the network's input; see `dearli_d2.deploy.metadata.Preparation`.

    `pad`: the colour of the padding, 0..255; None = `pixel_mean`, which is 0 behind the normalisation.
    """

    divisor: int
    fit: str = "pad"
    least: int = 0
    pad: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Words:
    """The classes of a model that takes any words, as `Segmenter.raw_outputs_of` takes them.

    `embeddings` (K, S, E) holds S names a class. `alpha` (K,) is the weight of the learned classifier for each class, None where it is
    the same for all. `fingerprint` is that of the text tower and the prompts.
    """

    embeddings: torch.Tensor
    alpha: torch.Tensor | None
    fingerprint: str


def _given(maps: LabelMaps) -> LabelMaps:
    return maps


class Segmenter(nn.Module, ABC):
    """A model of this project. Training, evaluation, prediction and planning use the methods below and no others.

    Normalising, padding, sliding windows and `forward` are the same for all models.

    Args:
        backbone: with `size_divisibility`.
        taxonomy: classes; None only in a model that is never asked for panoptic output or text.
        pixel_mean, pixel_std: of 0..255 RGB.
        read_out: the outputs of inference.
    """

    backbone: Backbone
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor
    takes_words = False  # `set_taxonomy` takes any classes, in any number

    def __init__(
        self,
        backbone: nn.Module,
        taxonomy: Taxonomy | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        read_out: ReadOut = ReadOut(),
    ) -> None:
        super().__init__()
        self.backbone = with_fast_products(backbone)
        self.taxonomy = taxonomy
        self.read_out = read_out
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict[str, Any]:
        """The constructor's arguments from a config."""

    @abstractmethod
    def losses(self, streams: dict[str, list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        """Weighted losses by name; see `forward`."""

    @abstractmethod
    def network(self, images: torch.Tensor) -> Any:
        """Everything that the network computes for normalised (B, 3, H, W) images, for an estimate of memory."""

    @abstractmethod
    def raw_outputs(
        self, images: torch.Tensor, samples: Sequence[dict[str, Any]] | None = None
    ) -> dict[str, torch.Tensor]:
        """Tensors that read-outs are made of, for normalised (B, 3, H, W) images; `dearli_d2.deploy.metadata` says the names.

        Args:
            samples: the dicts that the images come from, or one for all. None = nothing is known about them.
        """

    def words(self) -> Words:
        """Text embeddings of the classes. Raises `ConfigError` where `takes_words` is False."""
        raise ConfigError(f"{type(self).__name__} has fixed classes; only a text classifier (M2F-Lang) takes others")

    def raw_outputs_of(
        self, images: torch.Tensor, embeddings: torch.Tensor, alpha: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """`raw_outputs` with the classes of `Words`. Raises `ConfigError` where `takes_words` is False."""
        raise ConfigError(f"{type(self).__name__} has fixed classes; only a text classifier (M2F-Lang) takes others")

    @abstractmethod
    def outputs(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predictions of whole images; see `forward`."""

    @abstractmethod
    def scores(self, inputs: ImageList, samples: list[dict[str, Any]]) -> torch.Tensor:
        """(B, K, H, W) semantic scores at the size of the padded inputs."""

    @abstractmethod
    def set_taxonomy(self, taxonomy: Taxonomy) -> None:
        """Takes other class names.

        Raises:
            ConfigError: this model cannot change its classes, or not to so many.
        """

    @property
    def reads_captions(self) -> bool:
        """True if a sample needs a "caption" beside the image."""
        return False

    def check_images(self, images: TrainingImages) -> None:
        """Fails early on images that this method cannot train with, and takes from them what its losses need.

        Raises:
            ConfigError, DatasetError: see the method.
        """

    def check_training(self, cfg: CfgNode) -> None:
        """Fails early on settings that this method cannot train with. Raises `ConfigError`."""

    def backbone_paths(self) -> BackbonePaths:
        """The outputs of each backbone that losses use. `freeze_unused` freezes the other parts."""
        return [(self.backbone, lambda images: levels_of(self.backbone(images)))]

    def learning_rate(self, name: str) -> LearningRate:
        """The learning rate of the parameter `name`, for methods whose layers learn at different speeds."""
        return LearningRate()

    def opinions(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Class scores of the model's parts that each classify on their own, by the part's name, to see where they disagree.

        Args:
            images: normalised (B, 3, H, W).

        Returns:
            (B, K, h, w) at any resolution, all alike; {} for a model with one classifier.
        """
        return {}

    def own_names(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint that was published for this model, under the names that they have here.

        Args:
            state: of any file. What has the names of this model already is returned as it is.
        """
        return state

    def set_progress(self, step: int, total: int) -> None:
        """Called before each training step, for methods whose network or losses change during training.

        Args:
            step: of the run, counted from 0.
            total: steps of the whole run. A method computes its state from these two
                alone, so that a resumed run goes on as if it had not stopped.
        """

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Inside of it the model runs on tensors without content, see `dearli_d2.rehearsal`.

        A method that decides by values replaces these decisions.
        """
        yield

    def labeler(self, cfg: CfgNode) -> Labeler | None:
        """Says who labels the unlabelled images in training. None: an EMA teacher, which the engine makes of this model."""
        return None

    @abstractmethod
    def pseudo_label(self, inputs: list[dict[str, Any]]) -> list[Targets]:
        """Labels weak views as the teacher of semi-supervised training, in eval mode and without a gradient.

        Args:
            inputs: "image" (3, H, W) 0..255, all of one size, and optionally "inside" (H, W) bool: labels are cut to it.

        Returns:
            On the device, one per image; where "inside" is False nothing is valid.
        """

    def known_taxonomy(self) -> Taxonomy:
        """The classes.

        Raises:
            ConfigError: the model was built without them.
        """
        if self.taxonomy is None:
            raise ConfigError(
                "the model knows no classes: register the data set of DATASETS.TRAIN or load a checkpoint"
            )
        return self.taxonomy

    @property
    def training_divisor(self) -> int:
        """The sides of training crops must be multiples of this; 1 where the images are padded."""
        return 1

    @property
    def fitting(self) -> Fitting:
        """Says how `preprocess` makes the sides of images fit, for programs that prepare images themselves."""
        return Fitting(input_divisor(self.backbone))

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.pixel_mean.device

    def preprocess(self, batch: list[dict[str, Any]]) -> ImageList:
        """Normalised images, padded at the right and bottom to a multiple of the backbone's need, or of 32."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batch]
        divisor = input_divisor(self.backbone)
        if len({image.shape for image in images}) > 1:
            normalized = [(image - self.pixel_mean) / self.pixel_std for image in images]
            return ImageList.from_tensors(normalized, divisor)
        height, width = images[0].shape[-2:]
        tensor = (torch.stack(images) - self.pixel_mean) / self.pixel_std
        padding = (0, -width % divisor, 0, -height % divisor)
        return ImageList(F.pad(tensor, padding) if any(padding) else tensor, [(height, width)] * len(images))

    def forward(
        self, batch: list[dict[str, Any]] | dict[str, list[dict[str, Any]]]
    ) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Losses of a batch in training, predictions in evaluation.

        Args:
            batch: one dict an image: "image" (3, H, W) RGB 0..255; for training "targets" (`Targets`, H x W) and, for
                losses per pixel of all of an image, "inside" (H, W) bool, False = padding; for
                inference optionally "height", "width": size of the output. In training also several streams by name,
                {"labeled": [...], "unlabeled": [...]}, the latter with pseudo-labels as targets: all go through the
                network together, each with losses and normalisers of its own.

        Returns:
            Training: weighted losses by name, those of pseudo-labels as "unlabeled_loss_...". Inference: a list of dicts
            with "panoptic_seg" ((H, W) int32 ids and segments), "sem_seg" (K, H, W) scores and "instances", as `read_out`
            asks.
        """
        if self.training:
            return self.losses(batch if isinstance(batch, dict) else {"labeled": batch})
        assert not isinstance(batch, dict)  # streams are for training
        if self.read_out.window:
            return [{"sem_seg": self._windowed_scores(x)} for x in batch]
        return self.outputs(batch)

    def label_maps(self, batch: list[dict[str, Any]], semantic: bool = True) -> list[LabelMaps]:
        """The labels of whole images, as prediction writes them.

        Args:
            batch: see `forward`.
            semantic: with the class of each pixel and its probability. Without them a panoptic model reads out less.
        """
        return [read_out() for read_out in self.pending_maps(batch, semantic)]

    def pending_maps(self, batch: list[dict[str, Any]], semantic: bool = True) -> list[Callable[[], LabelMaps]]:
        """Runs the network for `label_maps`. Returns for each image a function that reads out its labels, in any thread.

        This base class reads out the labels at once, since class scores of all pixels would take much memory while they wait.
        """
        return [partial(_given, maps_of_output(output, semantic)) for output in self(batch)]

    def _windowed_scores(self, sample: dict[str, Any]) -> torch.Tensor:
        """(K, H, W) at the asked size, by windows over the image."""

        def scores(images: torch.Tensor) -> torch.Tensor:
            parts = [{**sample, "image": image} for image in images]
            return self.scores(self.preprocess(parts), parts)[..., : images.shape[-2], : images.shape[-1]]

        image = sample["image"].to(self.device)[None]
        result = sliding_window(scores, image, self.read_out.window, self.read_out.window_stride)
        return resize_logits(result, (sample.get("height", image.shape[2]), sample.get("width", image.shape[3])))[0]
