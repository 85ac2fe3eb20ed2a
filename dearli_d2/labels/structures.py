"""What every format of labels is read into, and written from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import DatasetError, first_few

_LONGEST = 300  # characters of an entry in an error
RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes}, compressed as pycocotools has it


@dataclass(frozen=True)
class LabelClass:
    """A class of a label file.

    Attributes:
        name: as the file has it.
        id: of the class in the file; None where the format has names only.
        isthing: True for countable objects; None where the format does not say.
        color: RGB in masks and pictures; None where the format has none.
    """

    name: str
    id: int | None = None
    isthing: bool | None = None
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Shape:
    """One labelled region of an image: an object, a part of stuff, or a crowd.

    Attributes:
        name: of its class.
        rle: its pixels.
        crowd: the region holds several objects that are not told apart.
        level: order of drawing where the format has one; higher lies on top.
        score: confidence in 0..1 of a prediction.
        semantic: the region is all that the image shows of the class, and objects are not told apart, as in semantic masks.
            Where the class is a thing, each connected part of the region is an object.
    """

    name: str
    rle: RLE
    crowd: bool = False
    level: int = 0
    score: float | None = None
    semantic: bool = False


@dataclass(frozen=True)
class LabeledImage:
    """An image of a label file.

    Attributes:
        file: the image file.
        size: (height, width) in pixels as the image is seen.
        shapes: reads its regions; called once or more, perhaps in a worker process, so it can be pickled.
        split: "train", "val", "test", or "" where the format does not say.
        ignored: reads the pixels that the labels exclude, so that they get no label even where free pixels are a background.
    """

    file: Path
    size: tuple[int, int]
    shapes: Callable[[], list[Shape]]
    split: str = ""
    ignored: Callable[[], RLE] | None = None


@dataclass(frozen=True)
class LabelSet:
    """Labels that one format has read.

    Attributes:
        path: the file or folder.
        format: name of the format.
        classes: in the order of the file.
        images: all images with labels, also those that show no object.
        instances: True if shapes are single objects; then classes that nothing else describes are things.
        fingerprint: text that changes whenever the labels do, such as digests of the files.
        notes: doubtful things that a user should read.
        check: looks for faults that only the pixels of all label files show, such as values of no class. It is called once, before
            many shapes are read, since it takes as long as that. Raises `DatasetError`.
    """

    path: Path
    format: str
    classes: list[LabelClass]
    images: list[LabeledImage]
    instances: bool
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    check: Callable[[], None] | None = None


@dataclass(frozen=True)
class Request:
    """A question to a format: the labels to read, and how.

    Attributes:
        path: file or folder of labels.
        root: folder below which images are looked for.
        ignore: pixel value of index masks that means "ignore"; -1 for none.
        mask_name: how a mask is named after its image, such as "{stem}_mask.png"; "" for the usual names.
        classes: lines of the class list where the user gave one.
    """

    path: Path
    root: Path
    ignore: int = 255
    mask_name: str = ""
    classes: tuple[str, ...] = ()


class Writer(Protocol):
    """Writes labels in a format, image by image."""

    def __init__(self, out: Path, classes: Sequence[LabelClass]) -> None:
        """Starts in the folder `out`, which is empty or missing."""

    def add(self, file_name: str, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Adds an image.

        Args:
            file_name: path of the image below the folder of images, with slashes.
            size: (height, width).
            shapes: its regions, of which none overlaps another.
        """

    def finish(self) -> None:
        """Writes what needs all images."""


@dataclass(frozen=True)
class Format:
    """A format of labels.

    Attributes:
        name: as keys and options give it, such as "coco-instances".
        title: for people.
        recognizes: says by what a file or folder is recognised; "" for another format. It is quick and raises nothing.
        read: reads it. Raises `DatasetError` with the file, the entry, the number of offenders and what to do.
        writer: None for a format that is read only.
    """

    name: str
    title: str
    recognizes: Callable[[Path], str]
    read: Callable[[Request], LabelSet]
    writer: type[Writer] | None = None


class Problems:
    """Collects faults of a label file, so that all offenders are counted before an error.

    Args:
        path: the file or folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, list[str]] = {}

    def add(self, problem: str, entry: object) -> None:
        """Notes an entry with a fault. `problem` says what is wrong with the entries, and perhaps what to do."""
        text = str(entry)[:_LONGEST].encode("utf-8", "backslashreplace").decode()  # JSON may hold what no text can
        self.found.setdefault(problem, []).append(" ".join(text.split()))

    def check(self) -> None:
        """Raises `DatasetError` if there is a fault."""
        if self.found:
            parts = (f"{len(entries)} {problem}: {first_few(entries)}" for problem, entries in self.found.items())
            raise DatasetError(f"{self.path}: {'; '.join(parts)}")


def names_of(classes: Iterable[LabelClass]) -> list[str]:
    """Names of classes."""
    return [c.name for c in classes]
