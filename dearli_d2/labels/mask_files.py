"""Folders of masks: which file is the mask of which image.

A template names a mask after its image: `{stem}` stands for the image's name without its suffix, `{name}` for all of it, `{class}` for
a class and `{n}` for anything that tells masks of one image apart. Subfolders of the masks are those of the images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from ..data.images import SUFFIXES, files_below, image_sizes, opened
from ..data.index_masks import read_index_mask, size_problem
from ..errors import ConfigError, DatasetError, UnreadableImageError, first_few
from ..files import same_writing
from .images import ImageFinder
from .reading import split_in
from .structures import Problems, Request

SUFFIXES_OF_MASKS = {".png", ".tif", ".tiff", ".bmp"}
USUAL = (
    "{stem}", "{name}", "{stem}_mask", "{stem}-mask", "{stem}_masks", "{stem}_label", "{stem}_labels", "{stem}_semantic", "{stem}_seg",
    "{stem}_segmentation", "{stem}_gt", "{stem}_L", "mask_{stem}",
)  # fmt: skip
_FOLDERS = ("masks", "annotations", "labels")  # inside the folder of the labels
_FIELDS = {"stem", "name", "class", "n"}
_KEY = "DATASETS.CUSTOM.MASK_NAME"
_LOOKED_AT = 8  # masks, to recognise a format


@dataclass(frozen=True)
class Template:
    """A rule that names a mask after its image, such as `{stem}_mask.png`. Without a suffix it stands for masks of every suffix."""

    text: str
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fields = re.findall(r"\{(\w*)\}", self.text)
        if not {"stem", "name"} & set(fields) or set(fields) - _FIELDS or len(set(fields)) < len(fields):
            raise ConfigError(
                f"{_KEY}: {self.text!r} has no {{stem}} or {{name}} of the image, or other fields than {{stem}}, {{name}}, {{class}} and "
                "{n}, or one twice; an example is {stem}_mask.png"
            )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        text = self.text if PurePosixPath(self.text).suffix.lower() in SUFFIXES_OF_MASKS else f"{self.text}.{{any}}"
        patterns = {field: f"(?P<{field}>[^/]+)" for field in _FIELDS} | {"any": r"[^/.]+"}
        if self.classes:
            patterns["class"] = (
                f"(?P<class>{'|'.join(re.escape(c) for c in sorted(self.classes, key=len, reverse=True))})"
            )
        parts = re.split(r"\{(\w+)\}", text)
        pattern = "".join(patterns[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))
        return re.compile(rf"(?P<folder>(?:.+/)?){pattern}", re.IGNORECASE)

    def match(self, path: str) -> dict[str, str] | None:
        """The fields of a mask's path below its folder, with "folder"; None for a file that is no mask."""
        found = self._pattern.fullmatch(path)
        return found.groupdict() if found else None


@dataclass(frozen=True)
class Mask:
    """A mask of an image.

    Attributes:
        path: the file.
        label: name of its class, "" where the template has none.
    """

    path: Path
    label: str = ""


@dataclass(frozen=True)
class MaskedImage:
    """An image with its masks: one, unless the template has {class} or {n}."""

    file: Path
    size: tuple[int, int]
    masks: tuple[Mask, ...]
    split: str


def masks_below(folder: Path) -> list[Path]:
    """The files of a folder that may be masks."""
    return [p for p in files_below(folder) if p.suffix.lower() in SUFFIXES_OF_MASKS]


def folder_of_masks(path: Path) -> Path:
    """The folder `masks`, `annotations` or `labels` inside a folder where there is one with masks, else the folder."""
    return next((path / name for name in _FOLDERS if (path / name).is_dir() and masks_below(path / name)), path)


def some_masks(path: Path, template: str = "") -> list[Path]:
    """A few files, spread over all, to recognise a format by; those that are called masks if some are."""
    if not path.is_dir():
        return []
    files = masks_below(folder_of_masks(path))
    named = [Template(text) for text in ((template,) if template else USUAL[2:])]
    files = [p for p in files if any(t.match(p.name) for t in named)] or files
    return [files[i] for i in sorted(set(np.linspace(0, len(files) - 1, min(_LOOKED_AT, len(files))).astype(int)))]


def masked_images(
    request: Request,
    problems: Problems,
    classes: Sequence[str] = (),
    several: bool = False,
    folder: Path | None = None,
    others: Collection[Path] = (),
) -> tuple[list[MaskedImage], list[str]]:
    """Pairs the masks of a folder with images; returns notes too.

    Args:
        classes: names that `{class}` can have; () for any.
        several: an image may have several masks.
        folder: of the masks; None finds it below `request.path`.
        others: pictures elsewhere that are no photographs.

    Raises:
        ConfigError: a template that means nothing.
        DatasetError: a folder without masks.
    """
    folder = folder or folder_of_masks(request.path)
    files = {p.relative_to(folder).as_posix(): p for p in masks_below(folder)}
    if not files:
        pictures = [p for p in files_below(folder) if p.suffix.lower() in SUFFIXES] if folder.is_dir() else []
        raise DatasetError(
            f"{folder} holds no mask (PNG or TIFF files)"
            + (
                f", but {len(pictures)} pictures of other kinds, such as {pictures[0].name}; JPEG and WebP change values"
                if pictures
                else ""
            )
        )
    found, finder = _named(request, folder, files, classes, others)
    places = [*finder.places, request.root / "JPEGImages"]
    by_image: dict[Path, list[Mask]] = {}
    splits: dict[Path, str] = {}
    for path, fields in found.items():
        below = f"{fields['folder']}{fields.get('name') or fields.get('stem')}"
        if "name" in fields:
            image = finder.find(below, problems)
        else:  # those that lie among the labels, as in an archive, come last
            image = finder.of_stem(below, Problems(folder), places) or finder.of_stem(
                below, problems, [request.path / "JPEGImages"]
            )
        if image is None:
            continue
        if image in by_image and not several:
            problems.add(f"masks are of an image that {by_image[image][0].path.relative_to(folder)} labels too", path)
            continue
        by_image.setdefault(image, []).append(Mask(files[path], fields.get("class", "")))
        splits[image] = split_in(below)
    problems.check()
    sizes = image_sizes(list(by_image))
    pairs = [(m.path, i, size) for (i, masks), size in zip(by_image.items(), sizes, strict=True) for m in masks]
    with ThreadPoolExecutor(8) as pool:
        for fault in pool.map(_size_fault, *zip(*pairs, strict=True)) if pairs else ():
            if fault:
                problems.add(*fault)
    masked = [MaskedImage(i, size, tuple(m), splits[i]) for (i, m), size in zip(by_image.items(), sizes, strict=True)]
    return masked, finder.notes()


def check_size(mask: Path, image: Path, size: tuple[int, int], problems: Problems) -> None:
    """Notes a mask that cannot be read or has another size than its image."""
    if fault := _size_fault(mask, image, size):
        problems.add(*fault)


def _size_fault(mask: Path, image: Path, size: tuple[int, int]) -> tuple[str, str] | None:
    """The kind of a fault and the mask that has it."""
    try:
        problem = size_problem(mask, image, size)
    except UnreadableImageError as error:
        return "masks cannot be read", str(error)
    return ("masks have another size than their image", problem) if problem else None


def _named(
    request: Request, folder: Path, files: dict[str, Path], classes: Sequence[str], others: Collection[Path]
) -> tuple[dict[str, dict[str, str]], ImageFinder]:
    """The fields of each mask by the template given, or by the usual one that finds most images; and the finder of these."""
    texts = (request.mask_name,) if request.mask_name else USUAL
    best: tuple[dict[str, dict[str, str]], ImageFinder] | None = None
    most = -1
    everything = ImageFinder(request.root, request.path, others)
    for text in texts:
        template = Template(text, tuple(classes))
        found = {path: fields for path in files if (fields := template.match(path)) is not None}
        masks = {files[path] for path in found}
        named = sum(_is_there(fields, everything, masks) for fields in found.values())
        if named > most and (found or not best):
            finder = ImageFinder(request.root, request.path, masks.union(others))
            best, most = (found, finder), named
        if named == len(files):
            break
    assert best is not None
    if not best[0]:
        raise DatasetError(
            f"{folder}: none of {len(files)} files is called {request.mask_name} ({_KEY}): {first_few(list(files))}"
        )
    return best


def _is_there(fields: dict[str, str], images: ImageFinder, masks: Collection[Path]) -> bool:
    table, name = (images.by_name, fields["name"]) if "name" in fields else (images.by_stem, fields["stem"])
    return any(p not in masks for p in table.get(same_writing(name), ()))


def unlabeled_note(request: Request, images: Sequence[MaskedImage]) -> list[str]:
    """A note on images without a mask in the folders of images with one."""
    labelled = {i.file for i in images}
    masks = {m.path for i in images for m in i.masks}
    there = [
        p
        for folder in sorted({p.parent for p in labelled})
        for p in sorted(folder.iterdir())
        if p.suffix.lower() in SUFFIXES and p not in masks and not p.name.startswith(".")
    ]
    without = [p.name for p in there if p not in labelled]
    if not without:
        return []
    return [
        f"{request.path}: {len(without)} of {len(there)} images beside labelled ones have no mask: {first_few(without)}"
    ]


def stamps_of(paths: Sequence[Path], *more: object) -> str:
    """A text that changes whenever files do."""
    return json.dumps([*more, [[str(p), p.stat().st_mtime_ns, p.stat().st_size] for p in paths]])


def distinct_values(path: Path, read: Callable[[Path], np.ndarray] = read_index_mask) -> set[int] | None:
    """The values of a mask, of which those of one bit are 0 and 255; none for a damaged file, None for a picture of another kind."""
    try:
        with opened(path) as image:
            scale = 255 if image.mode == "1" else 1
        return set((np.unique(read(path)) * scale).tolist())
    except UnreadableImageError:
        return set()
    except DatasetError:
        return None
