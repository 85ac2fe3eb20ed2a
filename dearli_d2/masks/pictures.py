"""Pictures of class-agnostic masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.mappers import read_image
from ..errors import ConfigError, first_few
from ..files import picture_names
from ..visualization import save_mask_picture
from .generate import folder_of


def write_pictures(files: Sequence[str], masks: Path, out: Path, count: int) -> Iterator[Path]:
    """Draws masks over images that have some, evenly spread.

    Args:
        files: images.
        masks: folder that `generate` wrote.
        out: folder of the pictures.
        count: pictures, at most.

    Yields:
        Each picture as it is written.

    Raises:
        ConfigError: no image has masks, or a picture would replace an image.
    """
    folder = folder_of(masks)
    have = [f for f, there in zip(files, folder.have(files), strict=True) if there]
    if not have:
        raise ConfigError(f"{masks} has masks of none of the {len(files)} images")
    chosen = [have[i] for i in np.linspace(0, len(have) - 1, min(count, len(have))).astype(int)]
    targets = [out / f"{name}.png" for name in picture_names(chosen)]
    images = {Path(file).resolve() for file in files}
    if replaced := [path for path in targets if path.resolve() in images]:
        raise ConfigError(f"--out {out}: pictures would replace images: {first_few(replaced)}; choose another folder")
    for file, path in zip(chosen, targets, strict=True):
        image = read_image(file)
        save_mask_picture(path, image, folder.read(file, image.shape[:2]))
        yield path
