"""The values that each configuration key accepts: one table, key to rule.

A new key of `build.py` needs one line in `SCHEMA`. `tests/test_config_schema.py` names the keys that have none, checks that
every default keeps its own rule, and tries wrong values on every key. Conditions on several keys are in `rules.py`.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Sequence
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

    options: tuple

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
    """A string in UTF-8. `filled`: not empty. `pattern`: a regular expression it must match, `like` in words. `path`: "~" at the
    start is the home folder, which a shell reads so at the start of a word only."""

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

    def read(self, value: Any) -> list:
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
_SCORE = r"|(.+/)?(panoptic/(PQ|SQ|RQ)(_th|_st)?|semantic/(mIoU|pixel_accuracy|hIoU|sIoU|uIoU))"

_BACKBONE = {
    "NAME": NAME,
    "ARCH": NAME,
    "WEIGHTS": PATH,
    "TAG": TEXT,
    "FREEZE": SWITCH,
    "FREEZE_NORM": SWITCH,
    "FREEZE_AT": COUNT,
    "TRAINABLE_BLOCKS": Number(-1, whole=True),
    "PYRAMID_DIM": POSITIVE_COUNT,
    "LAYERS": Items(COUNT, (0, 4), rising=True),
    "LEVEL_DIMS": Items(POSITIVE_COUNT, (4,)),
    "CHECKPOINT_BLOCKS": SWITCH,
}

SCHEMA: dict[str, Rule] = {
    "VERSION": one_of(2),
    "SEED": SEED,
    "OUTPUT_DIR": Text(filled=True, path=True),
    "MODEL.META_ARCHITECTURE": NAME,
    "MODEL.DEVICE": Text(pattern=r"auto|cpu|cuda(:\d+)?", like="'auto', 'cpu', 'cuda' or 'cuda:NUMBER'"),
    "MODEL.WEIGHTS": PATH,
    "MODEL.NUM_CLASSES": COUNT,
    "MODEL.CLASSIFIER": one_of("linear", "text", "none"),
    "MODEL.DEFORM_ATTN_IMPL": one_of("auto", "grid_sample", "gather", "triton"),
    **{f"{section}.PIXEL_MEAN": Items(Number(0, 255), (0, 3)) for section in ("MODEL", "MODEL.SENIOR")},
    **{f"{section}.PIXEL_STD": Items(POSITIVE, (0, 3)) for section in ("MODEL", "MODEL.SENIOR")},
    **{f"MODEL.BACKBONE.{key}": rule for key, rule in _BACKBONE.items()},
    # of MODEL.BACKBONE.NAME build_resnet_backbone alone
    "MODEL.RESNETS.DEPTH": one_of(18, 34, 50, 101, 152),
    "MODEL.RESNETS.OUT_FEATURES": Items(NAME, least=1),
    "MODEL.RESNETS.NUM_GROUPS": POSITIVE_COUNT,
    "MODEL.RESNETS.NORM": TEXT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": POSITIVE_COUNT,
    "MODEL.RESNETS.STRIDE_IN_1X1": SWITCH,
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": POSITIVE_COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": POSITIVE_COUNT,
    "MODEL.PIXEL_DECODER.DIM": POSITIVE_COUNT,
    "MODEL.PIXEL_DECODER.FEEDFORWARD_DIM": POSITIVE_COUNT,
    "MODEL.PIXEL_DECODER.HEADS": POSITIVE_COUNT,
    "MODEL.PIXEL_DECODER.LAYERS": POSITIVE_COUNT,
    "MODEL.PIXEL_DECODER.POINTS": POSITIVE_COUNT,
    "MODEL.MASK_FORMER.HIDDEN_DIM": POSITIVE_COUNT,
    "MODEL.MASK_FORMER.MASK_DIM": POSITIVE_COUNT,
    "MODEL.MASK_FORMER.NUM_QUERIES": COUNT,
    "MODEL.MASK_FORMER.HEADS": POSITIVE_COUNT,
    "MODEL.MASK_FORMER.FEEDFORWARD_DIM": POSITIVE_COUNT,
    "MODEL.MASK_FORMER.LAYERS": POSITIVE_COUNT,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": WEIGHT,
    "MODEL.MASK_FORMER.MASK_WEIGHT": WEIGHT,
    "MODEL.MASK_FORMER.DICE_WEIGHT": WEIGHT,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": WEIGHT,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": POSITIVE_COUNT,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": Number(1),
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": SHARE,
    "MODEL.TEXT.CLASS_NAMES": PATH,
    "MODEL.TEXT.TEMPLATES": Text(filled=True, path=True),
    "MODEL.TEXT.ENCODER": TEXT,
    "MODEL.TEXT.WEIGHTS": PATH,
    "MODEL.TEXT.TAG": TEXT,
    "MODEL.ENSEMBLE.ALPHA": SHARE,
    "MODEL.ENSEMBLE.AT_INFERENCE": SWITCH,
    "MODEL.ENSEMBLE.IN_PSEUDO_LABELS": SWITCH,
    "MODEL.ENSEMBLE.EMPTY_MASKS": one_of("uniform", "zero_vector"),
    "MODEL.HVL.TEXTUAL_QUERIES": SWITCH,
    "MODEL.HVL.REFINEMENT": SWITCH,
    "MODEL.HVL.JOINT_DECODER": SWITCH,
    "MODEL.HVL.PROMPT_TOKENS": POSITIVE_COUNT,
    "MODEL.HVL.PER_CLASS_PROMPTS": SWITCH,
    "MODEL.HVL.PRESENCE": one_of("image", "dense", "all"),
    "MODEL.HVL.PRESENCE_THRESHOLD": SHARE,
    "MODEL.HVL.INFERENCE": one_of("marginal", "argmax"),
    "MODEL.HVL.DIVERSITY_WEIGHT": WEIGHT,
    "MODEL.HVL.PROMPT_WEIGHT": WEIGHT,
    "MODEL.HVL.ANCHOR_BETA": WEIGHT,
    "MODEL.HVL.VL_WEIGHT": WEIGHT,
    "MODEL.HVL.ALIGN_WEIGHT": WEIGHT,
    "MODEL.HVL.MASK_WEIGHT": WEIGHT,
    "MODEL.HVL.TEMPERATURE": POSITIVE,
    "MODEL.HVL.ENTROPY_WEIGHT": WEIGHT,
    "MODEL.SPLIT.CANDIDATE_QUERIES": COUNT,
    "MODEL.SPLIT.RANDOM_QUERIES": COUNT,
    "MODEL.SPLIT.RANDOM_SEED": SEED,
    "MODEL.SPLIT.COSINE_WEIGHT": WEIGHT,
    "MODEL.SPLIT.MFE_WEIGHT": WEIGHT,
    "MODEL.SPLIT.MFE_TEMPERATURE": POSITIVE,
    "MODEL.SPLIT.MFE_NORM": one_of("GN", "BN", "NONE"),
    "MODEL.SPLIT.CANDIDATE_EMBEDDING": one_of("cls", "dense", "dense_mlp"),
    "MODEL.SPLIT.SEEN_PENALTY": WEIGHT,
    "MODEL.SPLIT.REGIONS.CACHE": PATH,
    "MODEL.SPLIT.REGIONS.IMAGE_SIZE": SIDE,
    "MODEL.SPLIT.REGIONS.WINDOWS": Items(POSITIVE_COUNT, least=1),
    "MODEL.SPLIT.REGIONS.ITERATIONS": POSITIVE_COUNT,
    "MODEL.SPLIT.REGIONS.FUSION": Number(-1, 1),
    "MODEL.SPLIT.REGIONS.MIN_AREA": PART,
    "MODEL.SPLIT.REGIONS.CROP_SIZE": SIDE,
    "MODEL.SEMIDAVIL.FEATURE": NAME,
    "MODEL.SEMIDAVIL.GUIDANCE": SWITCH,
    "MODEL.SEMIDAVIL.GUIDANCE_DIM": POSITIVE_COUNT,
    "MODEL.SEMIDAVIL.CAPTIONS": one_of("file", "class_names"),
    "MODEL.SEMIDAVIL.HEAD": one_of("upsample", "dpt", "mask2former"),
    "MODEL.SEMIDAVIL.HEAD_DIM": POSITIVE_COUNT,
    "MODEL.SEMIDAVIL.LOSS": one_of("dyce", "ce", "weighted_ce", "focal", "dual_ce", "dual_focal"),
    "MODEL.SEMIDAVIL.LOSS_WEIGHT": POSITIVE,
    "MODEL.SEMIDAVIL.HARD_FRACTION": Number(0, 1, above=True),
    "MODEL.SEMIDAVIL.OMEGA": SHARE,
    "MODEL.DPT.DIM": POSITIVE_COUNT,
    "MODEL.DPT.NORM": one_of("NONE", "BN", "GN"),
    "MODEL.DPT.LOSS_WEIGHT": POSITIVE,
    "MODEL.DPT.FEATURE_DROPOUT": SWITCH,
    **{f"MODEL.SENIOR.BACKBONE.{key}": rule for key, rule in _BACKBONE.items()},
    "MODEL.SENIOR.DIM": POSITIVE_COUNT,
    "MODEL.SEGKC.CONSULT": SWITCH,
    "MODEL.SEGKC.CONSULT_GRAD": SWITCH,
    "MODEL.SEGKC.KD_WEIGHT": WEIGHT,
    "MODEL.SEGKC.KD_TEMPERATURE": POSITIVE,
    "MODEL.SEGKC.READ": one_of("junior", "senior"),
    "DATASETS.TRAIN": NAMES,
    "DATASETS.TEST": NAMES,
    "DATASETS.UNSEEN_CLASSES": NAMES,
    "DATASETS.UNLABELED": NAMES,
    "DATASETS.SOURCE": NAMES,
    "DATASETS.PARTITION": Text(like="a text; in a YAML file in quotes, such as '1_8', which would be the number 18"),
    "DATASETS.MASKS": PATH,
    "DATASETS.ALLOW_OVERLAP": SWITCH,
    "DATASETS.CUSTOM.ROOT": PATH,
    "DATASETS.CUSTOM.IMAGES": NAME,
    "DATASETS.CUSTOM.MASKS": NAME,
    "DATASETS.CUSTOM.PANOPTIC_JSON": TEXT,
    "DATASETS.CUSTOM.UNLABELED": TEXT,
    "DATASETS.CUSTOM.CLASSES": NAMES,
    "DATASETS.CUSTOM.IGNORE_VALUE": Number(-1, 2**16 - 1, whole=True),
    "DATASETS.CUSTOM.VAL_FRACTION": PART,
    "DATASETS.CUSTOM.VAL": PATH,
    "DATASETS.CUSTOM.ALLOW_ABSENT_CLASSES": SWITCH,
    "DATASETS.CUSTOM.MIN_LABELED": SHARE,
    "DATASETS.CUSTOM.MIN_THING_AREA": COUNT,
    "SSL.IMS_PER_BATCH": POSITIVE_COUNT,
    "SSL.SOURCE_IMS_PER_BATCH": POSITIVE_COUNT,
    "SSL.LOSS_WEIGHT": WEIGHT,
    "SSL.EMA_DECAY": PART,
    "SSL.EMA_RAMP": SWITCH,
    "SSL.START": COUNT,
    "SSL.BURN_IN": COUNT,
    "SSL.TEACHER_WEIGHTS": PATH,
    "SSL.OBJECT_THRESHOLD": SHARE,
    "SSL.OVERLAP_THRESHOLD": SHARE,
    "SSL.MIN_AREA": COUNT,
    "SSL.CONFIDENCE": SHARE,
    "SSL.JITTER": Items(WEIGHT, (4,)),
    "SSL.JITTER_PROBABILITY": SHARE,
    "SSL.GREYSCALE": SHARE,
    "SSL.BLUR": SHARE,
    "SSL.BLUR_SIGMA": RANGE,
    "SSL.STRONG_VIEWS": one_of(1, 2),
    "SSL.MIX": one_of("cutmix", "classmix"),
    "SSL.CUTMIX": SHARE,
    "SSL.CUTMIX_AREA": Items(Number(0, 1, above=True), (2,), rising=True),
    "SSL.CUTMIX_ASPECT": RANGE,
    "SSL.PICTURE_PERIOD": COUNT,
    "SSL.MONITOR_PERIOD": COUNT,
    "SSL.MONITOR_IMAGES": POSITIVE_COUNT,
    "INPUT.FORMAT": one_of("RGB"),
    "INPUT.CROP_SIZE": SIDE,
    "INPUT.SCALE_RANGE": RANGE,
    "INPUT.SOURCE_SCALE_RANGE": Items(POSITIVE, (0, 2), rising=True),
    "INPUT.MAX_SIZE_TRAIN": POSITIVE_COUNT,
    "INPUT.MIN_SIZE_TEST": COUNT,
    "INPUT.MAX_SIZE_TEST": POSITIVE_COUNT,
    "INPUT.RANDOM_FLIP": one_of("horizontal", "none"),
    "INPUT.COLOR_AUG_SSD": SWITCH,
    "INPUT.JITTER": Items(WEIGHT, (0, 4)),
    "INPUT.TARGETS": one_of("panoptic", "semantic"),
    "INPUT.PAD_VALUE": Number(0, 255, whole=True),
    "DATALOADER.NUM_WORKERS": COUNT,
    "DATALOADER.RARE_CLASS_SAMPLING": SWITCH,
    "DATALOADER.RARE_CLASS_TEMPERATURE": POSITIVE,
    "DATALOADER.RARE_CLASS_AREA": PART,
    "SOLVER.IMS_PER_BATCH": POSITIVE_COUNT,
    "SOLVER.MAX_ITER": POSITIVE_COUNT,
    "SOLVER.EPOCHS": Number(0),
    "SOLVER.EPOCH_OF": one_of("unlabeled", "labeled", "all"),
    "SOLVER.EPOCH_PROCESSES": COUNT,
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.WEIGHT_DECAY": WEIGHT,
    "SOLVER.WEIGHT_DECAY_NORM": WEIGHT,
    "SOLVER.WEIGHT_DECAY_EMBED": WEIGHT,
    "SOLVER.BACKBONE_MULTIPLIER": WEIGHT,
    "SOLVER.SCHEDULE": one_of("poly", "exponential"),
    "SOLVER.POLY_POWER": WEIGHT,
    "SOLVER.DECAY": Number(0, 1, above=True),
    "SOLVER.WARMUP_ITERS": COUNT,
    "SOLVER.CLIP_GRADIENTS.ENABLED": SWITCH,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.AMP.ENABLED": SWITCH,
    "SOLVER.AMP.DTYPE": one_of("bfloat16", "float16"),
    "SOLVER.ACCUMULATION_STEPS": POSITIVE_COUNT,
    "SOLVER.MAX_BAD_STEPS": COUNT,
    "SOLVER.CHECKPOINT_PERIOD": POSITIVE_COUNT,
    "SOLVER.KEEP_CHECKPOINTS": POSITIVE_COUNT,
    "TEST.EVAL_PERIOD": COUNT,
    "TEST.DETECTIONS_PER_IMAGE": POSITIVE_COUNT,
    "TEST.PANOPTIC_ON": SWITCH,
    "TEST.SEMANTIC_ON": SWITCH,
    "TEST.INSTANCE_ON": SWITCH,
    "TEST.OBJECT_THRESHOLD": SHARE,
    "TEST.OVERLAP_THRESHOLD": SHARE,
    "TEST.AMP": SWITCH,
    "TEST.WEIGHTS": one_of("student", "teacher", "both"),
    "TEST.WINDOW": COUNT,
    "TEST.WINDOW_STRIDE": COUNT,
    "TEST.BEST_METRIC": Text(pattern=_SCORE, like="'' or a score such as 'panoptic/PQ' or 'semantic/mIoU'"),
    "TEST.PICTURES": COUNT,
}

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
    rule = SCHEMA.get(key)
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
    """Whether a key's value is a text, which is taken as it was written."""
    rule = SCHEMA.get(key)
    return isinstance(rule, Text) or (isinstance(rule, Choice) and isinstance(default, str))


def plain(value: Any) -> Any:
    """The value with lists in place of tuples, at any depth."""
    return [plain(entry) for entry in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
