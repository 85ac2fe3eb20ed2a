"""Image files: finding them, their sizes, their pixels. Every image and label of the project is opened here."""

from __future__ import annotations

import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import DatasetError, DearliError, UnreadableImageError, first_few
from ..files import is_text
from ..progress import progress

try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()

logger = logging.getLogger(__name__)

# Pillow warns above half of its limit; an image up to the limit is read on purpose
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".heic", ".heif", ".avif"}
# their files hold a small preview that Pillow would take for the photograph
RAW_SUFFIXES = {".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf"}
_NO_IMAGES = {"__MACOSX", "@eaDir"}  # folders that macOS archives and Synology disks make: previews and attributes
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_TURNS = {  # by the EXIF tag's value
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# ---------------------------------------------------------------------------------------------- one file


@contextmanager
def opened(path: str | Path, what: str = "an image", content: bytes | None = None) -> Iterator[Image.Image]:
    """Opens the image of a file, and turns every error inside the `with` into one type, since decoders raise many.

    Args:
        path: the file.
        what: describes in the error what the file should be.
        content: of a file that is not on this machine; nothing is read from `path` then.

    Raises:
        UnreadableImageError: with the path, the reason and what to do.
    """
    path = Path(path)
    if path.suffix.lower() in RAW_SUFFIXES:
        raise UnreadableImageError(f"{path} is a raw photograph; convert it to JPEG or PNG")
    try:
        if content is None and stat.S_ISFIFO(os.stat(path).st_mode):  # opening it would wait for ever
            raise UnreadableImageError(f"{path} is a pipe, no file")
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image
    except DearliError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UnreadableImageError(
            f"{path} has more than {limit} megapixels, which is the limit; cut it into tiles or make it smaller"
        ) from error
    except Exception as error:
        if _is_heif(path, content):
            raise UnreadableImageError(
                f"{path} is a HEIC image; install the package pillow-heif, or convert it to JPEG"
            ) from error
        reason = str(error) or type(error).__name__
        if content is not None and isinstance(error, UnidentifiedImageError):  # it names an object of Python
            reason = "it is of no kind that is known"
        raise UnreadableImageError(f"{path} cannot be read as {what}: {reason}") from error


def _is_heif(path: Path, content: bytes | None) -> bool:
    try:
        if content is None:
            with path.open("rb") as file:
                start = file.read(12)
        else:
            start = content[:12]
    except OSError:
        return False
    return (start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS) or path.suffix.lower() in (".heic", ".heif")


def orientation(image: Image.Image) -> int:
    """The EXIF tag, 1..8, of an image that must be turned to be seen upright; 1 where the tag is missing or makes no sense."""
    if image.format == "TIFF":  # Pillow turns these by itself
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
        return int(value) if value in _TURNS else 1
    except Exception:  # a damaged EXIF block does no harm to the pixels
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The image as it is seen, turned as its EXIF tag says."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def turned(array: np.ndarray, tag: int) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 pixels, turned as an EXIF tag says: a label that was drawn on the stored pixels of its image."""
    return np.asarray(Image.fromarray(array).transpose(_TURNS[tag]))


def seen_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of `upright(image)`, from the header."""
    width, height = image.size
    return (width, height) if orientation(image) >= 5 else (height, width)


def reading_problem(image: Image.Image) -> str:
    """The reason why an opened image cannot be read as one of 8-bit RGB, or "" where it can.

    Pillow would clip 16-bit grey values at 255, and would take the first page of a stack.
    """
    if image.mode[0] in "IF":
        return (
            f"has more than 8 bits a channel (mode {image.mode}), of which most would be cut off; convert it to 8 bits, with a "
            "range that suits your images"
        )
    pages = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and pages > 1:
        size = image.size
        image.seek(1)
        same = image.size == size  # else a preview or an overview
        image.seek(0)
        if same:
            return f"holds {pages} pages, of which the first alone would be read; save each as a file"
    return ""


def read_image(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as its EXIF tag says.

    Args:
        path: the file.
        content: see `opened`.

    Raises:
        UnreadableImageError: a missing or damaged file, one that is too large, or more than 8 bits a channel.
    """
    with opened(path, content=content) as image:
        if problem := reading_problem(image):
            raise UnreadableImageError(f"{path} {problem}")
        return np.asarray(upright(image).convert("RGB"))


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) as the image is seen; only the header is read. Raises `UnreadableImageError` as `read_image`."""
    with opened(path) as image:
        if problem := reading_problem(image):
            raise UnreadableImageError(f"{path} {problem}")
        return seen_size(image)


# ---------------------------------------------------------------------------------------------- many files


def relative_name(file_name: str | Path, root: Path) -> str:
    """The path of a file below a folder, with slashes; of a file that lies elsewhere, the whole path."""
    path = Path(file_name)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def is_hidden(name: str) -> bool:
    """True if a file or folder of this name holds no data of the user: `.ipynb_checkpoints`, `._photo.jpg`, `__MACOSX`."""
    return name.startswith(".") or name in _NO_IMAGES


def files_below(folder: Path) -> list[Path]:
    """Files anywhere below a folder, sorted, without hidden files and folders.

    Links to folders are followed, and each folder is visited once.

    Raises:
        DatasetError: a folder that may not be read.
    """

    def fail(error: OSError) -> None:
        raise DatasetError(f"{error.filename} cannot be listed: {error.strerror}")

    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(parent, name) for name in files if not is_hidden(name)]
    return sorted(found)


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files among the paths and, sorted, anywhere below the folders (see `files_below`).

    Kinds that cannot be read, such as raw photographs, are found too. The reader can then name them in an error.

    Raises:
        DatasetError: a path that does not exist, or no image at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += [p for p in files_below(path) if p.suffix.lower() in SUFFIXES | RAW_SUFFIXES]
        elif path.is_file():
            found.append(path)
        else:
            raise DatasetError(f"there is no image or folder {path}")
    if not found:
        raise DatasetError(f"no image ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(found))


def image_sizes(files: Sequence[Path]) -> list[tuple[int, int]]:
    """(height, width) of each file as it is seen, turned as its EXIF tag says; only headers are read.

    Raises:
        DatasetError: files that are no image, or not one of 8 bits a channel, or whose name is no UTF-8, with the first ones.
    """
    sizes = _measure(files)
    broken = [s for s in sizes if isinstance(s, str)]
    if broken:
        raise DatasetError(f"{len(broken)} of {len(files)} files cannot be used as images: {first_few(broken)}")
    return [s for s in sizes if not isinstance(s, str)]


def usable_images(folder: Path) -> list[tuple[Path, int, int]]:
    """(file, height, width) of the images below a folder.

    Files that `image_sizes` would refuse are left out, and the log names them.

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
        if not is_text(str(path)):
            return f"{os.fsencode(path)!r} has a name that is no UTF-8; rename it"
        try:
            return image_size(path)
        except UnreadableImageError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        return list(progress(pool.map(size, files), "image sizes", len(files)))
