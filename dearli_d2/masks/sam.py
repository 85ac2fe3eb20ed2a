"""Class-agnostic masks by Segment Anything (Kirillov et al. 2023): a grid of point prompts, filtered by quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
)
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops import batched_nms

from ..errors import WeightsError
from ..weights import read_state_dict
from .classical import annotation

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


class SamGenerator:
    """Makes the masks of `segment_anything.SamAutomaticMaskGenerator` on the whole image, in less time and memory.

    The images of a call are encoded together, many prompts are decoded at a time, and only masks of good predicted quality are
    brought to the size of the image.

    Args:
        sam: the model.
        points_per_side: of the grid of prompts.
        prompts: number of points decoded at a time.
        predicted_iou, stability: least quality of a mask.
        offset: of the logits in the stability score.
        nms: box IoU above which the worse of two masks is dropped.
        name, digest: model and checksum of its weights, for the manifest.
    """

    def __init__(
        self,
        sam: Sam,
        points_per_side: int = 32,
        prompts: int = 256,
        predicted_iou: float = 0.88,
        stability: float = 0.95,
        offset: float = 1.0,
        nms: float = 0.7,
        name: str = "",
        digest: str = "",
    ) -> None:
        self.sam, self.prompts = sam, prompts
        self.points_per_side, self.predicted_iou, self.stability = points_per_side, predicted_iou, stability
        self.offset, self.nms = offset, nms
        self.name, self.digest = name, digest
        self.resize = ResizeLongestSide(sam.image_encoder.img_size)

    def settings(self) -> dict:
        """The entries of the manifest that the masks depend on."""
        names = ("points_per_side", "predicted_iou", "stability", "offset", "nms")
        return {
            "generator": "segment-anything",
            "model": self.name,
            "weights_sha256": self.digest,
            "options": {name: getattr(self, name) for name in names},
        }

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[list[dict]]:
        """(H, W, 3) uint8 RGB images to the annotations of each, see `MaskFolder`."""
        device = self.sam.device
        resized = [torch.from_numpy(self.resize.apply_image(i)).to(device).permute(2, 0, 1) for i in images]
        embeddings = self.sam.image_encoder(torch.stack([self.sam.preprocess(x) for x in resized]))
        return [
            self._annotations(embedding[None], x.shape[-2:], image.shape[:2])
            for embedding, x, image in zip(embeddings, resized, images, strict=True)
        ]

    def _annotations(self, embedding: torch.Tensor, input_size: tuple, size: tuple[int, int]) -> list[dict]:
        grid = build_point_grid(self.points_per_side) * np.array(size)[None, ::-1]
        points = torch.from_numpy(self.resize.apply_coords(grid, size)).to(embedding.device)
        found = [self._decode(embedding, part, input_size, size) for part in points.split(self.prompts)]
        logits, scores, stability, boxes = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = batched_nms(boxes.float(), scores, torch.zeros_like(scores), self.nms)
        masks = (mask for part in logits[kept].split(64) for mask in self._full_size(part, input_size, size))
        return [
            annotation((mask > self.sam.mask_threshold).cpu().numpy(), score, stable)
            for mask, score, stable in zip(masks, scores[kept].tolist(), stability[kept].tolist(), strict=True)
        ]

    def _full_size(self, logits: torch.Tensor, input_size: tuple, size: tuple[int, int]) -> torch.Tensor:
        """(M, H, W) logits in the size of the image."""
        return self.sam.postprocess_masks(logits[:, None], input_size, size)[:, 0]

    def _decode(
        self, embedding: torch.Tensor, points: torch.Tensor, input_size: tuple, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The good masks of (P, 2) points: (M, h, w) logits, (M,) predicted IoU, (M,) stability, (M, 4) boxes.

        The logits keep the decoder's size. Thousands of masks at the size of a photograph would need gigabytes.
        """
        sam, labels = self.sam, torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        sparse, dense = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
        logits, quality = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        good = quality > self.predicted_iou
        logits, scores = logits[good], quality[good]  # bringing masks to full size is most of the work
        stability, boxes, full = [scores[:0]], [points.new_zeros(0, 4, dtype=torch.long)], [good.new_zeros(0)]
        for part in logits.split(64):
            large = self._full_size(part, input_size, size)
            stability.append(calculate_stability_score(large, sam.mask_threshold, self.offset))
            mask = large > sam.mask_threshold
            boxes.append(batched_mask_to_box(mask))
            full.append(mask.flatten(1).any(1))
        all_stability = torch.cat(stability)
        chosen = (all_stability >= self.stability) & torch.cat(full)
        return logits[chosen], scores[chosen], all_stability[chosen], torch.cat(boxes)[chosen]
