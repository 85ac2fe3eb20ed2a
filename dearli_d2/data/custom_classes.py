"""The class list of own data: its lines and what they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..files import read_text

VOID = 255  # in the semantic labels that are written
_LINE = re.compile(r"\s*(\d+)\s+(thing|stuff)\s+(\S.*?)\s*")


@dataclass(frozen=True)
class CustomClass:
    """`id` is the pixel value in the masks."""

    id: int
    isthing: bool
    names: tuple[str, ...]

    @property
    def category(self) -> dict:
        """The entry of a COCO-panoptic JSON file."""
        return {"id": self.id, "name": self.names[0], "synonyms": list(self.names[1:]), "isthing": int(self.isthing)}


def class_file(path: Path) -> list[str]:
    """The lines of a file of classes, without empty ones and comments. Raises `ConfigError` for a file in another coding."""
    lines = [line.strip() for line in read_text(path, ConfigError).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def classes_of_root(root: Path, labels: bool) -> list[str]:
    """The class list of ROOT/classes.txt; [] where there is none.

    Args:
        root: DATASETS.CUSTOM.ROOT.
        labels: labels of a tool are read. Its export may have a classes.txt of names alone, which the reader of the format knows.
    """
    path = root / "classes.txt"
    lines = class_file(path) if path.is_file() else []
    return [] if labels and not any(_LINE.fullmatch(line) for line in lines) else lines


def parse_classes(lines: Sequence[str], ignore: int = VOID) -> list[CustomClass]:
    """Reads the classes from lines `ID thing|stuff NAME, SYNONYM, ...`.

    Args:
        ignore: DATASETS.CUSTOM.IGNORE_VALUE.

    Raises:
        ConfigError: a malformed line, an id or name that stands twice.
    """
    classes: list[CustomClass] = []
    for line in lines:
        found = _LINE.fullmatch(line) if isinstance(line, str) else None
        names = tuple(n.strip() for n in found[3].split(",") if n.strip()) if found else ()
        if found is None or not names:
            raise ConfigError(
                f"DATASETS.CUSTOM.CLASSES: {line!r} should read 'ID thing NAME, SYNONYM' or 'ID stuff NAME', in quotes, "
                "for example '1 thing car, automobile'"
            )
        classes.append(CustomClass(int(found[1]), found[2] == "thing", names))
    for what, values in (("id", [str(c.id) for c in classes]), ("name", [c.names[0].lower() for c in classes])):
        double = sorted({v for v in values if values.count(v) > 1})
        if double:
            raise ConfigError(f"DATASETS.CUSTOM.CLASSES: {what} {', '.join(double)} stands twice")
    wide = [str(c.id) for c in classes if c.id >= 2**16]
    if wide:
        raise ConfigError(f"DATASETS.CUSTOM.CLASSES: id {', '.join(wide)} is beyond a PNG's 16 bits, 0 to 65535")
    if len(classes) > VOID:
        raise ConfigError(f"DATASETS.CUSTOM.CLASSES: {len(classes)} classes; index masks can have {VOID}")
    if any(c.id == ignore for c in classes):
        raise ConfigError(
            f"DATASETS.CUSTOM.CLASSES: {ignore} means 'ignore' in the masks and can be no class; if it is one set "
            "DATASETS.CUSTOM.IGNORE_VALUE to another value, or to -1 for none"
        )
    return classes
