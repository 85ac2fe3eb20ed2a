"""The rule of every configuration key, and how a value is read by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from ..errors import ConfigError
from ..methods import methods
from .options import Key, Options
from .sections import SECTIONS
from .values import COUNT, NAME, NAMES, PATH, POSITIVE_COUNT, SWITCH, TEXT, Choice, Items, Rule, Text, one_of

# keys of detectron2 that keep its defaults
_DETECTRON2: dict[str, Rule] = {
    "VERSION": one_of(2),
    "OUTPUT_DIR": Text(filled=True, path=True),
    "MODEL.WEIGHTS": PATH,
    "MODEL.RESNETS.DEPTH": one_of(18, 34, 50, 101, 152),
    "MODEL.RESNETS.OUT_FEATURES": Items(NAME, least=1),
    "MODEL.RESNETS.NUM_GROUPS": POSITIVE_COUNT,
    "MODEL.RESNETS.NORM": TEXT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": POSITIVE_COUNT,
    "MODEL.RESNETS.STRIDE_IN_1X1": SWITCH,
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": POSITIVE_COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": POSITIVE_COUNT,
    "DATASETS.TRAIN": NAMES,
    "DATASETS.TEST": NAMES,
    "INPUT.RANDOM_FLIP": one_of("horizontal", "none"),
    "SOLVER.IMS_PER_BATCH": POSITIVE_COUNT,
    "SOLVER.MAX_ITER": POSITIVE_COUNT,
    "SOLVER.AMP.ENABLED": SWITCH,
    "SOLVER.CHECKPOINT_PERIOD": POSITIVE_COUNT,
    "TEST.EVAL_PERIOD": COUNT,
    "TEST.DETECTIONS_PER_IMAGE": POSITIVE_COUNT,
    "MODEL.BACKBONE.FREEZE_AT": COUNT,
}


def sections() -> Iterator[type[Options]]:
    """Yields the shared sections, then those of each method."""
    yield from SECTIONS
    for method in methods().values():
        yield from method.options


def entries() -> Iterator[Key]:
    """Yields every key of this project as it is declared."""
    for section in sections():
        yield from section.entries()


@cache
def schema() -> dict[str, Rule]:
    """The rule of every key, by its full name.

    Raises:
        ConfigError: two sections declare the same key, of which one would be lost.
    """
    rules = dict(_DETECTRON2)
    for section in sections():
        for key in section.entries():
            if key.name in rules:
                raise ConfigError(f"{key.name} is declared a second time by {section.__module__}.{section.__name__}")
            rules[key.name] = key.rule
    return rules


# keys of detectron2 that other projects use, and what has their part here
_INSTEAD = {
    "SOLVER.STEPS": "SOLVER.SCHEDULE",
    "SOLVER.GAMMA": "SOLVER.DECAY",
    "SOLVER.LR_SCHEDULER_NAME": "SOLVER.SCHEDULE",
    "SOLVER.BIAS_LR_FACTOR": "SOLVER.BACKBONE_MULTIPLIER",
    "SOLVER.WEIGHT_DECAY_BIAS": "SOLVER.WEIGHT_DECAY",
    "INPUT.MIN_SIZE_TRAIN": "INPUT.SCALE_RANGE and INPUT.CROP_SIZE",
    "INPUT.CROP.SIZE": "INPUT.CROP_SIZE",
    "DATALOADER.SAMPLER_TRAIN": "DATALOADER.RARE_CLASS_SAMPLING",
}


def read_value(key: str, value: Any, default: Any) -> Any:
    """A value for a key, in the key's own type.

    Args:
        default: of the key.

    Raises:
        ValueError: with the key, the value and what is allowed.
    """
    rule = schema().get(key)
    if rule is None:  # of detectron2; all of our own have one
        if plain(value) == plain(default):
            return default
        instead = f"; see {_INSTEAD[key]}" if key in _INSTEAD else ""
        raise ValueError(f"{key} is {value!r}; this key of detectron2 has no effect here, leave it out{instead}")
    try:
        read = rule.read(value)
    except ValueError:
        raise ValueError(f"{key} is {value!r}; it must be {rule.allowed}") from None
    return type(default)(read) if isinstance(default, list | tuple) else read


def reads_text(key: str, default: Any) -> bool:
    """True if a key's value is a text, which is taken as it was written."""
    rule = schema().get(key)
    return isinstance(rule, Text) or (isinstance(rule, Choice) and isinstance(default, str))


def plain(value: Any) -> Any:
    """The value with lists in place of tuples, at any depth."""
    return [plain(entry) for entry in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
