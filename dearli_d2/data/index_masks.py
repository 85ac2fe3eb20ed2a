"""Index masks: PNG files whose pixel value is a class id, and what other codings look like."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from math import gcd
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DatasetError, DearliError, first_few
from ..progress import progress
from .images import opened, orientation, seen_size, upright

logger = logging.getLogger(__name__)

_MODES = {"L", "P", "I", "I;16", "I;16B", "I;16L", "1"}
_CLASSES = "DATASETS.CUSTOM.CLASSES"
_IGNORE = "DATASETS.CUSTOM.IGNORE_VALUE"


def read_index_mask(path: str | Path) -> np.ndarray:
    """(H, W) int64 class ids of a greyscale or palette PNG of any depth, turned as an EXIF tag says.

    Raises:
        UnreadableImageError, DatasetError: a damaged file, a colour image, a JPEG file.
    """
    with opened(path, "an index mask") as image:
        if image.format == "JPEG":
            raise DatasetError(f"{path} is a JPEG file, whose compression changes values; save masks as PNG")
        if image.mode == "F":
            raise DatasetError(
                f"{path} has fractions as values (mode F); write the class ids as a greyscale PNG of 8 bits"
            )
        if image.mode not in _MODES:
            colours = image.convert("RGB").getcolors(2**16) or ()
            shown = first_few([str(colour) for _, colour in sorted(colours, reverse=True)])
            raise DatasetError(
                f"{path} is a colour image ({image.mode}){f' of {shown}' if shown else ''}; an index mask is a greyscale or palette "
                "PNG whose pixel value is the class id: export index masks, or replace each colour by its class id"
            )
        values = np.asarray(upright(image)).astype(np.int64)
        spread = _spread_by(path, image)
        return values if spread == 1 else values // spread


def _spread_by(path: str | Path, image: Image.Image) -> int:
    """The factor by which Pillow spreads the values of greyscale PNG files of 2 and 4 bits."""
    if image.format != "PNG" or image.mode != "L":
        return 1
    with open(path, "rb") as file:
        depth = file.read(25)[24]
    return {2: 85, 4: 17}.get(depth, 1)


def size_problem(mask: Path, image: Path, size: tuple[int, int]) -> str:
    """The fault of a mask that has another size than its image, else "".

    Args:
        size: (height, width) of the image as it is seen.
    """
    with opened(mask, "an index mask") as file:
        found = seen_size(file)
    if found == size:
        return ""
    height, width = size
    problem = f"{mask} is {found[1]} x {found[0]}, its image is {width} x {height} pixels"
    with opened(image) as file:
        if found == (width, height) and orientation(file) >= 5:
            problem += " as its EXIF tag turns it; if the mask fits the stored pixels remove the tag (exiftool -Orientation= FILE)"
    return problem


def count_values(
    paths: Mapping[str, Path], read: Callable[[Path], np.ndarray] = read_index_mask
) -> Iterator[tuple[str, dict[int, int]]]:
    """Pixels of each value in each mask, mask by mask.

    Args:
        paths: of the masks, by a key of the user's.
        read: reads a mask.

    Raises:
        DatasetError: after the last mask, with the number of masks that cannot be read.
    """

    def count(path: Path) -> dict[int, int] | DearliError:
        try:
            values = read(path)
        except DearliError as error:
            return error
        if values.max() >= 2**16:
            return dict(zip(*(x.tolist() for x in np.unique(values, return_counts=True)), strict=True))
        counts = np.bincount(values.ravel())
        return {int(v): int(counts[v]) for v in counts.nonzero()[0]}

    faults: list[DearliError] = []
    with ThreadPoolExecutor(4) as pool:
        counted = progress(pool.map(count, paths.values()), "values of masks", len(paths))
        for key, found in zip(paths, counted, strict=True):
            if isinstance(found, DearliError):
                faults.append(found)
            else:
                yield key, found
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise DatasetError(f"{len(faults)} of {len(paths)} masks cannot be used: {first_few([str(f) for f in faults])}")


def check_values(paths: Mapping[str, Path], ids: Set[int], ignore: int) -> None:
    """Checks that masks hold class ids and the ignore value only, and that they are no binary masks.

    Args:
        paths: of the masks, by a key of the user's.
        ids: of the classes.
        ignore: DATASETS.CUSTOM.IGNORE_VALUE.

    Raises:
        DatasetError: with the number of masks, the values, and the coding that they look like.
    """
    total: Counter[int] = Counter()
    offenders: dict[str, set[int]] = {}
    binary = []
    for key, mask in count_values(paths):
        total.update(mask)
        if strangers := mask.keys() - ids - {ignore}:
            offenders[key] = strangers if not offenders else set()  # the values of the first are shown
        if ignore == 255 and mask.keys() == {0, 255}:
            binary.append(key)
    if offenders:
        first, values = next(iter(offenders)), sorted(total.keys() - ids - {ignore})
        shown = first_few(sorted(offenders[first]))
        raise DatasetError(
            f"{paths[first]} holds the value {shown}, which is no id in {_CLASSES} (ids {first_few(sorted(ids), 8)}; ignored "
            f"pixels are {ignore}); {len(offenders)} of {len(paths)} masks hold such values: {first_few(values, 8)}; "
            f"{_what_it_looks_like(total, values, ids, ignore)}"
        )
    if set(total) <= {ignore}:
        raise DatasetError(f"all {len(paths)} masks hold the value {ignore} only, which means 'ignore' ({_IGNORE})")
    if binary and ids != {0} and set(total) == {0, 255}:
        raise DatasetError(
            f"all {len(paths)} masks hold 0 and 255 only, as binary masks do, but 255 means 'ignore': no pixel would show another "
            f"class than 0; if 255 is a class write it so in {_CLASSES}, for example '255 thing NAME', and set {_IGNORE} -1"
        )
    if binary:
        logger.warning(
            "%s of %s masks hold 0 and 255 only, as binary masks do: in them 255 means 'ignore' (%s): %s",
            len(binary), len(paths), _IGNORE, first_few([str(paths[key]) for key in binary]),
        )  # fmt: skip


def _what_it_looks_like(total: Mapping[int, int], strangers: list[int], ids: Set[int], ignore: int) -> str:
    """The kind of coding and what to do, for values of all masks with their pixels."""
    present = set(total) - {ignore}
    if min(strangers) >= 1000 and all(value // 1000 in ids for value in strangers):
        return (
            "they look like class id * 1000 + number of the object, as in Cityscapes' instanceIds: use the labelIds files, or a "
            "COCO-panoptic JSON file if objects touch"
        )
    if strangers == [255] and ignore != 255:
        return f"255 often means 'ignore': set {_IGNORE} 255, or list it as a class"
    for shift, words in ((1, "one too large"), (-1, "one too small")):
        if all(value - shift in ids for value in present):
            text = f"all values are {words}: number the classes in {_CLASSES} as the masks do"
            return text + (f"; if 0 means 'not labelled' set {_IGNORE} 0" if strangers == [0] else "")
    if strangers == [0]:
        return f"if 0 means 'not labelled' set {_IGNORE} 0, else list it as a class"
    if len(strangers) > max(8, 2 * len(ids)):
        return (
            "so many values come from JPEG compression or from resizing with interpolation (save masks as PNG, resize them by the "
            f"nearest pixel), or {_CLASSES} is too short"
        )
    step = gcd(*present)
    if step > 1 and all(value // step in ids for value in present):
        return (
            f"all are multiples of {step}, as of masks that were made visible: write these values as ids in {_CLASSES}"
        )
    return f"list them in {_CLASSES}, or set these pixels to {ignore}"
