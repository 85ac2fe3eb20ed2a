"""Segment Anything (Kirillov et al. 2023) of the package segment-anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from ..errors import WeightsError
from ..weights import read_state_dict
from .point_grid import PointNetwork

MODELS = ("vit_b", "vit_l", "vit_h")


def load_sam(model: str, weights: str | Path, device: str | torch.device) -> Sam:
    """A SAM of `MODELS` with the weights of a file, in eval mode.

    Raises:
        WeightsError: an unreadable file, or one of another model.
    """
    state = read_state_dict(weights)
    sam = sam_model_registry[model]()
    try:
        sam.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{weights} does not fit SAM {model}: {str(error).splitlines()[1].strip()}") from error
    return sam.eval().to(device)


@dataclass(frozen=True)
class SamFeatures:
    """The encoding of one image.

    Args:
        embedding: (1, C, h, w).
        input_size: height and width of the image inside of the network's square.
        size: height and width of the image.
    """

    embedding: torch.Tensor
    input_size: tuple[int, int]
    size: tuple[int, int]


class SamNetwork(PointNetwork[SamFeatures]):
    """SAM as a `PointNetwork`.

    Args:
        sam: the model.
    """

    package = "segment-anything"
    predicted_iou = 0.88

    def __init__(self, sam: Sam) -> None:
        self.sam, self.device, self.mask_threshold = sam, sam.device, sam.mask_threshold
        self.resize = ResizeLongestSide(sam.image_encoder.img_size)

    def encode(self, images: Sequence[np.ndarray]) -> list[SamFeatures]:
        """See `PointNetwork`."""
        resized = [torch.from_numpy(self.resize.apply_image(i)).to(self.device).permute(2, 0, 1) for i in images]
        embeddings = self.sam.image_encoder(torch.stack([self.sam.preprocess(x) for x in resized]))
        return [
            SamFeatures(embedding[None], (x.shape[-2], x.shape[-1]), image.shape[:2])
            for embedding, x, image in zip(embeddings, resized, images, strict=True)
        ]

    def decode(self, features: SamFeatures, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PointNetwork`."""
        sam, labels = self.sam, torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        inside = points * points.new_tensor(features.input_size[::-1])
        with torch.autocast(self.device.type, enabled=False):
            sparse, dense = sam.prompt_encoder(points=(inside[:, None], labels), boxes=None, masks=None)
            positions = sam.prompt_encoder.get_dense_pe()
        return sam.mask_decoder(
            image_embeddings=features.embedding,
            image_pe=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )

    def enlarge(self, logits: torch.Tensor, features: SamFeatures) -> torch.Tensor:
        """See `PointNetwork`."""
        return self.sam.postprocess_masks(logits[:, None], features.input_size, features.size)[:, 0]
