"""A look at labels without training: what they hold, what is suspicious, and the lines of the config that read them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ..data.custom_classes import CustomClass
from ..data.custom_labels import classes_of, targets_of, unlisted_classes, without_regions
from ..data.images import SUFFIXES, files_below, relative_name
from ..data.inspection import turned_note
from ..data.taxonomy import Taxonomy
from ..errors import ConfigError, DatasetError, DearliError, first_few
from ..files import file_digest, write_atomically
from ..progress import progress
from ..visualization import labels_sheet
from .geometry import area, union
from .mask_files import SUFFIXES_OF_MASKS
from .panoptic import TargetClass, draw
from .proposal import NoClassList
from .recognition import format_of, read_labels, recognize
from .structures import LabeledImage, LabelSet, Request

_SECONDS = 5.0  # for reading regions; of the images that are left none is read
_TINY = 16  # pixels, as DATASETS.CUSTOM.MIN_THING_AREA
_FEW_PIXELS = 0.05  # of an image, as DATASETS.CUSTOM.MIN_LABELED
_ALIKE = 0.88  # of two names
_ROWS = 12  # of the picture


@dataclass
class Look:
    """A summary of labels.

    Attributes:
        labels: that were read.
        request: how they were read, with the class list that is proposed where there was none.
        classes: as training would have them.
        counts: images, regions and pixels by class name.
        refused: what training refuses.
        seen: images whose regions were read.
        labelled_pixels: of these.
        all_pixels: of these, with those without a label.
        unlabelled: image files without labels.
        remarks: suspicious things, one a line.
    """

    labels: LabelSet
    request: Request
    classes: list[CustomClass]
    counts: dict[str, list[int]]
    refused: list[str] = field(default_factory=list)
    seen: int = 0
    labelled_pixels: int = 0
    all_pixels: int = 0
    unlabelled: int = 0
    remarks: list[str] = field(default_factory=list)

    def targets(self) -> dict[str, TargetClass]:
        """The place in `classes` for each class of the labels."""
        places = {c.id: place for place, c in enumerate(self.classes)}
        return {n: TargetClass(places[t.id], t.isthing) for n, t in targets_of(self.labels, self.classes).items()}


def labels_below(path: Path) -> Path:
    """The file or folder with labels: `path` itself, or the only one in it.

    Raises:
        DatasetError: there is none, or there are several, with the format of each.
    """
    if not path.is_dir() or recognize(path):
        return path
    children = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    found = {child: formats for child in children if (formats := recognize(child))}
    if len(found) > 1:
        listed = "; ".join(f"{child.name} ({', '.join(formats)})" for child, formats in found.items())
        raise DatasetError(f"{path} holds several files or folders with labels: {listed}. Name the one to look at")
    return next(iter(found), path)


def look(request: Request, name: str = "", seconds: float = _SECONDS) -> Look:
    """Looks at labels.

    Args:
        request: the labels, and the folder below which images lie.
        name: of the format; "" finds it.
        seconds: after which no more regions are read, so that a large folder is looked at in part.

    Raises:
        DatasetError: labels that cannot be read.
    """
    remarks: list[str] = []
    try:
        labels = read_labels(request, name)
    except NoClassList as error:
        if not error.lines:
            raise
        request = replace(request, classes=error.lines)
        labels = read_labels(request, name)
        remarks.append(str(error))
    if not labels.images:
        raise DatasetError(f"{labels.path}: {labels.format} labels of no image")
    refused: list[str] = []
    try:
        classes = classes_of(labels, request.classes)
    except ConfigError as error:
        refused.append(str(error))
        request, classes = replace(request, classes=()), unlisted_classes(labels)
    counts = {c.names[0]: [0, 0, 0] for c in classes}
    found = Look(labels, request, classes, counts, refused, remarks=remarks + labels.notes)
    _read_regions(found, seconds)
    try:
        if labels.check is not None:
            labels.check()
    except DatasetError as error:
        refused.append(str(error))
    _compare_classes(found)
    files = [image.file for image in labels.images]
    found.remarks += [*turned_note(files), *_sizes(labels.images), *_doubles(files)]
    found.unlabelled = _unlabelled(request.root, files)
    return found


def _read_regions(found: Look, seconds: float) -> None:
    """Counts the regions of all images, or of as many as the time allows, evenly chosen."""
    targets, end = found.targets(), time.monotonic() + seconds
    main = {name: found.classes[target.id].names[0] for name, target in targets.items()}
    things = {name for name, target in targets.items() if target.isthing}
    damaged: list[str] = []
    empty: list[str] = []
    sparse: list[str] = []
    covering: list[str] = []
    tiny = 0
    order = np.random.default_rng(0).permutation(len(found.labels.images))
    for index in progress(order.tolist(), "labels", len(order)):
        if found.seen and time.monotonic() > end:
            break
        image = found.labels.images[index]
        found.seen += 1
        try:
            shapes = image.shapes()
        except DearliError as error:
            damaged.append(str(error))
            continue
        areas = [area(s.rle) for s in shapes]
        covered = area(union([s.rle for s in shapes])) if shapes else 0
        found.labelled_pixels += covered
        found.all_pixels += image.size[0] * image.size[1]
        tiny += sum(a < _TINY and s.name in things and not s.semantic for a, s in zip(areas, shapes, strict=True))
        if not shapes:
            empty.append(image.file.name)
        elif covered < _FEW_PIXELS * image.size[0] * image.size[1]:
            sparse.append(image.file.name)
        if covered < sum(areas):
            areas_of_class, hidden = _cut(image, targets, found.classes)
            if hidden:
                covering.append(image.file.name)
        else:
            areas_of_class = Counter[str]()
            for size, shape in zip(areas, shapes, strict=True):
                areas_of_class[main[shape.name]] += size
        for name, regions in Counter(main[s.name] for s in shapes).items():
            row = found.counts[name]
            row[:] = [row[0] + 1, row[1] + regions, row[2] + areas_of_class[name]]
    if damaged:
        found.refused.append(f"{len(damaged)} labels cannot be read: {first_few(sorted(damaged))}")
    if empty:
        found.remarks.append(without_regions(found.seen, sorted(empty)))
    if sparse:
        found.remarks.append(
            f"{len(sparse)} images with a label on less than {_FEW_PIXELS:.0%} of their pixels: {first_few(sorted(sparse))}"
        )
    if 2 * len(empty + sparse) > found.seen:
        found.remarks.append(
            f"more than half of the images have a label on less than {_FEW_PIXELS:.0%} of their pixels, which training refuses: name a "
            "class of the others in DATASETS.CUSTOM.BACKGROUND, or set DATASETS.CUSTOM.MIN_LABELED 0"
        )
    if covering:
        found.remarks.append(f"{len(covering)} images where regions hide others wholly: {first_few(sorted(covering))}")
    if tiny:
        found.remarks.append(
            f"{tiny} objects of fewer than {_TINY} pixels; training leaves them out (DATASETS.CUSTOM.MIN_THING_AREA)"
        )


def _cut(image: LabeledImage, targets: dict[str, TargetClass], classes: list[CustomClass]) -> tuple[Counter[str], int]:
    """Pixels by class name once overlaps are cut, and the number of regions that nothing is left of."""
    drawn = draw(image, targets)
    pixels: Counter[str] = Counter()
    for segment in drawn.segments:
        pixels[classes[segment["category_id"]].names[0]] += segment["area"]
    return pixels, drawn.hidden


# ---------------------------------------------------------------------------------------------- suspicious things


def _compare_classes(found: Look) -> None:
    """Remarks about classes: absent and seldom ones, and names that may be one class."""
    targets = found.targets()
    seldom = [name for name, (images, _, _) in found.counts.items() if images == 1]
    absent = [name for name, (images, _, _) in found.counts.items() if images == 0]
    pairs = [(a, b) for a, b in combinations(targets, 2) if targets[a] != targets[b] and _alike(a, b)]
    if pairs:
        alike = [f"{a!r} and {b!r}" for a, b in pairs]
        found.remarks.append(
            f"{len(alike)} pairs of class names are nearly the same, so they may be one class: {first_few(alike)}"
        )
    if absent:
        found.remarks.append(
            f"{len(absent)} classes are in no image: {first_few(absent)}. Training refuses that without "
            "DATASETS.CUSTOM.ALLOW_ABSENT_CLASSES True"
        )
    if seldom:
        found.remarks.append(f"{len(seldom)} classes are in one image only, which trains or validates but not both: {first_few(seldom)}")  # fmt: skip


def _alike(one: str, other: str) -> bool:
    a, b = ("".join(c for c in name.casefold() if c.isalnum()) for name in (one, other))
    if a and a.rstrip("s") == b.rstrip("s"):
        return True
    digits = [c for c in a if c.isdigit()] != [c for c in b if c.isdigit()]  # "type 1" and "type 2"
    return not digits and min(len(a), len(b)) >= 5 and SequenceMatcher(None, a, b).ratio() >= _ALIKE


def _sizes(images: Sequence[LabeledImage]) -> list[str]:
    pixels = [height * width for height, width in (image.size for image in images)]
    small, large = int(np.argmin(pixels)), int(np.argmax(pixels))
    if pixels[large] < 9 * pixels[small]:
        return []
    return [
        f"the largest image has {pixels[large] / pixels[small]:.0f} times the pixels of the smallest: {images[large].file.name} "
        f"{_size(images[large])}, {images[small].file.name} {_size(images[small])}"
    ]


def _size(image: LabeledImage) -> str:
    return f"{image.size[1]} x {image.size[0]}"


def _doubles(files: Sequence[Path]) -> list[str]:
    """A remark about labelled images with the same content. Only files of the same length are read."""
    groups = _groups(files, lambda file: str(file.stat().st_size))
    same = [g for group in groups for g in _groups(group, file_digest)]
    if not same:
        return []
    pairs = [" and ".join(file.name for file in group[:3]) for group in same]
    return [f"{len(same)} labelled images are there twice or more, perhaps in two splits: {first_few(pairs)}"]


def _groups(files: Iterable[Path], key: Callable[[Path], str]) -> list[list[Path]]:
    """Groups of two or more files that share a key."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(key(file), []).append(file)
    return [group for group in found.values() if len(group) > 1]


def _unlabelled(root: Path, labelled: Sequence[Path]) -> int:
    """Number of images below a folder that are neither labelled nor masks of labelled images."""
    files, stems = set(labelled), {file.stem for file in labelled}

    def is_mask(path: Path) -> bool:
        cuts = [i for i, c in enumerate(path.stem) if c in "._-"]
        return path.suffix.lower() in SUFFIXES_OF_MASKS and any(path.stem[:i] in stems for i in (*cuts, None))

    images = [p for p in files_below(root) if p.suffix.lower() in SUFFIXES and p not in files]
    return sum(not is_mask(p) for p in images)


# ---------------------------------------------------------------------------------------------- report


def report(found: Look) -> str:
    """The look as text."""
    labels, classes = found.labels, {c.names[0]: c for c in found.classes}
    refused = (
        ["Training refuses these labels:", *(f"- {problem}" for problem in found.refused), ""] if found.refused else []
    )
    sizes = [image.size for image in labels.images]
    heights, widths = zip(*sizes, strict=True)
    splits = Counter(image.split or "no split" for image in labels.images)
    shown = [
        f"{labels.path}: {labels.format}, {format_of(labels.path, labels.format).title}",
        f"images with labels: {len(labels.images)} ({', '.join(f'{name}: {n}' for name, n in sorted(splits.items()))}), "
        f"{min(widths)} x {min(heights)} to {max(widths)} x {max(heights)} pixels (w x h); without labels: {found.unlabelled}",
    ]
    if found.seen < len(labels.images):
        shown.append(
            f"regions of {found.seen} of {len(labels.images)} images, evenly chosen, since more would take too long"
        )
    total = max(found.all_pixels, 1)
    rows = [
        [name, "thing" if classes[name].isthing else "stuff", images, regions, 100 * pixels / total]
        for name, (images, regions, pixels) in found.counts.items()
    ]
    rows.append(["(no label)", "", "", "", 100 * (total - found.labelled_pixels) / total])
    table = tabulate(rows, ["class", "kind", "images", "regions", "% of pixels"], floatfmt=".2f")
    remarks = [f"- {remark}" for remark in found.remarks] or ["- nothing"]
    return "\n".join(
        [*shown, "", table, "", *refused, "Suspicious:", *remarks, "", "Lines of the config:", "", config_lines(found)]
    )


def config_lines(found: Look) -> str:
    """The keys that read these labels, to copy into a config. The kind of each class, thing or stuff, is a proposal."""
    path, root = found.labels.path, found.request.root
    several = len(recognize(path)) > 1
    mostly_free = found.labels.instances and found.labelled_pixels < found.all_pixels / 2
    own = [f"{c.id} {'thing' if c.isthing else 'stuff'} {c.names[0]}" for c in found.classes]
    lines = [
        "DATASETS:",
        "  CUSTOM:",
        f"    ROOT: {_quoted(str(root))}",
        f"    LABELS: {_quoted(relative_name(path, root))}",
        *([f"    FORMAT: {found.labels.format}"] if several else []),
        *(["    # BACKGROUND: background  # if pixels without a label are background; as it is they are ignored"] if mostly_free else []),
        "    CLASSES:",
        *(f"      - {_quoted(line)}" for line in found.request.classes or own),
    ]  # fmt: skip
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_picture(found: Look, path: Path, rows: int = _ROWS) -> None:
    """Draws images beside their labels, spread over all.

    Raises:
        DatasetError: no image has labels that can be drawn.
    """
    targets = found.targets()
    taxonomy = Taxonomy.from_categories([c.category for c in found.classes])
    images = found.labels.images
    chosen = [
        images[i] for i in sorted(set(np.linspace(0, len(images) - 1, min(rows, len(images))).astype(int).tolist()))
    ]
    drawn = []
    for image in chosen:
        try:
            cut = draw(image, targets)
        except DearliError:
            continue
        drawn.append((str(image.file), cut.ids, cut.segments))
    if not drawn:
        raise DatasetError(f"{found.labels.path}: the labels of {len(chosen)} images cannot be drawn")
    picture = labels_sheet(drawn, taxonomy)
    write_atomically(path, lambda temporary: picture.save(temporary))
