"""SAM 2 (Ravi et al. 2024) and SAM 3 (2025) of the package transformers, the optional extra `sam2`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, WeightsError
from ..files import parse_json
from ..weight_list import in_place_of_file
from .point_grid import PointNetwork

CLASSES = {
    "sam2": ("Sam2Model", "Sam2ImageProcessor", ("sam2", "sam2_video")),
    "sam3": ("Sam3TrackerModel", "Sam3ImageProcessor", ("sam3_tracker", "sam3_video")),
}
"""Classes of transformers for a model and its images, and what `model_type` in its `config.json` may be. The published folders hold
models for videos, of which the part for images is taken."""
_INSTALL = "pip install 'dearli_d2[sam2]'"


def load_sam2(model: str, weights: str | Path, device: str | torch.device) -> Sam2Network:
    """A SAM 2 or SAM 3 in eval mode.

    Args:
        model: of `CLASSES`.
        weights: a folder as the Hugging Face hub has it, with `config.json` and `model.safetensors`, or that file.
        device: of the model.

    Raises:
        ConfigError: the package transformers is missing, or too old for the model.
        WeightsError: no such folder, a damaged file, or one of another model.
    """
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    _check_folder(model, folder, weights)
    network, processor = _classes(model)
    with _quiet():
        try:
            made, report = network.from_pretrained(
                folder, output_loading_info=True, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except Exception as error:  # of safetensors, huggingface_hub and transformers, without a base in common
            raise WeightsError(f"{folder} does not hold a {model}: {_first_line(error)}") from error
    wrong = sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]}))
    if wrong:
        raise WeightsError(f"{folder} does not fit {model}: {len(wrong)} of its tensors are missing, first: {wrong[0]}")
    return Sam2Network(made.eval().to(device), processor)


def _check_folder(model: str, folder: Path, weights: str | Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        advice = in_place_of_file(weights) or f"; {model} needs the folder of the hub with model.safetensors"
        raise WeightsError(f"{weights}: there is no {path}{advice}")
    try:
        kind = parse_json(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from error
    if kind not in CLASSES[model][2]:
        other = next((f"; give --model {name}" for name, (*_, kinds) in CLASSES.items() if kind in kinds), "")
        raise WeightsError(f"{path} is of a {kind}, not of a {model}{other}")


def _classes(model: str) -> tuple[Any, Any]:
    try:
        import transformers

        network, processor, _ = CLASSES[model]
        return getattr(transformers, network), getattr(transformers, processor)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--model {model} needs the package transformers ({error}): {_INSTALL}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without reports on the parts of a model for videos that are left out."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclass(frozen=True)
class Sam2Features:
    """The encoding of one image.

    Args:
        embedding: (1, C, h, w).
        finer: the maps of twice and four times that size, the largest first.
        size: height and width of the image.
    """

    embedding: torch.Tensor
    finer: list[torch.Tensor]
    size: tuple[int, int]


class Sam2Network(PointNetwork[Sam2Features]):
    """SAM 2 or SAM 3 as a `PointNetwork`.

    Args:
        model: `Sam2Model` or `Sam3TrackerModel`.
        processor: of its images.
    """

    package = "transformers"
    predicted_iou = 0.8

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor, self.device = model, processor, model.device
        self.side = int(model.prompt_encoder.input_image_size)

    def encode(self, images: Sequence[np.ndarray]) -> list[Sam2Features]:
        """See `PointNetwork`."""
        side = {"height": self.side, "width": self.side}
        tensors = [torch.from_numpy(image).permute(2, 0, 1).to(self.device) for image in images]
        pixels = self.processor(tensors, size=side, return_tensors="pt")["pixel_values"]
        *finer, embeddings = self.model.get_image_embeddings(pixels)
        return [
            Sam2Features(embeddings[i : i + 1], [level[i : i + 1] for level in finer], image.shape[:2])
            for i, image in enumerate(images)
        ]

    def decode(self, features: Sam2Features, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PointNetwork`. The image is stretched to a square, so shares of its sides are shares of the square."""
        model = self.model
        inside = (points * self.side).float()[None, :, None]
        labels = torch.ones(inside.shape[:-1], dtype=torch.int, device=points.device)
        with torch.autocast(self.device.type, enabled=False):
            sparse, dense = model.prompt_encoder(
                input_points=inside, input_labels=labels, input_boxes=None, input_masks=None
            )
            positions = model.get_image_wide_positional_embeddings()
        logits, quality, *_ = model.mask_decoder(
            image_embeddings=features.embedding,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=features.finer,
        )
        return logits[0], quality[0]

    def enlarge(self, logits: torch.Tensor, features: Sam2Features) -> torch.Tensor:
        """See `PointNetwork`."""
        return torch.nn.functional.interpolate(logits[:, None], features.size, mode="bilinear")[:, 0]
