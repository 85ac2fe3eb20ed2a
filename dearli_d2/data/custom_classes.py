"""The class list of own data: its lines and what they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError

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
