"""Binary masks: 0 and 255, or 0 and 1, for one class, or a mask for each class or object by the template of names.

masks/a.png                       of images/a.jpg, one class; each connected region is an object if the class is a thing
MASK_NAME "{stem}_{class}.png"    a mask for each class of an image
MASK_NAME "{stem}/masks/{n}.png"  a mask for each object of an image
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ...data.images import opened, upright
from ...data.index_masks import read_index_mask
from ...errors import ConfigError, DatasetError, DearliError, first_few
from ...progress import progress
from ..geometry import encode, union
from ..mask_files import Mask, Template, distinct_values, masked_images, some_masks, stamps_of, unlabeled_note
from ..structures import Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape
from ..voc_tree import tree_of
from .index_png import is_binary, listed_classes

_COLORS = ("RGB", "RGBA", "LA")


def recognizes(path: Path) -> str:
    """Recognises pictures of 0 and 255, or of one bit."""
    masks = some_masks(path)
    if not masks or tree_of(path) is not None or not is_binary([distinct_values(mask, read_binary) for mask in masks]):
        return ""
    return f"{masks[0]} holds 0 and 255 only"


def read_binary(path: Path) -> np.ndarray:
    """(H, W) int64 values; a grey picture may be stored in colour. Raises `DatasetError`."""
    with opened(path, "a binary mask") as image:
        if image.mode in _COLORS and image.format != "JPEG":
            rgb = np.asarray(upright(image).convert("RGB"))
            if (rgb == rgb[..., :1]).all():
                return rgb[..., 0].astype(np.int64)
    return read_index_mask(path)


def read(request: Request) -> LabelSet:
    """Reads the names of all masks, and masks when their image is asked for. See `Format.read`."""
    template = Template(request.mask_name) if request.mask_name else None
    by_class, by_object = (template is not None and field in template.text for field in ("{class}", "{n}"))
    problems = Problems(request.path)
    names = [n.strip() for line in request.classes for n in line.split(maxsplit=2)[-1].split(",")] if by_class else []
    foreground, background = (None, None) if by_class else _two_classes(request)
    images, notes = masked_images(request, problems, names, several=by_class or by_object)
    problems.check()
    if foreground is None:
        classes = [LabelClass(name) for name in sorted({m.label for i in images for m in i.masks})]
    else:
        classes = [c for c in (background, foreground) if c is not None]
    labels = ("" if foreground is None else foreground.name, "" if background is None else background.name)
    labeled = [LabeledImage(i.file, i.size, partial(_shapes, i.masks, *labels, not by_object), i.split) for i in images]
    masks = [m.path for i in images for m in i.masks]
    return LabelSet(
        request.path, FORMAT.name, classes, labeled, by_object, stamps_of(masks, labels), [*notes, *unlabeled_note(request, images)],
        partial(_check, masks),
    )  # fmt: skip


def _two_classes(request: Request) -> tuple[LabelClass, LabelClass | None]:
    """The class of the pixels that are set, and that of the others if it is listed."""
    listed = listed_classes(replace(request, ignore=-1), read_binary)
    background = next((c for c in listed if c.id == 0), None) if len(listed) > 1 else None
    others = [c for c in listed if c is not background]
    if len(others) != 1:
        raise ConfigError(
            f"{request.path}: binary masks show one class, and perhaps another of id 0 for the rest; {len(listed)} classes are listed: "
            f"{first_few([c.name for c in listed])}; if each class has masks of its own, say how they are called, for example "
            "DATASETS.CUSTOM.MASK_NAME {stem}_{class}.png"
        )
    return replace(others[0], id=255), background


def _shapes(masks: tuple[Mask, ...], foreground: str, background: str, semantic: bool) -> list[Shape]:
    shapes = [Shape(mask.label or foreground, encode(_set(mask.path)), semantic=semantic) for mask in masks]
    if background:
        rest = encode(~np.any([_set(mask.path) for mask in masks], axis=0))
        shapes.append(Shape(background, union([rest]), semantic=True))
    return shapes


def _set(path: Path) -> np.ndarray:
    values = read_binary(path)
    strangers = sorted(set(np.unique(values).tolist()) - {0, 255})
    if strangers not in ([], [1]):
        raise DatasetError(f"{path} is no binary mask: beside 0 and 255 it holds {first_few(strangers)}")
    return values > 0


def _check(masks: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        faults = [fault for fault in progress(pool.map(_fault, masks), "values of masks", len(masks)) if fault]
    if faults:
        raise DatasetError(f"{len(faults)} of {len(masks)} masks cannot be used: {first_few(faults)}")


def _fault(path: Path) -> str:
    try:
        _set(path)
    except DearliError as error:
        return str(error)
    return ""


FORMAT = Format("binary-png", "binary masks of 0 and 255, one for each image, class or object", recognizes, read)
