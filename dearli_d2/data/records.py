"""The images of a data set as a sequence of dicts that are made when they are asked for, from arrays that all processes share."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from .images import relative_name
from .listing import Listing
from .packed import Table, TextPacker, Texts

Record = dict[str, Any]
UNLABELED = "file_name", "image_id", "height", "width", "caption"  # what an image without labels may have


class Records(Sequence[Record], ABC):
    """Dicts of images, as `catalog.dataset_dicts` describes them. Each access makes a new dict; a slice is a sequence of this kind.

    What a process needs for it does not grow with the number of images, but for the bytes of the row numbers of a part.
    """

    @abstractmethod
    def record(self, index: int) -> Record:
        """The dict of an image, 0 <= index < len."""

    @abstractmethod
    def file_name(self, index: int) -> str:
        """Its "file_name"."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Its path below the image folder of its data set, with slashes."""

    @abstractmethod
    def fact(self, index: int) -> str:
        """Tells the image from another one of its name: its size, as `fingerprint` takes it."""

    def length(self, index: int) -> int:
        """Bytes of the image file; -1 where nothing tells them."""
        try:
            return os.stat(self.file_name(index)).st_size
        except OSError:
            return -1

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = int(index)
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.record(place)

    def __iter__(self) -> Iterator[Record]:
        return map(self.record, range(len(self)))

    def files(self) -> Iterator[str]:
        """The "file_name" of each image."""
        return map(self.file_name, range(len(self)))

    def names(self) -> list[str]:
        """`name` of each image."""
        return list(map(self.name, range(len(self))))

    def take(self, rows: Sequence[int] | np.ndarray) -> Records:
        """Some of the images, in this order."""
        return Chosen(self, np.asarray(rows, np.int64))

    def fingerprint(self) -> str:
        """Changes with the number, the order, the file names and the sizes of the images."""
        digest = hashlib.sha256()
        for index, file in enumerate(self.files()):
            digest.update(f"{file.rpartition('/')[2]} {self.fact(index)}\n".encode())
        return digest.hexdigest()[:16]


class ImageRecords(Records):
    """Images without annotations: "file_name" and "image_id"."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def fingerprint(self) -> str:
        if self.listing.printed is None:
            self.listing.printed = super().fingerprint()
        return self.listing.printed

    def __len__(self) -> int:
        return len(self.listing)

    def record(self, index: int) -> Record:
        name = self.listing.names[index]
        return {"file_name": self.listing.file_name(index), "image_id": name}

    def file_name(self, index: int) -> str:
        return self.listing.file_name(index)

    def files(self) -> Iterator[str]:
        return self.listing.files()

    def name(self, index: int) -> str:
        return self.listing.names[index]

    def names(self) -> list[str]:
        return list(self.listing.names)

    def fact(self, index: int) -> str:
        return str(self.listing.bytes[index])

    def length(self, index: int) -> int:
        return int(self.listing.bytes[index])


_CROWD, _WHOLE, _NO_AREA = 1, 2, 4  # bits of "flags"


class PanopticRecords(Records):
    """Images of a COCO-panoptic data set.

    Args:
        table: of `pack_panoptic`.
        roots: folders of the images, of the panoptic PNG files and of the semantic ones or None.
        classes: {category id: class}; segments of other categories are left out.
    """

    def __init__(self, table: Table, roots: tuple[Path, Path, Path | None], classes: dict[int, int]) -> None:
        self._made_of = table, roots, classes
        # as `Path` joins them
        self._images, self._pngs, self._semantic = (
            None if r is None else "" if str(r) == "." else str(r) for r in roots
        )
        self._class_of = classes
        self._names, self._labels, self._ids = (table.texts(key) for key in ("names", "labels", "ids"))
        self._sizes, self._ends = table.arrays["sizes"], table.arrays["ends"]
        self._segments = [table.arrays[key] for key in ("segments", "categories", "flags", "areas")]

    def __reduce__(self) -> tuple[Any, ...]:
        return PanopticRecords, self._made_of

    def __len__(self) -> int:
        return len(self._ends)

    def record(self, index: int) -> Record:
        label = self._labels[index]
        height, width = self._sizes[index].tolist()
        text = self._ids[index]
        result = {
            "file_name": self.file_name(index),
            "image_id": text[1:] if text[0] == "s" else int(text[1:]),
            "height": height,
            "width": width,
            "pan_seg_file_name": os.path.join(str(self._pngs), label),
            "segments_info": self._segments_of(index),
        }
        if self._semantic is not None:
            result["sem_seg_file_name"] = os.path.join(self._semantic, label)
        return result

    def _segments_of(self, index: int) -> list[Record]:
        here = slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
        return [
            {
                "id": identifier,
                "category_id": self._class_of[category],
                "iscrowd": flags & _CROWD,
                "area": None if flags & _NO_AREA else int(area) if flags & _WHOLE else area,
            }
            for identifier, category, flags, area in zip(*(a[here].tolist() for a in self._segments), strict=True)
            if category in self._class_of
        ]

    def file_name(self, index: int) -> str:
        return os.path.join(str(self._images), self._names[index])

    def name(self, index: int) -> str:
        name = self._names[index]
        return relative_name(name, Path(str(self._images))) if os.path.isabs(name) else name

    def fact(self, index: int) -> str:
        height, width = self._sizes[index].tolist()
        return f"{width} {height}"


def pack_panoptic(records: Sequence[Record], facts: dict[str, Any]) -> Table:
    """The table of `PanopticRecords`.

    Args:
        records: {"image", "png", "segments"} of each image: its entry of the JSON file with a size, the name of its label file, and
            its segments with "category_id" as in the file.
        facts: of the table.
    """
    segments = [s for r in records for s in r["segments"]]
    areas = [s.get("area") for s in segments]
    flags = [
        bool(s["iscrowd"]) * _CROWD + isinstance(area, int) * _WHOLE + (area is None) * _NO_AREA
        for s, area in zip(segments, areas, strict=True)
    ]
    arrays: dict[str, np.ndarray] = {
        "sizes": np.array([(r["image"]["height"], r["image"]["width"]) for r in records], np.int64).reshape(-1, 2),
        "ends": np.fromiter(accumulate(len(r["segments"]) for r in records), np.int64, len(records)),
        "segments": np.array([s["id"] for s in segments], np.int32),
        "categories": np.array([s["category_id"] for s in segments], np.int32),
        "flags": np.array(flags, np.uint8),
        "areas": np.array([0.0 if area is None else area for area in areas], np.float64),
    }
    identifiers = [r["image"]["id"] for r in records]
    for key, texts in (
        ("names", (r["image"]["file_name"] for r in records)),
        ("labels", (r["png"] for r in records)),
        ("ids", (f"s{i}" if isinstance(i, str) else f"i{int(i)}" for i in identifiers)),
    ):
        arrays[key], arrays[f"{key}_ends"] = TextPacker(texts).arrays()
    return Table(facts, arrays)


class Chosen(Records):
    """Some images of others, by their row numbers."""

    def __init__(self, records: Records, rows: np.ndarray) -> None:
        self.whole: Records
        self.rows: np.ndarray
        if isinstance(records, Chosen):  # a part of a part
            self.whole, self.rows = records.whole, records.rows[rows]
        else:
            self.whole, self.rows = records, rows

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Record:
        return self.whole.record(int(self.rows[index]))

    def file_name(self, index: int) -> str:
        return self.whole.file_name(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.whole.name(int(self.rows[index]))

    def fact(self, index: int) -> str:
        return self.whole.fact(int(self.rows[index]))

    def length(self, index: int) -> int:
        return self.whole.length(int(self.rows[index]))


class Joined(Records):
    """Several data sets, one behind the other."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self.parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def _place(self, index: int) -> tuple[Records, int]:
        part = bisect_right(self._starts, index) - 1
        return self.parts[part], index - self._starts[part]

    def record(self, index: int) -> Record:
        part, place = self._place(index)
        return part.record(place)

    def file_name(self, index: int) -> str:
        part, place = self._place(index)
        return part.file_name(place)

    def name(self, index: int) -> str:
        part, place = self._place(index)
        return part.name(place)

    def fact(self, index: int) -> str:
        part, place = self._place(index)
        return part.fact(place)

    def length(self, index: int) -> int:
        part, place = self._place(index)
        return part.length(place)


class Changed(Records):
    """Records with something changed in each dict as it is made.

    Args:
        records: the records.
        change: takes the index and the dict, and returns the dict. With worker processes that do not fork it must be picklable.
    """

    def __init__(self, records: Records, change: Callable[[int, Record], Record]) -> None:
        self.records, self._change = records, change

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self._change(index, self.records.record(index))

    def file_name(self, index: int) -> str:
        return self.records.file_name(index)

    def files(self) -> Iterator[str]:
        return self.records.files()

    def name(self, index: int) -> str:
        return self.records.name(index)

    def names(self) -> list[str]:
        return self.records.names()

    def fact(self, index: int) -> str:
        return self.records.fact(index)

    def length(self, index: int) -> int:
        return self.records.length(index)


def without_labels(records: Records) -> Records:
    """The same images with the keys `UNLABELED` alone."""
    return Changed(records, _unlabeled)


def _unlabeled(index: int, record: Record) -> Record:
    return {key: record[key] for key in UNLABELED if key in record}


class Captions:
    """Adds "caption" to the dicts of `Changed`: texts in the order of the records."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    def __call__(self, index: int, record: Record) -> Record:
        return {**record, "caption": self._texts[index]}


class WithoutClasses:
    """Takes segments of some classes, and the semantic label, out of the dicts of `Changed`."""

    def __init__(self, classes: Sequence[int]) -> None:
        self._classes = frozenset(classes)

    def __call__(self, index: int, record: Record) -> Record:
        kept = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        return {**kept, "segments_info": [s for s in record["segments_info"] if s["category_id"] not in self._classes]}
