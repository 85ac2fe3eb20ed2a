"""Colour masks: a picture for each image, and a text file with the colour of each class.

masks/a.png       of images/a.jpg; RGB or palette
colors.txt        name:r,g,b::, or "r g b name", or name,r,g,b a line; also labelmap.txt, label_colors.txt and class_dict.csv
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ...data.images import opened
from ...errors import DatasetError, UnreadableImageError
from ..colors import Coding, read_color_map, semantic_shapes, void_pixels
from ..mask_files import folder_of_masks, masked_images, some_masks, stamps_of, unlabeled_note
from ..structures import Format, LabeledImage, LabelSet, Problems, Request
from ..voc_tree import tree_of
from . import cityscapes

_FILES = ("colors.txt", "labelmap.txt", "label_colors.txt", "class_dict.csv", "labels_colors.txt")


def recognizes(path: Path) -> str:
    """Recognises pictures in colour beside a map of colours."""
    source = _source(path)
    masks = some_masks(path) if source is not None else []
    if not masks or tree_of(path) is not None or cityscapes.recognizes(path):
        return ""
    return f"{source} has colours of classes" if all(map(_has_colors, masks)) else ""


def _source(path: Path) -> Path | None:
    folders = (path, folder_of_masks(path), path.parent) if path.is_dir() else ()
    return next((f / name for f in folders for name in _FILES if (f / name).is_file()), None)


def _has_colors(path: Path) -> bool:
    try:
        with opened(path) as image:
            return image.mode in ("RGB", "RGBA", "P")
    except UnreadableImageError:
        return True


def read(request: Request) -> LabelSet:
    """Reads the names of all masks, and a mask when its image is asked for. See `Format.read`."""
    source = _source(request.path)
    if source is None:
        raise DatasetError(f"{request.path} has no {_FILES[0]} with a line 'name:r,g,b::' for each class")
    coding = Coding.of(request, read_color_map(source), {}, True, str(source), free_background=False)
    problems = Problems(request.path)
    images, notes = masked_images(request, problems)
    problems.check()
    masks = [i.masks[0].path for i in images]
    labeled = [
        LabeledImage(
            i.file, i.size, partial(semantic_shapes, mask, coding), i.split, partial(void_pixels, mask, coding)
        )
        for i, mask in zip(images, masks, strict=True)
    ]
    return LabelSet(
        request.path, FORMAT.name, coding.classes(), labeled, False, stamps_of(masks, coding.names, coding.by_color),
        [*notes, *unlabeled_note(request, images)], partial(coding.check, masks),
    )  # fmt: skip


FORMAT = Format(
    "color-png", "colour masks with a list of colours (colors.txt, labelmap.txt, class_dict.csv)", recognizes, read
)
