"""Cityscapes' masks of ids, also of own data with its names.

gtFine/train/CITY/a_gtFine_instanceIds.png   class id * 1000 + number of the object, or the class id alone
gtFine/train/CITY/a_gtFine_labelIds.png      class id; read where there are no instanceIds
leftImg8bit/train/CITY/a_leftImg8bit.png     the image; or a.png
label_colors.txt                             names of own classes in the order of their ids, as datumaro writes it

In Cityscapes' own instanceIds a class id of things alone marks a group of objects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from ...data.class_names import class_table
from ...data.custom_classes import parse_classes
from ...data.images import image_sizes
from ...data.index_masks import count_values, read_index_mask
from ...data.streets import LABEL_IDS
from ...errors import DatasetError, first_few
from ..colors import read_color_map
from ..geometry import encode
from ..images import ImageFinder
from ..mask_files import check_size, masks_below, stamps_of
from ..reading import split_in
from ..structures import RLE, Format, LabelClass, LabeledImage, LabelSet, Problems, Request, Shape

_NAME = re.compile(r"(?P<stem>.+?)(_gt(Fine|Coarse))?_(?P<kind>instanceIds|labelIds|labelTrainIds)\.png", re.IGNORECASE)
_KINDS = ("instanceids", "labelids", "labeltrainids")  # the best first
_TREES = ("gtfine", "gtcoarse")  # folders that images do not lie in
_FACTOR = 1000
_PLATE = 2**16 - 1  # the licence plate's id -1 in 16 bits
_FIRST_THING = 11  # of the 19 classes


def recognizes(path: Path) -> str:
    """Recognises names of Cityscapes' masks."""
    found = next((p for p in masks_below(path) if _NAME.fullmatch(p.name)), None) if path.is_dir() else None
    return f"{found} has a name of Cityscapes" if found is not None else ""


@dataclass(frozen=True)
class _Ids:
    """The meaning of the values of a mask."""

    names: tuple[tuple[int, str], ...]
    void: frozenset[int]
    things: frozenset[int]  # whose id alone marks a group
    instances: bool

    def classes_of(self, values: np.ndarray) -> np.ndarray:
        """Class ids of values, which are turned into -1 where they carry no label."""
        ids = np.where(values >= _FACTOR, values // _FACTOR, values) if self.instances else values
        return np.where(np.isin(values, list(self.void)) | np.isin(ids, list(self.void)), -1, ids)


def read(request: Request) -> LabelSet:
    """Reads the names of all masks, and a mask when its image is asked for. See `Format.read`."""
    problems = Problems(request.path)
    everything = masks_below(request.path) if request.path.is_dir() else []
    masks = {p: m for p in everything if (m := _NAME.fullmatch(p.relative_to(request.path).as_posix()))}
    best: dict[str, Path] = {}
    for path in sorted(masks, key=lambda p: ("gtcoarse" in p.name.lower(), _KINDS.index(masks[p]["kind"].lower()))):
        parts = (part for part in PurePosixPath(masks[path]["stem"]).parts if part.lower() not in _TREES)
        best.setdefault("/".join(parts), path)
    if not best:
        raise DatasetError(f"{request.path} holds no mask that is called *_gtFine_instanceIds.png or *_labelIds.png")
    finder = ImageFinder(request.root, request.path, [p for p in everything if "gt" in p.name or p in masks])
    places = [*(place / "leftImg8bit" for place in finder.places), *finder.places]
    images: dict[Path, Path] = {}
    for stem, path in best.items():
        name, quiet = f"{stem}_leftImg8bit", Problems(request.path)
        image = finder.of_stem(name, quiet, places) or finder.of_stem(stem, problems, places)
        if image is not None and finder.claim(image, path.relative_to(request.path).as_posix(), problems):
            images[image] = path
    problems.check()
    sizes = image_sizes(list(images))
    for (image, path), size in zip(images.items(), sizes, strict=True):
        check_size(path, image, size, problems)
    problems.check()
    classes, own = _classes(request)
    meanings = {path: _meaning(classes, own, masks[path]["kind"].lower(), request.ignore) for path in images.values()}
    labeled = [
        LabeledImage(
            image, size, partial(_shapes, path, meanings[path]), split_in(masks[path]["stem"]), partial(_ignored, path, meanings[path])
        )
        for (image, path), size in zip(images.items(), sizes, strict=True)
    ]  # fmt: skip
    instances = any(m.instances for m in meanings.values())
    stamps = stamps_of(list(meanings), [[c.id, c.name] for c in classes], own)
    return LabelSet(request.path, FORMAT.name, classes, labeled, instances, stamps, check=partial(_check, meanings))


def _classes(request: Request) -> tuple[list[LabelClass], bool]:
    """The classes, and whether they are the user's own."""
    if request.classes:
        return [LabelClass(c.names[0], c.id, c.isthing) for c in parse_classes(request.classes, request.ignore)], True
    path = next(
        (f / "label_colors.txt" for f in (request.path, request.path.parent) if (f / "label_colors.txt").is_file()),
        None,
    )
    if path is not None:
        colors = read_color_map(path)
        shift = 0 if (0, 0, 0) in colors.values() else 1  # datumaro puts a background of its own before the others
        return [
            LabelClass(name, i, color=c) for i, (name, c) in enumerate(colors.items(), start=shift) if c != (0, 0, 0)
        ], True
    table = class_table("cityscapes")
    return [LabelClass(e.names[0], LABEL_IDS[e.id], e.id >= _FIRST_THING) for e in table], False


def _meaning(classes: list[LabelClass], own: bool, kind: str, ignore: int) -> _Ids:
    by_id = {c.id: c.name for c in classes if c.id is not None}
    things = frozenset() if own else frozenset(c.id for c in classes if c.isthing and c.id is not None)
    void = {0, ignore, _PLATE} if own else {*range(35), 255, ignore, _PLATE}
    if kind == "labeltrainids" and not own:
        by_id, void = {LABEL_IDS.index(i): name for i, name in by_id.items()}, {255, ignore}
    return _Ids(tuple(by_id.items()), frozenset(void - set(by_id)), things, kind == "instanceids")


def _shapes(path: Path, meaning: _Ids) -> list[Shape]:
    values, names = read_index_mask(path), dict(meaning.names)
    ids = meaning.classes_of(values)
    found = []
    for value in np.unique(values[ids >= 0]).tolist():
        number = value // _FACTOR if meaning.instances and value >= _FACTOR else value
        if number not in names:
            raise DatasetError(f"{path} holds {value}, whose class {number} is not listed")
        alone = number == value
        group = alone and meaning.instances and number in meaning.things
        found.append(Shape(names[number], encode(values == value), crowd=group, semantic=alone and not group))
    return found


def _ignored(path: Path, meaning: _Ids) -> RLE:
    return encode(meaning.classes_of(read_index_mask(path)) < 0)


def _check(meanings: dict[Path, _Ids]) -> None:
    offenders: dict[Path, list[int]] = {}
    for key, counts in count_values({str(p): p for p in meanings}):
        path = Path(key)
        meaning = meanings[path]
        ids = meaning.classes_of(np.array(list(counts)))
        if strangers := sorted({int(i) for i in ids if i >= 0} - {number for number, _ in meaning.names}):
            offenders[path] = strangers
    if offenders:
        path, strangers = next(iter(offenders.items()))
        raise DatasetError(
            f"{path} holds the class ids {first_few(strangers)}, which are not listed; {len(offenders)} of {len(meanings)} masks hold such "
            "ids; list your classes in DATASETS.CUSTOM.CLASSES, one line 'ID thing|stuff NAME' for each id"
        )


FORMAT = Format("cityscapes", "Cityscapes' instanceIds and labelIds", recognizes, read)
