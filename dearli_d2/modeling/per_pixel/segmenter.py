"""Base of methods that classify every pixel: reading out, pseudo-labels, and what a loss on pixels needs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import ImageList

from ...errors import ConfigError
from ...structures import Targets
from ..mask2former.inference import resize_logits
from ..segmenter import Segmenter
from .losses import IGNORE
from .semantic import confident_targets


class PixelSegmenter(Segmenter):
    """A `Segmenter` whose network gives class logits of every pixel.

    Attributes:
        confidence: of a pixel's class, from which on it is a pseudo-label (SSL.CONFIDENCE).
    """

    confidence: float

    @abstractmethod
    def logits(self, images: torch.Tensor, samples: Sequence[dict] | None) -> torch.Tensor:
        """Normalised (B, 3, H, W) images to (B, K, h, w) at any resolution; `samples` are the dicts they come from."""

    def raw_outputs(self, images: torch.Tensor, samples: Sequence[dict] | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.logits(images, samples)}

    def network(self, images: torch.Tensor) -> Any:
        """The logits of images about which nothing else is known."""
        return self.logits(images, None)

    def scores(self, inputs: ImageList, samples: list[dict]) -> torch.Tensor:
        logits = self.logits(inputs.tensor, samples).float()
        return resize_logits(logits, inputs.tensor.shape[-2:]).softmax(1)

    def outputs(self, batch: list[dict]) -> list[dict]:
        images = self.preprocess(batch)
        scores = self.scores(images, batch)
        results = []
        for row, (height, width), sample in zip(scores, images.image_sizes, batch, strict=True):
            size = sample.get("height", height), sample.get("width", width)
            results.append({"sem_seg": resize_logits(row[None, :, :height, :width], size)[0]})
        return results

    @torch.no_grad()
    def pseudo_label(self, inputs: list[dict]) -> list[Targets]:
        """The best class of each pixel; pixels below the confidence are not valid. See `MaskClassifier.pseudo_label`."""
        images = self.preprocess(inputs)
        height, width = inputs[0]["image"].shape[-2:]
        probability = self.scores(images, inputs)[..., :height, :width]
        valid = [x["inside"].to(self.device, non_blocking=True) if "inside" in x else None for x in inputs]
        return confident_targets(probability, self.confidence, valid)

    def set_taxonomy(self, taxonomy: object) -> None:
        """Raises `ConfigError`: the classes of a trained classifier cannot be changed."""
        raise ConfigError("this model has a linear classifier of fixed classes; only a text classifier can take others")

    def joined(self, streams: Mapping[str, list[dict]]) -> tuple[list[dict], torch.Tensor, int]:
        """All samples, unlabelled ones last; their images; how many are labelled."""
        labeled = [x for name, stream in streams.items() if name != "unlabeled" for x in stream]
        samples = [*labeled, *streams.get("unlabeled", [])]
        return samples, self.preprocess(samples).tensor, len(labeled)

    def class_maps(self, samples: Sequence[dict], size: Sequence[int], key: str = "targets") -> torch.Tensor:
        """(B, H, W) int64 targets of a batch padded to `size`, 255 = no loss."""
        return torch.stack([x[key].to(self.device).padded(*size).semantic(IGNORE) for x in samples])
