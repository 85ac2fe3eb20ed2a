"""Every key has a rule, keeps it, and refuses wrong values with one error that names key, value and what is allowed.

A new key needs a field in a section (`dearli_d2/config/*_sections.py` or a method's `options.py`), and nothing here.
"""

from __future__ import annotations

import importlib
import math

import pytest
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_defaults

from dearli_d2.config import add_dearli_config, get_config
from dearli_d2.config.build import _set
from dearli_d2.config.schema import schema
from dearli_d2.config.sections import SECTIONS
from dearli_d2.config.values import Choice, Items, Number, Switch, Text
from dearli_d2.errors import ConfigError
from tests.conftest import REPO


def leaves(cfg: CfgNode, prefix: str = "") -> dict:
    result = {}
    for name, value in cfg.items():
        result |= leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {prefix + name: value}
    return result


def defaults() -> CfgNode:
    cfg = detectron2_defaults()
    add_dearli_config(cfg)
    return cfg


RULES = schema()
ALL, FOREIGN = leaves(defaults()), leaves(detectron2_defaults())


def test_every_key_of_the_project_has_a_rule():
    own = {key for key, value in ALL.items() if key not in FOREIGN or value != FOREIGN[key]}
    missing = sorted(own - set(RULES))
    assert not missing, f"declare these in a section: {', '.join(missing)}"


def test_a_key_that_two_sections_declare_is_refused(monkeypatch):
    module = importlib.import_module("dearli_d2.config.schema")
    monkeypatch.setattr(module, "sections", lambda: iter((*SECTIONS, SECTIONS[-1])))
    with pytest.raises(ConfigError, match=r"is declared a second time by dearli_d2\.config\."):
        module.schema.__wrapped__()


def test_every_rule_is_of_a_key():
    assert set(RULES) <= set(ALL)


@pytest.mark.parametrize("key", RULES)
def test_the_default_obeys_its_rule(key):
    value = ALL[key]
    read = RULES[key].read(value)
    assert (tuple(read) if isinstance(value, tuple) else read) == value


def wrong_values(rule) -> list:
    """What a rule must refuse, made from the rule itself."""
    always = [None, {}, {"a": 1}, object]
    if isinstance(rule, Switch):
        return [*always, 0, 1, "yes", "", [True]]
    if isinstance(rule, Choice):
        options = rule.options
        return [*always, [options[0]], "no such option", -7, *(1.0 * o for o in options if isinstance(o, int))]
    if isinstance(rule, Text):
        return [
            *always,
            1,
            True,
            ["a"],
            "a\0b",
            "caf\udce9",
            *(["", " "] if rule.filled else []),
            *(["%"] if rule.pattern else []),
        ]
    if isinstance(rule, Number):
        out = [] if rule.low == -math.inf else [rule.low - 1, rule.low] if rule.above else [rule.low - 1]
        out += [] if rule.high == math.inf else [rule.high + 1, rule.high] if rule.below else [rule.high + 1]
        middle = rule.low + 0.5 if rule.low > -math.inf else 0.5
        out += [middle] if rule.whole else []
        return [*always, True, "many", "", [1], (), math.nan, math.inf, -math.inf, 10**400, *out]
    assert isinstance(rule, Items)
    good = right_values(rule.item)[0]
    count = rule.lengths[-1] if rule.lengths else max(rule.least, 1)
    result = [*always, 1, True, "ab"]
    result += [[good] * (rule.lengths[-1] + 1), [good] * (rule.lengths[-1] - 1)] if rule.lengths else []
    result += [[]] if rule.least or (rule.lengths and 0 not in rule.lengths) else []
    result += [[wrong] + [good] * (count - 1) for wrong in wrong_values(rule.item)]
    if rule.rising:
        high = right_values(rule.item)[-1]
        result.append([high] * (count - 1) + [good])
    return result


def right_values(rule) -> list:
    if isinstance(rule, Number):
        low = max(rule.low, -5) + (rule.above and (1 if rule.whole else 1e-3))
        high = min(rule.high, low + 10) - (rule.below and (1 if rule.whole else 1e-3))
        return [low, high]
    if isinstance(rule, Switch):
        return [True, False]
    return list(rule.options) if isinstance(rule, Choice) else ["auto" if rule.pattern else "a"]


@pytest.mark.parametrize("key", RULES)
def test_wrong_values_name_the_key_the_value_and_what_is_allowed(key):
    cfg = defaults()
    for wrong in wrong_values(RULES[key]):
        with pytest.raises(ConfigError) as caught:
            _set(cfg, key, wrong, "command line: ")
        message = str(caught.value)
        if not isinstance(wrong, str):  # of which Python may read another value
            assert f"{key} is {wrong!r}; it must be {RULES[key].allowed}" in message
    assert leaves(cfg) == ALL  # nothing was taken over


@pytest.mark.parametrize("key", sorted(set(ALL) - set(RULES)))
def test_keys_of_detectron2_without_effect_are_refused_unless_they_keep_their_default(key):
    cfg = defaults()
    _set(cfg, key, ALL[key], "")
    with pytest.raises(ConfigError, match=f"{key} is 'x'; this key of detectron2 has no effect here"):
        _set(cfg, key, "x", "")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["INPUT.SCALE_RANGE", "(0.5,)"], "INPUT.SCALE_RANGE is .*a list of 2 values, from low to high"),
        (["SSL.CUTMIX_AREA", "()"], "SSL.CUTMIX_AREA is .*a list of 2 values"),
        (["MODEL.PIXEL_DECODER.HEADS", "0"], "HEADS is 0; it must be a whole number, at least 1"),
        (["SOLVER.BASE_LR", "nan"], "BASE_LR is nan; it must be a finite number, above 0"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "-1"], "CLIP_VALUE is -1"),
        (["INPUT.PAD_VALUE", "300"], "PAD_VALUE is 300; .*at most 255"),
        (["MODEL.PIXEL_DECODER.LAYERS", "-3"], "LAYERS is -3"),
        (["INPUT.RANDOM_FLIP", "vertical"], "RANDOM_FLIP is 'vertical'; it must be 'horizontal' or 'none'"),
        (["SOLVER.WARMUP_ITERS", "4000", "SOLVER.MAX_ITER", "300"], "WARMUP_ITERS 4000 must be below SOLVER.MAX_ITER 300"),
        (["TEST.BEST_METRIC", "panoptic/PG"], "BEST_METRIC is 'panoptic/PG'"),
        (["TEST.BEST_METRIC", "semantic/hIoU"], "BEST_METRIC is 'semantic/hIoU', which no evaluation of this config gives"),
        (["TEST.PANOPTIC_ON", "False"], "BEST_METRIC is 'panoptic/PQ', which no evaluation of this config gives"),
        (["INPUT.CROP_SIZE", "0"], "CROP_SIZE is 0"),
        (["MODEL.MASK_FORMER.NUM_QUERIES", "0"], "NUM_QUERIES is 0; a model without queries"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is ''"),
        (["SOLVER.STEPS", "(1,)"], "no effect here, leave it out; see SOLVER.SCHEDULE"),
        (["SOLVER", "3"], "SOLVER is '3'; it is a section"),
        (["SOLVER.BASE_LR.X", "3"], "there is no key SOLVER.BASE_LR.X"),
        (["SOLVER..BASE_LR", "3"], "there is no key SOLVER..BASE_LR; did you mean SOLVER.BASE_LR"),
        (["solver.base_lr", "3"], "there is no key solver.base_lr; did you mean SOLVER.BASE_LR"),
        (["SOLVER.MAX_ITER", "{[]: 1}"], "MAX_ITER is '{..: 1}'; it must be a whole number"),
        (["SEED", str(2**32)], "SEED is 4294967296; it must be a whole number, at least 0 and at most 4294967295"),
        (["SOLVER.MAX_ITER", "2", "--resume"], "--resume stands behind keys of the config; options come before"),
        (["SOLVER.MAX_ITER", "2", "--eval-only", "MODEL.WEIGHTS", "a.pth"], "--eval-only stands behind keys of the config"),
    ],
)  # fmt: skip
def test_the_command_line_is_checked_as_files_are(overrides, words):
    with pytest.raises(ConfigError, match=words):
        get_config(REPO / "configs/miniworld/m2f_lang.yaml", overrides)


def test_the_home_folder_is_found_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    overrides = ["OUTPUT_DIR", "~/run", "MODEL.WEIGHTS", "~/a.pth", "DATASETS.CUSTOM.ROOT", "~/data", "DATASETS.CUSTOM.CLASSES", "['0 thing a']"]  # fmt: skip
    cfg = get_config(REPO / "configs/custom/small.yaml", overrides)
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == ("/home/ann/run", "/home/ann/a.pth")
    assert cfg.DATASETS.CUSTOM.ROOT == "/home/ann/data"


def test_a_written_config_is_read_again(tmp_path):
    cfg = get_config(REPO / "configs/miniworld/dear.yaml", ["MODEL.DEVICE", "cpu"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert get_config(tmp_path / "config.yaml") == cfg


def test_numbers_may_be_written_with_or_without_a_point():
    cfg = get_config(REPO / "configs/miniworld/m2f_lang.yaml", ["SOLVER.MAX_ITER", "1e3", "SOLVER.POLY_POWER", "1", "OUTPUT_DIR", "7"])  # fmt: skip
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.POLY_POWER, cfg.OUTPUT_DIR) == (1000, 1.0, "7")
    assert [type(v) for v in (cfg.SOLVER.MAX_ITER, cfg.SOLVER.POLY_POWER)] == [int, float]
