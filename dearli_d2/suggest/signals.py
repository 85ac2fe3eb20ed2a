"""What a model is unsure of in an image: maps of doubt, and a feature that tells images apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList

from ..data.mappers import TestMapper
from ..modeling.per_pixel.semantic import normalized
from ..modeling.segmenter import Segmenter

ENTROPY, VIEWS, NETWORKS = "entropy", "two views", "teacher and student"
_STRIDE = 4  # pixels of the input for one of a map
_DOUBTFUL = 0.2  # part of an image's pixels on which its score depends


@dataclass(frozen=True)
class Doubts:
    """Holds what is known of one image.

    Attributes:
        probability: (K, h, w) class probabilities; what is missing to one is the probability of no class.
        maps: (h, w) doubt in 0..1 by the name of its signal.
        feature: (C,) unit norm.
    """

    probability: torch.Tensor
    maps: dict[str, torch.Tensor]
    feature: torch.Tensor


@contextmanager
def class_scores_only(model: Segmenter) -> Iterator[None]:
    """Inside of it the model makes no panoptic output."""
    before = model.read_out
    model.read_out = replace(before, panoptic=False, instance=False, semantic=True)
    try:
        yield
    finally:
        model.read_out = before


def outcomes(scores: torch.Tensor) -> torch.Tensor:
    """(B, K, h, w) class scores, none negative, to (B, K + 1, h, w) probabilities that sum to one; the last is "no class"."""
    probability = normalized(scores.float())
    return torch.cat([probability, (1 - probability.sum(1, keepdim=True)).clamp(min=0)], 1)


def entropy_map(probability: torch.Tensor) -> torch.Tensor:
    """(K + 1, h, w) probabilities to their (h, w) entropy in 0..1: 1 where all outcomes are equally likely."""
    return -(probability * probability.clamp(min=1e-8).log()).sum(0) / math.log(len(probability))


def disagreement_map(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(h, w) distance in total variation of two (K + 1, h, w) posteriors, in 0..1."""
    return (one - other).abs().sum(0) / 2


def emphasized(doubt: torch.Tensor) -> float:
    """The mean of an (h, w) map over its most doubtful fifth, so that a small doubtful region counts in a plain image."""
    values = doubt.flatten()
    return float(values.topk(max(1, round(_DOUBTFUL * len(values)))).values.mean())


class Signals:
    """Looks at images with a trained model, through the methods of `Segmenter` alone. A signal that a model lacks is left out.

    Args:
        model: in eval mode.
        mapper: as for prediction.
        other: another network of the same run, such as the student beside its teacher.
    """

    def __init__(self, model: Segmenter, mapper: TestMapper, other: Segmenter | None = None) -> None:
        self.model, self.mapper, self.other = model, mapper, other

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Doubts:
        """Looks at an (H, W, 3) uint8 RGB image."""
        sample = self._sample(image)
        flipped = {**sample, "image": sample["image"].flip(-1)}
        plain, mirrored = self._outcomes(self.model, [sample, flipped])
        maps = {ENTROPY: entropy_map(plain), VIEWS: disagreement_map(plain, mirrored.flip(-1))}
        if self.other is not None:
            maps[NETWORKS] = disagreement_map(plain, self._outcomes(self.other, [sample])[0])
        inputs = self.model.preprocess([sample])
        opinions = self.model.opinions(inputs.tensor)
        if len(opinions) > 1:
            names = list(opinions)[:2]
            maps[" and ".join(names)] = self._disagreement(inputs, [opinions[name] for name in names], plain.shape[-2:])
        return Doubts(plain[:-1], maps, self._feature(inputs.tensor))

    @torch.no_grad()
    def feature(self, image: np.ndarray) -> torch.Tensor:
        """(C,) of unit norm: the mean of the backbone's last map."""
        return self._feature(self.model.preprocess([self._sample(image)]).tensor)

    def _sample(self, image: np.ndarray) -> dict:
        sample = self.mapper.prepare(image)
        size = sample["image"].shape[-2:]
        return {**sample, **{key: math.ceil(v / _STRIDE) for key, v in zip(("height", "width"), size, strict=True)}}

    def _outcomes(self, model: Segmenter, samples: list[dict]) -> list[torch.Tensor]:
        with class_scores_only(model):
            return [outcomes(x["sem_seg"][None])[0] for x in model(samples)]

    def _disagreement(self, inputs: ImageList, scores: list[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """Compares two parts of the model; without the padding, at `size`."""
        found = disagreement_map(*(outcomes(s)[0] for s in scores))
        rows, columns = (
            math.ceil(length * part / whole)
            for length, part, whole in zip(inputs.image_sizes[0], found.shape, inputs.tensor.shape[-2:], strict=True)
        )
        return F.interpolate(found[None, None, :rows, :columns], size=tuple(size), mode="bilinear")[0, 0]

    def _feature(self, images: torch.Tensor) -> torch.Tensor:
        _, paths = self.model.backbone_paths()[0]
        last = paths(images)[-1].float()  # (1, C, h, w), or (1, tokens, C)
        pooled = last.mean((2, 3)) if last.ndim == 4 else last.mean(1)
        return F.normalize(pooled[0], dim=0).cpu()
