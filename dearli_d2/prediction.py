"""The prediction of one image: what it is made from, and what it holds. Nothing here needs torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from .data.images import read_image, reading_problem, upright
from .data.taxonomy import Taxonomy
from .errors import DatasetError

Picture: TypeAlias = np.ndarray | Image.Image | str | Path


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image.

    Args:
        panoptic: (H, W) int32 segment ids, 0 = none.
        segments: dicts with "id", "category_id", "isthing", "score".
        semantic: (H, W) class indices.
        confidence: (H, W) float32 in 0..1: probability of the class in `semantic`; low where no class is sure.
        taxonomy: the classes that the indices mean.
    """

    panoptic: np.ndarray
    segments: list[dict[str, Any]]
    semantic: np.ndarray
    confidence: np.ndarray
    taxonomy: Taxonomy


def as_pixels(image: Picture) -> np.ndarray:
    """(H, W, 3) uint8 RGB of one image that `Predictor` takes. Raises `DatasetError` for another kind of image."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, np.ndarray) and _is_picture(image):
        if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
            return image
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if isinstance(image, Image.Image):
        if problem := reading_problem(image):
            raise DatasetError(f"the image {problem}")
        try:
            return np.asarray(upright(image).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes a file only now
            raise DatasetError(f"the image cannot be decoded: {error}") from error
    expected = "an image is a path, a PIL image or a uint8 array: (H, W, 3) RGB, (H, W) grey"
    if isinstance(image, np.ndarray):
        raise DatasetError(f"{expected}, not {image.shape} {image.dtype}{_advice_on(image)}")
    advice = ""
    torch = sys.modules.get("torch")  # not imported here: who gives a tensor has it
    if torch is not None and isinstance(image, torch.Tensor):
        advice = "; for a (3, H, W) uint8 tensor: image.permute(1, 2, 0).cpu().numpy()"
    raise DatasetError(f"{expected}, not a {type(image).__name__}{advice}")


def _is_picture(image: np.ndarray) -> bool:
    """True for an array of one, three or four channels in 8 bits, or of one channel in 16 bits."""
    if image.size == 0:
        return False
    grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    colour = image.ndim == 3 and image.shape[2] in (3, 4)
    return (image.dtype == np.uint8 and (grey or colour)) or (image.dtype == np.uint16 and grey)


def _advice_on(image: np.ndarray) -> str:
    """Advice how to make an image of an array, or ""."""
    if image.size == 0:
        return ""
    if image.ndim == 4:
        return "; give a batch as a list: list(images)"
    if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4):
        return "; the channels come last: image.transpose(1, 2, 0)"
    if image.ndim in (2, 3) and image.dtype != np.uint8:
        return "; values are 0..255: of an image in 0..1 take (255 * image).round().astype(np.uint8)"
    return ""
