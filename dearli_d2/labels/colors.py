"""Masks whose colours, or values, stand for named classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..data.images import opened, upright
from ..errors import DatasetError, DearliError, first_few
from ..files import read_text
from ..progress import progress
from .geometry import encode
from .structures import RLE, LabelClass, Request, Shape

FREE, VOID, UNKNOWN = -1, -2, -3  # in place of the number of a class: no label, excluded, in no list
VOC_BORDER = (224, 224, 192)
_VOID_NAMES = {"ignored", "ignore", "void", "unlabeled", "unlabelled", "__ignore__"}
_FREE_NAMES = {"background", "_background_"}
_ORDERS = (
    re.compile(r"(?P<name>[^:]+):\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)\s*(:.*)?"),  # CVAT, datumaro
    re.compile(r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)[\s,]+(?P<name>\S.*?)"),  # CamVid
    re.compile(r"(?P<name>\S.*?)[\s,;]+(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)"),
)
_NAME = re.compile(r"(?!.*\d[\s,;]+\d)[^:]+(:\s*:\s*:)?\s*")  # without a colour
_HEADER = re.compile(r"\W*(name|class|r\W+g\W+b)\b.*", re.IGNORECASE)


def read_color_map(path: Path) -> dict[str, tuple[int, int, int]]:
    """The RGB colour of each class in a text file.

    A line is `name:r,g,b::` as CVAT writes it, `r g b name` as CamVid has it, or `name,r,g,b`. Where no line has a colour, colours are
    those of Pascal VOC's palette in the order of the lines.

    Raises:
        DatasetError: with the lines that are none of these, or colours or names that stand twice.
    """
    lines = [(n, line.strip()) for n, line in enumerate(read_text(path, DatasetError).splitlines(), start=1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith("#")]
    if lines and _HEADER.fullmatch(lines[0][1]) and not re.search(r"\d", lines[0][1]):
        lines = lines[1:]
    if lines and all(_NAME.fullmatch(line) for _, line in lines):
        return _spread([line.strip(": ") for _, line in lines], path)
    found: dict[str, tuple[int, int, int]] = {}
    faults: list[str] = []
    for number, line in lines:
        match = next((m for order in _ORDERS if (m := order.fullmatch(line))), None)
        color = tuple(int(match[c]) for c in "rgb") if match else ()
        if match is None or max(color) > 255:
            faults.append(f"line {number} {line!r}")
        elif match["name"].strip() in found or color in found.values():
            faults.append(f"line {number} {line!r} (the name or the colour stands twice)")
        else:
            found[match["name"].strip()] = (color[0], color[1], color[2])
    if faults or not found:
        raise DatasetError(
            f"{path}: {len(faults)} lines are no 'name:r,g,b::' with a new name and colour: {first_few(faults)}"
        )
    return found


def _spread(names: list[str], path: Path) -> dict[str, tuple[int, int, int]]:
    """The colours that datumaro gives to names without any: Pascal VOC's, of which black is the background's."""
    if len(set(names)) < len(names):
        raise DatasetError(f"{path}: {len(names) - len(set(names))} names stand twice")
    return dict(
        zip(
            names if names[0].lower() in _FREE_NAMES else ["background", *names],
            voc_colors(len(names) + 1),
            strict=False,
        )
    )


def voc_colors(number: int) -> list[tuple[int, int, int]]:
    """The first colours of Pascal VOC's palette, which spreads the bits of an index over the three channels."""
    found = []
    for index in range(number):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        found.append((color[0], color[1], color[2]))
    return found


def listed_names(request: Request) -> set[str]:
    """The names and synonyms in the user's class list, in small letters."""
    lines = [re.sub(r"^\s*\d+\s+(thing|stuff)\s+", "", line) for line in request.classes]
    return {name.strip().lower() for line in lines for name in line.split(",")}


@dataclass(frozen=True)
class Coding:
    """The meaning of colours and values in masks. It can be pickled.

    Attributes:
        names: of the classes.
        by_color: (0xRRGGBB, number of a class, or FREE or VOID).
        by_value: the same for greyscale masks; () takes a grey for a colour.
        palette: the colours of palette masks count, not their values.
        source: says in errors where the list is.
    """

    names: tuple[str, ...]
    by_color: tuple[tuple[int, int], ...]
    by_value: tuple[tuple[int, int], ...]
    palette: bool
    source: str

    @staticmethod
    def of(
        request: Request,
        colors: Mapping[str, tuple[int, int, int]],
        values: Mapping[str, int],
        palette: bool,
        source: str,
        free_background: bool,
    ) -> Coding:
        """The coding of named colours and values.

        Args:
            request: whose class list says which of "background", "void" and so on are classes.
            free_background: pixels of the background have no label where there is no class list.
        """
        listed = listed_names(request)
        free = _FREE_NAMES if free_background or listed else set()
        names = list(dict.fromkeys([*colors, *values]))
        kept = [n for n in names if n.lower() in listed or n.lower() not in free | _VOID_NAMES]
        number = {n: FREE if n.lower() in _FREE_NAMES else VOID for n in names} | {n: i for i, n in enumerate(kept)}
        codes = {_code(VOC_BORDER): VOID} | {_code(color): number[name] for name, color in colors.items()}
        by_value = {value: number[name] for name, value in values.items()}
        if by_value:
            by_value.setdefault(request.ignore, VOID)
        return Coding(tuple(kept), tuple(codes.items()), tuple(by_value.items()), palette, source)

    def classes(self) -> list[LabelClass]:
        """The classes with their colours."""
        colors = {number: (code >> 16, code >> 8 & 255, code & 255) for code, number in self.by_color}
        return [LabelClass(name, color=colors.get(number)) for number, name in enumerate(self.names)]

    def read(self, path: Path) -> np.ndarray:
        """(H, W) int16 numbers of classes, or FREE, VOID or UNKNOWN. Raises `DatasetError`."""
        return self._numbers(*self._stored(path))

    def _stored(self, path: Path) -> tuple[np.ndarray, bool]:
        """(H, W) int64 values, or colours if the second is True."""
        with opened(path, "a colour mask") as image:
            if image.format == "JPEG":
                raise DatasetError(f"{path} is a JPEG file, whose compression changes colours; save masks as PNG")
            grey = image.mode in ("L", "1", "I", "I;16") or (image.mode == "P" and not self.palette)
            if grey and self.by_value:
                return np.asarray(upright(image)).astype(np.int64), False
            rgb = np.asarray(upright(image).convert("RGB")).astype(np.int64)
        return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2], True

    def _numbers(self, stored: np.ndarray, is_color: bool) -> np.ndarray:
        if is_color:
            return _table(self.by_color, 2**24)[stored]
        table = _table(self.by_value, 2**16)
        return np.where(stored < 2**16, table[np.minimum(stored, 2**16 - 1)], UNKNOWN).astype(np.int16)

    def strangers(self, path: Path) -> list[str]:
        """The colours or values of a mask that are in no list."""
        stored, is_color = self._stored(path)
        found = np.unique(stored[self._numbers(stored, is_color) == UNKNOWN]).tolist()
        return [f"({v >> 16}, {v >> 8 & 255}, {v & 255})" if is_color else str(v) for v in found]

    def check(self, masks: Sequence[Path]) -> None:
        """Looks for colours or values that are in no list, in all masks. Raises `DatasetError`."""

        def look(path: Path) -> list[str] | DearliError:
            try:
                return self.strangers(path)
            except DearliError as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            found = list(progress(pool.map(look, masks), "colours of masks", len(masks)))
        broken = [str(f) for f in found if isinstance(f, DearliError)]
        if broken:
            raise DatasetError(f"{len(broken)} of {len(masks)} masks cannot be used: {first_few(broken)}")
        offenders = [(mask, f) for mask, f in zip(masks, found, strict=True) if f and not isinstance(f, DearliError)]
        if offenders:
            every = list(dict.fromkeys(color for _, colors in offenders for color in colors))
            why = "; so many come from compression, smoothing or resizing of masks" if len(every) > 50 else ""
            raise DatasetError(
                f"{offenders[0][0]} holds {first_few(offenders[0][1])}, which {self.source} does not list; {len(offenders)} of "
                f"{len(masks)} masks hold such colours or values, {len(every)} in all{why or '; add them there'}"
            )

    def known(self, path: Path) -> np.ndarray:
        """`read`, where a colour or value of no list is an error."""
        numbers = self.read(path)
        if (numbers == UNKNOWN).any():
            raise DatasetError(f"{path} holds {first_few(self.strangers(path))}, which {self.source} does not list")
        return numbers


def _code(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


@lru_cache(maxsize=4)
def _table(pairs: tuple[tuple[int, int], ...], size: int) -> np.ndarray:
    table = np.full(size, UNKNOWN, np.int16)
    for key, number in pairs:
        if 0 <= key < size:
            table[key] = number
    return table


def semantic_shapes(path: Path, coding: Coding) -> list[Shape]:
    """All pixels of each class of a mask."""
    numbers = coding.known(path)
    return [Shape(coding.names[n], encode(numbers == n), semantic=True) for n in np.unique(numbers).tolist() if n >= 0]


def void_pixels(path: Path, coding: Coding) -> RLE:
    """The pixels of a mask that are excluded."""
    return encode(coding.read(path) == VOID)
