"""Image files: finding them, their sizes, their pixels. Every image and label of the project is opened here."""

from __future__ import annotations

import io
import itertools
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import DatasetError, DearliError, UnreadableImageError, first_few
from ..files import is_text
from ..progress import progress
from . import remote, shards

try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()

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
        path: the file; also one in a tar file, `shard.tar::a.jpg`, or behind a URL.
        what: describes in the error what the file should be.
        content: of a file that is not on this machine; nothing is read from `path` then.

    Raises:
        UnreadableImageError: with the path, the reason and what to do.
        StorageError: the host of a URL does not answer.
    """
    name = remote.as_url(path)
    if suffix_of(name) in RAW_SUFFIXES:
        raise UnreadableImageError(f"{name} is a raw photograph; convert it to JPEG or PNG")
    try:
        with _source(name, content) as source, Image.open(source) as image:
            yield image
    except DearliError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UnreadableImageError(
            f"{name} has more than {limit} megapixels, which is the limit; cut it into tiles or make it smaller"
        ) from error
    except Exception as error:
        if _is_heif(name, content):
            raise UnreadableImageError(
                f"{name} is a HEIC image; install the package pillow-heif, or convert it to JPEG"
            ) from error
        reason = str(error) or type(error).__name__
        # it names an object of Python where it was given one
        if isinstance(error, UnidentifiedImageError) and not (content is None and is_plain(name)):
            reason = "it is of no kind that is known"
        raise UnreadableImageError(f"{name} cannot be read as {what}: {reason}") from error


@contextmanager
def _source(name: str, content: bytes | None) -> Iterator[str | BinaryIO]:
    """Gives what Pillow opens: the path of a plain file, else the content."""
    if content is not None:
        yield io.BytesIO(content)
    elif is_plain(name):
        if stat.S_ISFIFO(os.stat(name).st_mode):  # opening it would wait for ever
            raise UnreadableImageError(f"{name} is a pipe, no file")
        yield name
    else:
        with opened_file(name) as stream:
            yield stream


def is_plain(path: str | Path) -> bool:
    """True for a file of its own on this machine: neither in a tar file nor behind a URL."""
    return shards.split_member(path) is None and not remote.is_url(path)


@contextmanager
def opened_file(path: str | Path) -> Iterator[BinaryIO]:
    """Opens any file that an image's path can name, to read its bytes.

    Raises:
        OSError, UnreadableImageError, StorageError: it is not there, or its host does not answer.
    """
    name = remote.as_url(path)
    if member := shards.split_member(name):
        with shards.opened_member(*member) as stream:
            yield stream
    elif remote.is_url(name):
        yield io.BytesIO(remote.read(name))
    else:
        with open(name, "rb") as stream:
            yield stream


def file_stamp(path: str | Path) -> tuple[int, int]:
    """Size in bytes, -1 if unknown, and a number that changes with the file; of one in a shard, those of the shard.

    Raises:
        OSError, StorageError: it is not there, or its host does not answer.
    """
    member = shards.split_member(path)
    return shards.shard_stamp(member[0] if member else remote.as_url(path))


def suffix_of(path: str | Path) -> str:
    """The suffix of an image's path in small letters, ".jpg" also of `https://host/a.JPG?key` and `tar://a.jpg::s.tar`."""
    name = remote.as_url(path)
    if shards.split_member(name) is None and remote.is_url(name):
        name = name.partition(shards.SEPARATOR)[0].partition("?")[0]
    return PurePosixPath(name).suffix.lower()


def _is_heif(name: str, content: bytes | None) -> bool:
    start = b""
    with suppress(OSError, DearliError), opened_file(name) if content is None else io.BytesIO(content) as stream:
        start = stream.read(12)
    return (start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS) or suffix_of(name) in (".heic", ".heif")


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


def runs_below(folder: str | Path, times: dict[str, int] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Files anywhere below a folder, sorted by their path's parts: (subfolder with a slash at its end or "", names there).

    Hidden files and folders are left out. Links to folders are followed, and each folder is visited once.

    Args:
        folder: the place.
        times: filled with each folder and the time, in nanoseconds, at which an entry of it last came or went.

    Raises:
        DatasetError: a folder that may not be read.
    """
    seen: set[str] = set()
    waiting = [""]  # of folders and, with the names of files, of what is between two of them
    runs: dict[str, list[str]] = {}
    while waiting:
        place = waiting.pop()
        if place in runs:
            yield place.rpartition("/")[0] + "/" if "/" in place else "", runs.pop(place)
            continue
        here = os.path.join(folder, place)
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            if times is not None:
                times[here] = os.stat(here).st_mtime_ns  # before the look into it
            with os.scandir(here) as entries:
                found = sorted((e.name, e.is_dir()) for e in entries if not is_hidden(e.name))
        except OSError as error:
            raise DatasetError(f"{error.filename} cannot be listed: {error.strerror}") from error
        inside: list[str] = []
        for is_folder, group in itertools.groupby(found, key=lambda entry: entry[1]):
            names = [name for name, _ in group]
            if is_folder:
                inside += [f"{place}{name}/" for name in names]
            else:
                runs[f"{place}{names[0]}"] = names
                inside.append(f"{place}{names[0]}")
        waiting += reversed(inside)


def files_below(folder: Path) -> list[Path]:
    """Files anywhere below a folder, sorted, without hidden files and folders.

    Links to folders are followed, and each folder is visited once.

    Raises:
        DatasetError: a folder that may not be read.
    """
    return [Path(folder, place + name) for place, names in runs_below(folder) for name in names]


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files among the paths and, sorted, anywhere below the folders (see `files_below`).

    A path may also be a tar file or a pattern of such, `shards/*.tar`, and a URL; see `listing.listed`. Kinds that cannot be read,
    such as raw photographs, are found too. The reader can then name them in an error.

    Raises:
        DatasetError: a path that does not exist, or no image at all.
    """
    from .listing import listed  # it lists with this module

    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += [p for p in files_below(path) if p.suffix.lower() in SUFFIXES | RAW_SUFFIXES]
        elif path.is_file() and not shards.is_shard(str(path)):
            found.append(path)
        elif not is_plain(path) or shards.is_shard(str(path)):
            found += map(Path, listed("", remote.as_url(path)).files())
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
    sizes = measure(files)
    broken = [s for s in sizes if isinstance(s, str)]
    if broken:
        raise DatasetError(f"{len(broken)} of {len(files)} files cannot be used as images: {first_few(broken)}")
    return [s for s in sizes if not isinstance(s, str)]


def measure(files: Sequence[str | Path]) -> list[tuple[int, int] | str]:
    """The size of each file as `image_sizes`, or what is wrong with it."""

    def size(path: str | Path) -> tuple[int, int] | str:
        if not is_text(str(path)):
            return f"{os.fsencode(path)!r} has a name that is no UTF-8; rename it"
        try:
            return image_size(path)
        except UnreadableImageError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        return list(progress(pool.map(size, files), "image sizes", len(files)))
