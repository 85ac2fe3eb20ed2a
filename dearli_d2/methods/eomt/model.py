"""EoMT, the Encoder-only Mask Transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import nn

from ...data.taxonomy import Taxonomy
from ...errors import ConfigError
from ...modeling.mask2former.criterion import SetCriterion
from ...modeling.mask2former.matcher import HungarianMatcher
from ...modeling.mask2former.transformer_decoder import DecoderOutput
from ...modeling.mask_classifier import MaskClassifier, PseudoLabeling
from ...modeling.precision import weights_cast_once
from ...modeling.segmenter import BackbonePaths, Fitting, LearningRate, ReadOut
from .annealing import mask_probabilities
from .names import our_names
from .network import attention_mask, build_mask_head, build_upscale
from .options import EoMTOptions
from .vit import PlainViT, build_vit


@META_ARCH_REGISTRY.register()
class EoMT(MaskClassifier):
    """A plain ViT whose last blocks read queries and patches together; each query gives a class and a mask.

    In training each of these blocks first predicts the masks, and its queries attend inside them with a probability that
    falls to 0 (`mask_probabilities`). A trained model predicts once, behind the last block, without any mask. A model that is
    evaluated during training masks a block's queries while its probability is at least 0.5, so that predictions do not
    depend on chance.

    Args:
        backbone: see `PlainViT`.
        num_queries: number of queries Q.
        criterion: losses of training, the same at every prediction.
        taxonomy, pixel_mean, pixel_std, read_out, pseudo_labeling: see `MaskClassifier`.
        options: of the method.
        pad_value: 0..255, of the pixels around images that are smaller than those of training.
    """

    backbone: PlainViT
    attn_mask_probs: torch.Tensor
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: PlainViT,
        num_queries: int,
        criterion: SetCriterion,
        taxonomy: Taxonomy | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        options: EoMTOptions = EoMTOptions(),
        pad_value: int = 128,
        read_out: ReadOut = ReadOut(),
        pseudo_labeling: PseudoLabeling = PseudoLabeling(),
    ) -> None:
        super().__init__(backbone, criterion, taxonomy, pixel_mean, pixel_std, read_out, pseudo_labeling)
        self.options, self.pad_value = options, pad_value
        self.q = nn.Embedding(num_queries, backbone.dim)
        self.class_head = nn.Linear(backbone.dim, self.num_classes + 1)
        self.mask_head = build_mask_head(backbone.dim)
        self.upscale = build_upscale(backbone.dim, backbone.patch)
        # part of a checkpoint: one from the middle of a training is evaluated as it was trained
        self.register_buffer("attn_mask_probs", torch.ones(options.blocks))
        self._probabilities: list[float] = []
        self._seen: tuple[torch.Tensor, int] | None = None  # the buffer that the host read last, and its version then

    @classmethod
    def from_config(cls, cfg: CfgNode, taxonomy: Taxonomy | None = None) -> dict:
        """Reads the arguments of the constructor from a config."""
        backbone, options = cfg.MODEL.BACKBONE, EoMTOptions.of(cfg)
        vit = build_vit(backbone.ARCH, backbone.WEIGHTS, cfg.INPUT.CROP_SIZE, options.patch_size)
        if options.blocks > len(vit.blocks):
            raise ConfigError(f"MODEL.EOMT.BLOCKS is {options.blocks}, {backbone.ARCH} has {len(vit.blocks)} blocks")
        return {
            **cls.common_arguments(cfg, taxonomy),
            "backbone": PlainViT(vit, backbone.CHECKPOINT_BLOCKS),
            "num_queries": cfg.MODEL.MASK_FORMER.NUM_QUERIES,
            "options": options,
            "pad_value": cfg.INPUT.PAD_VALUE,
        }

    def own_names(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Translates the names of the authors' checkpoints and of Hugging Face's."""
        return our_names(state)

    # ------------------------------------------------------------------------------------------ training

    def backbone_paths(self) -> BackbonePaths:
        """Says that all of the ViT takes part in the losses."""
        return [(self.backbone, lambda images: [self.backbone(images)])]

    @property
    def training_divisor(self) -> int:
        """Side of a patch, of which crops are multiples."""
        return self.backbone.patch

    def check_training(self, cfg: CfgNode) -> None:
        """Refuses a training that ends before the ViT begins to learn."""
        delay, steps = self.options.backbone_delay, cfg.SOLVER.MAX_ITER
        if delay >= steps:
            raise ConfigError(
                f"the ViT learns nothing: MODEL.EOMT.BACKBONE_DELAY is {delay}, SOLVER.MAX_ITER is {steps}; lower the first"
            )

    def set_progress(self, step: int, total: int) -> None:
        """Sets the probabilities of the masks for a step; see `Segmenter.set_progress`."""
        options = self.options
        interval = options.annealing_start, options.annealing_end
        values = mask_probabilities(step / total, options.blocks, *interval, options.annealing_power)
        on_host = torch.tensor(values)
        self.attn_mask_probs.copy_(on_host, non_blocking=True)
        self._read(on_host.tolist())

    def _read(self, values: list[float]) -> None:
        buffer = self.attn_mask_probs
        self._probabilities = values
        self._seen = None if buffer.is_inference() else (buffer, buffer._version)  # the former has no version

    def _knows_probabilities(self) -> bool:
        buffer = self.attn_mask_probs
        return self._seen is not None and self._seen[0] is buffer and self._seen[1] == buffer._version

    def learning_rate(self, name: str) -> LearningRate:
        """Lets the ViT start after the new parts, and early blocks learn more slowly than late ones."""
        if not name.startswith("backbone."):
            return LearningRate()
        options, part = self.options, name.removeprefix("backbone.vit.")
        if part.startswith("norm."):
            blocks_behind = 0
        elif part.startswith("blocks."):
            blocks_behind = self.backbone.depth - 1 - int(part.split(".")[1])
        else:  # embeddings and tokens, as the first block
            blocks_behind = self.backbone.depth - 1
        return LearningRate(options.layer_decay**blocks_behind, options.backbone_delay, options.backbone_warmup)

    def losses(self, streams: dict[str, list[dict]]) -> dict[str, torch.Tensor]:
        """Applies the criterion to each prediction: unlike in Mask2Former, each has mask features of its own."""
        images, targets = self.inputs_of(streams)
        outputs, losses, matcher = self.network(images), {}, self.criterion.matcher
        assert isinstance(matcher, HungarianMatcher)
        all_matches = matcher.of_each([(self.class_logits(x.class_outputs), x) for x in outputs], targets)
        for index, (output, matches) in enumerate(zip(outputs, all_matches, strict=True)):
            suffix = "" if index == len(outputs) - 1 else f"_{index}"
            for name, loss in self.stream_losses(streams, output, targets, matches).items():
                losses[name + suffix] = loss
        return losses

    # ------------------------------------------------------------------------------------------ network

    def network(self, images: torch.Tensor) -> list[DecoderOutput]:
        """Predicts for normalised (B, 3, H, W) images whose sides are multiples of the patch.

        Returns:
            The predictions before each of the last blocks and behind the last one. In evaluation those that no mask needs
            are left out.
        """
        with weights_cast_once(self, images.device, with_gradient=False):
            return self._network(images)

    def _network(self, images: torch.Tensor) -> list[DecoderOutput]:
        vit, grid = self.backbone, (images.shape[-2] // self.backbone.patch, images.shape[-1] // self.backbone.patch)
        first = vit.depth - self.options.blocks
        x, outputs = vit.embed(images), []
        for index in range(first):
            x = vit.block(index, x)
        x = torch.cat([self.q.weight.expand(x.shape[0], -1, -1), x], 1)
        # a graph has the values of the call before
        if not torch.compiler.is_exporting() and not self._knows_probabilities():
            self._read(self.attn_mask_probs.tolist())
        for index, probability in enumerate(self._probabilities, start=first):
            if not self.training:
                probability = float(probability >= 0.5)
            mask = None
            if self.training or probability:
                outputs.append(self._predict(vit.norm(x), grid))
            if probability:
                mask = attention_mask(outputs[-1], grid, vit.prefix, probability)
            x = vit.block(index, x, mask)
        return [*outputs, self._predict(vit.norm(x), grid)]

    def _predict(self, x: torch.Tensor, grid: tuple[int, int]) -> DecoderOutput:
        """Makes a prediction from (B, Q + prefix + h w, C) tokens behind the norm."""
        queries, patches = x[:, : self.q.num_embeddings], x[:, self.q.num_embeddings + self.backbone.prefix :]
        features = self.upscale(patches.transpose(1, 2).unflatten(2, grid))
        return DecoderOutput(self.class_head(queries)[None], self.mask_head(queries)[None], features)

    # ------------------------------------------------------------------------------------------ inference

    @property
    def fitting(self) -> Fitting:
        """Says what `preprocess` does."""
        return Fitting(self.backbone.patch, least=self.backbone.image_size, pad=(self.pad_value,) * 3)

    def preprocess(self, batch: list[dict]) -> ImageList:
        """Normalises images and pads them at the right and bottom.

        The sides become multiples of the patch, and at least the side of training, so that the ViT's positions mean what
        they meant in training.
        """
        images = [x["image"].to(self.device, non_blocking=True) for x in batch]
        patch, least = self.backbone.patch, self.backbone.image_size
        height, width = (-(-max(least, *(x.shape[d] for x in images)) // patch) * patch for d in (1, 2))
        padded = self.pixel_mean.new_full((len(images), 3, height, width), self.pad_value)
        for row, image in zip(padded, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        sizes = [tuple(image.shape[-2:]) for image in images]
        return ImageList((padded - self.pixel_mean) / self.pixel_std, sizes)

    def predict(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicts behind the last block; see `MaskClassifier.predict`."""
        output = self.network(images)[-1]
        return output.class_outputs[-1], output.mask_logits()
