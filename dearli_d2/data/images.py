"""Image files: finding them, and their sizes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ..errors import DatasetError, first_few

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files among the paths and, sorted, anywhere below the folders; hidden ones (macOS writes `._photo.jpg`) are no images.

    Raises:
        DatasetError: a path that does not exist, or no image at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            found += sorted(p for p in files if not p.name.startswith("."))
        elif path.is_file():
            found.append(path)
        else:
            raise DatasetError(f"there is no image or folder {path}")
    if not found:
        raise DatasetError(f"no image ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(found))


def depth_problem(image: Image.Image) -> str:
    """What keeps an opened image from being read as 8-bit RGB, or nothing: Pillow clips 16-bit grey values at 255."""
    if image.mode[0] not in "IF":
        return ""
    return (
        f"has more than 8 bits a channel (mode {image.mode}), of which most would be cut off; convert it to 8 bits, with a range "
        "that suits your images"
    )


def image_sizes(files: Sequence[Path]) -> list[tuple[int, int]]:
    """(height, width) of each file as it is seen, turned as its EXIF tag says; only headers are read.

    Raises:
        DatasetError: files that are no image, or not one of 8 bits a channel, with the first ones.
    """
    sizes = _measure(files)
    broken = [s for s in sizes if isinstance(s, str)]
    if broken:
        raise DatasetError(f"{len(broken)} of {len(files)} files cannot be used as images: {first_few(broken)}")
    return sizes


def usable_images(folder: Path) -> list[tuple[Path, int, int]]:
    """(file, height, width) of the images below a folder; those that `image_sizes` would refuse are left out and named in the
    log.

    Raises:
        DatasetError: no image, or none that can be used.
    """
    files = find_images([folder])
    sizes = _measure(files)
    broken = [s for s in sizes if isinstance(s, str)]
    if len(broken) == len(files):
        raise DatasetError(f"{folder}: none of {len(files)} files can be used as an image: {first_few(broken)}")
    if broken:
        listed = "".join(f"\n  {problem}" for problem in broken)
        logger.warning("%s: %s of %s files are left out:%s", folder, len(broken), len(files), listed)
    return [(file, *size) for file, size in zip(files, sizes, strict=True) if not isinstance(size, str)]


def _measure(files: Sequence[Path]) -> list[tuple[int, int] | str]:
    """The size of each file, or what is wrong with it."""

    def size(path: Path) -> tuple[int, int] | str:
        try:
            with Image.open(path) as image:
                if problem := depth_problem(image):
                    return f"{path} {problem}"
                width, height = image.size
                return (width, height) if image.getexif().get(0x0112, 1) >= 5 else (height, width)
        except (OSError, SyntaxError) as error:
            return f"{path} cannot be read as an image: {error}"

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(size, files))
