"""Colour and blur augmentations: SSD colours of labelled images, and the strong view (DEARLi, Sec. 4 and supplement A).

The operations work on (H, W, 3) uint8 RGB images through look-up tables and OpenCV. They follow the definitions of torchvision's
`transforms.v2.functional` and of detectron2's `ColorAugSSDTransform`, and take less time.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torchvision.transforms import v2

_GREY = np.array([0.2989, 0.587, 0.114], np.float32)  # torchvision's weights of red, green and blue
_FLOOR = -0.49995  # OpenCV rounds where torchvision truncates; slightly above -0.5, so that whole numbers stay


def table(factor: float, offset: float = 0.0) -> np.ndarray:
    """(256,) uint8: `factor * value + offset` of each level in float32, clipped to 0..255 and truncated."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(values, 0, 255).astype(np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    """(H, W) uint8 grey values of an (H, W, 3) image, as torchvision computes them."""
    return cv2.transform(image, np.append(_GREY, np.float32(_FLOOR))[None]).reshape(image.shape[:2])


def greyscale(image: np.ndarray) -> np.ndarray:
    """The image in shades of grey, as torchvision computes them."""
    return cv2.cvtColor(grey(image), cv2.COLOR_GRAY2RGB)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies all values, exactly as torchvision does."""
    return cv2.LUT(image, table(factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Moves all values away from the mean grey value of the image, or towards it.

    The result differs from torchvision's by at most one level, where torchvision's mean, a sum in float32, changes an entry of the
    table.
    """
    mean = np.float32(cv2.mean(grey(image))[0])
    return cv2.LUT(image, table(factor, float(np.float32(1 - factor) * mean)))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Moves all values away from the grey value of their pixel, or towards it.

    The result differs from torchvision's by at most one level. For most factors one of 100 values differs. For round factors such
    as 1.8, whose products are often whole numbers, up to a quarter of the values differ.
    """
    return cv2.addWeighted(image, factor, greyscale(image), 1 - factor, _FLOOR)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turns the hue of all pixels.

    The result differs from torchvision's by at most one level, in one of 1000 values.

    Args:
        turn: part of a full turn; 0 and 1 keep the colours.
    """
    hsv = cv2.cvtColor(np.multiply(image, np.float32(1 / 255), dtype=np.float32), cv2.COLOR_RGB2HSV)
    degrees = hsv[..., 0]
    degrees += np.float32(turn % 1 * 360)
    np.subtract(degrees, 360, out=degrees, where=degrees >= 360)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    # as torchvision: 256 levels of equal width, truncated
    return np.multiply(rgb, np.float32(255.999), out=rgb).astype(np.uint8)


def blur(image: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """Gaussian blur, mirrored at the border.

    The result differs from torchvision's by at most two levels: by 0.18 on average in noise, by 0.04 in photographs.

    Args:
        sigma: in pixels.
        reach: half of the kernel in pixels, without its centre. A side that is not longer than this cannot be mirrored so far. It is
            first extended with copies of its last pixel.
    """
    height, width = image.shape[:2]
    missing = [(0, max(reach + 1 - side, 0)) for side in (height, width)]
    padded = np.pad(image, (*missing, (0, 0)), mode="edge") if np.any(missing) else image
    kernel = (2 * reach + 1,) * 2
    return cv2.GaussianBlur(padded, kernel, sigma, borderType=cv2.BORDER_REFLECT_101)[:height, :width]


class StrongPhotometry:
    """Colour jitter, greyscale and blur of the strong view.

    CutMix, the last part of the strong view, works on batches (`engine.cutmix`). With INPUT.JITTER the jitter alone also
    changes labelled images. Parameters are drawn as by torchvision's `ColorJitter`, `RandomGrayscale` and `GaussianBlur`, in the
    same order, so a seed gives the same ones. The results differ from torchvision's: in photographs by less than 0.1 levels on
    average and by at most 4, in noise by less than 0.5 and by at most 6.

    Args:
        jitter: brightness, contrast, saturation (relative) and hue (turns, at most 0.5).
        grey_probability, blur_probability, jitter_probability: of each of the three.
        blur_sigma: range in pixels.
    """

    def __init__(
        self,
        jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2),
        grey_probability: float = 0.2,
        blur_probability: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        jitter_probability: float = 1.0,
    ) -> None:
        self.reach = int(np.ceil(3 * blur_sigma[1]))  # of the blur, in pixels
        self.jitter = v2.ColorJitter(*jitter)  # draws the parameters
        self.sigma = v2.GaussianBlur(2 * self.reach + 1, blur_sigma)
        self.jitter_probability, self.grey_probability = jitter_probability, grey_probability
        self.blur_probability = blur_probability

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """`image`: (H, W, 3) uint8; no pixel moves."""
        if self.jitter_probability == 1 or _happens(self.jitter_probability):
            image = self._jittered(image)
        if _happens(self.grey_probability):
            image = greyscale(image)
        if _happens(self.blur_probability):
            image = blur(image, self.sigma.make_params([])["sigma"][0], self.reach)
        return image

    def _jittered(self, image: np.ndarray) -> np.ndarray:
        drawn = self.jitter.make_params([])
        operations: list[tuple[Callable[[np.ndarray, float], np.ndarray], float | None]] = [
            (brightness, drawn["brightness_factor"]),
            (contrast, drawn["contrast_factor"]),
            (saturation, drawn["saturation_factor"]),
            (hue, drawn["hue_factor"]),
        ]
        for index in drawn["fn_idx"].tolist():
            change, amount = operations[index]
            if amount is not None:
                image = change(image, amount)
        return image


def _happens(probability: float) -> bool:
    return bool(torch.rand(1) < probability)


class ColorAugmentation:
    """SSD colour distortion (Liu et al. 2016): brightness, contrast, saturation, hue, each with probability 0.5.

    Values and draws are exactly those of detectron2's `ColorAugSSDTransform`.
    """

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Changes the colours of an (H, W, 3) uint8 image."""
        if _coin():
            image = cv2.LUT(image, table(1, random.uniform(-32, 32)))
        contrast_first = _coin()
        if contrast_first:
            image = self._contrast(image)
        image = self._hsv(image, 1, lambda levels: levels * np.float32(random.uniform(0.5, 1.5)))
        image = self._hsv(image, 0, lambda levels: (levels + random.randint(-18, 18)) % 180)
        return image if contrast_first else self._contrast(image)

    @staticmethod
    def _contrast(image: np.ndarray) -> np.ndarray:
        return cv2.LUT(image, table(random.uniform(0.5, 1.5))) if _coin() else image

    @staticmethod
    def _hsv(image: np.ndarray, channel: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Changes hue (0) or saturation (1) with probability 0.5, by a function of the 256 levels of OpenCV's 8-bit HSV."""
        if not _coin():
            return image
        levels = np.clip(change(np.arange(256, dtype=np.float32)), 0, 255).astype(np.uint8)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), levels), hsv, channel)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _coin() -> bool:
    return bool(random.randrange(2))
