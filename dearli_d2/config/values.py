"""The kinds of values that configuration keys accept."""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from ..files import is_text

_LARGEST = sys.float_info.max  # nan is not below it, nor are integers that no float can hold


class Rule(Protocol):
    """`allowed` says in words what is accepted; `read` returns the value in the key's own type or raises `ValueError`."""

    @property
    def allowed(self) -> str: ...

    def read(self, value: Any) -> Any: ...


@dataclass(frozen=True)
class Number:
    """A finite number in low..high; `above` and `below` leave out the end itself; `whole`: without a fraction."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    @property
    def allowed(self) -> str:
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"above {self.low:g}" if self.above else f"at least {self.low:g}")
        if self.high < math.inf:
            bounds.append(f"below {self.high:.10g}" if self.below else f"at most {self.high:.10g}")
        return " and ".join([f"a {'whole' if self.whole else 'finite'} number", *bounds]).replace(" and ", ", ", 1)

    def read(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise ValueError
        if self.whole and value != int(value):
            raise ValueError
        if value < self.low or value > self.high:
            raise ValueError
        if (self.above and value == self.low) or (self.below and value == self.high):
            raise ValueError
        return int(value) if self.whole else float(value)


@dataclass(frozen=True)
class Switch:
    """True or False."""

    allowed = "True or False"

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few values, of their own type."""

    options: tuple[Any, ...]

    @property
    def allowed(self) -> str:
        names = [repr(option) for option in self.options]
        return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]

    def read(self, value: Any) -> Any:
        if not any(type(value) is type(option) and value == option for option in self.options):
            raise ValueError
        return value


@dataclass(frozen=True)
class Text:
    """A string in UTF-8.

    `filled`: it is not empty. `pattern`: a regular expression that it matches, `like` in words. `path`: "~" at the start is the
    home folder; a shell expands it at the start of a word only.
    """

    filled: bool = False
    path: bool = False
    pattern: str = ""
    like: str = ""

    @property
    def allowed(self) -> str:
        return self.like or ("a text that is not empty" if self.filled else "a text")

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or "\0" in value or not is_text(value) or (self.filled and not value.strip()):
            raise ValueError
        if self.pattern and re.fullmatch(self.pattern, value) is None:
            raise ValueError
        return os.path.expanduser(value) if self.path else value


@dataclass(frozen=True)
class Items:
    """A list or tuple. `lengths`: allowed numbers of items, () = any. `least`: of them. `rising`: none below the one before."""

    item: Number | Switch | Choice | Text
    lengths: tuple[int, ...] = ()
    least: int = 0
    rising: bool = False

    @property
    def allowed(self) -> str:
        count = " or ".join(map(str, self.lengths)) if self.lengths else f"{self.least} or more"
        order = ", from low to high" if self.rising else ""
        example = ", such as ('name',)" if isinstance(self.item, Text) else ""
        return f"a list of {count} values{order}, each {self.item.allowed}{example}"

    def read(self, value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or len(value) < self.least:
            raise ValueError
        if self.lengths and len(value) not in self.lengths:
            raise ValueError
        items = [self.item.read(entry) for entry in value]
        if self.rising and items != sorted(items):
            raise ValueError
        return items


def one_of(*options: Any) -> Choice:
    """One of the options."""
    return Choice(options)


COUNT = Number(0, whole=True)  # also of iterations, pixels, workers
POSITIVE_COUNT = Number(1, whole=True)
SEED = Number(0, 2**32 - 1, whole=True)  # what every generator takes
WEIGHT = Number(0)  # of a loss, a decay
POSITIVE = Number(0, above=True)
SHARE = Number(0, 1)  # also a probability, a threshold
PART = Number(0, 1, below=True)
SWITCH, TEXT, NAME, PATH = Switch(), Text(), Text(filled=True), Text(path=True)
NAMES = Items(NAME)
RANGE = Items(POSITIVE, (2,), rising=True)
SIDE = Number(32, whole=True)  # pixels; the deepest features have one cell for 32 of them

# "" or [LABEL/][DATA SET/]TASK/SCORE, as `engine.evaluation.evaluate` names them
SCORE_PATTERN = r"|(.+/)?(panoptic/(PQ|SQ|RQ)(_th|_st)?|semantic/(mIoU|pixel_accuracy|hIoU|sIoU|uIoU))"
