"""Names of the classes of public data sets, as a text tower should read them: one table a data set, in `assets/`.

The published annotation files write `rug-merged`, `door-stuff` or "case, display case, showcase, vitrine". The tables give
each class a main name in plain words and synonyms, which are ours; no synonym belongs to two classes of a data set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True)
class ClassEntry:
    """`id` in the annotation files, `official` names as different publications write them, `names` = main name, synonyms."""

    id: int
    official: tuple[str, ...]
    names: tuple[str, ...]


COCO_THINGS = frozenset(range(1, 91))
COCO_BACKGROUND = 0  # of COCO-Objects
_COCO_STUFF = frozenset(range(92, 183))
# COCO-panoptic merges stuff to 184..200 and leaves these as they are
_COCO_UNMERGED = frozenset(
    (92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148, 149, 151, 154, 155,
     156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181)
)  # fmt: skip
# data set: file in `assets/`, ids of it or None = all
_TABLES: dict[str, tuple[str, frozenset[int] | None]] = {
    "ade20k": ("ade20k", None),
    "coco_panoptic": ("coco", COCO_THINGS | _COCO_UNMERGED | frozenset(range(184, 201))),
    "coco_objects": ("coco", COCO_THINGS | {COCO_BACKGROUND}),
    "coco_stuff": ("coco", COCO_THINGS | _COCO_STUFF),
    "cityscapes": ("cityscapes", None),
    "pascal_voc": ("pascal_voc", None),
}

CLASS_LISTS = tuple(_TABLES)


@lru_cache
def class_table(dataset: str) -> tuple[ClassEntry, ...]:
    """The classes of "ade20k", "coco_panoptic", "coco_objects", "coco_stuff", "cityscapes" or "pascal_voc", by id."""
    file, ids = _TABLES[dataset]
    text = files("dearli_d2").joinpath(f"assets/classes_{file}.txt").read_text(encoding="utf-8")
    entries = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        identifier, official, names = line.split(": ")
        entry = ClassEntry(int(identifier), _split(official, r"\|"), _split(names, ","))
        if ids is None or entry.id in ids:
            entries.append(entry)
    return tuple(entries)


@lru_cache
def _by_name(dataset: str) -> dict[str, ClassEntry]:
    return {name: entry for entry in class_table(dataset) for name in (*entry.official, entry.names[0])}


def find_class(dataset: str, name: str) -> ClassEntry | None:
    """The class of a data set that an annotation file calls `name`, perhaps with synonyms after a comma."""
    name = name.strip().lower()
    table = _by_name(dataset)
    return table.get(name) or table.get(_split(name, "[,;]")[0] if name else "")


def plain_words(name: str) -> str:
    """A name of a user's annotation file in words: "traffic_light" is "traffic light", "rug-merged" is "rug"."""
    words = re.sub(r"(-(other|stuff|merged))+$", "", name.strip()).replace("_", " ")
    return " ".join(words.split()) or name


def comma_parts(name: str) -> tuple[str, ...]:
    """The synonyms in "case, display case, showcase"."""
    return _split(name, "[,;]") or (name,)


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(separator, text) if part.strip())
