"""Runs that differ in the seed alone are one group: its values have a mean and a spread."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import add_dearli_config
from ..config.schema import plain
from .read import Run, Series, leaves

# told apart by eyes of all kinds; the later ones repeat them
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#333333", "#7A4FA3")
_NO_DIFFERENCE = ("SEED", "OUTPUT_DIR")
_SCORE = re.compile(r"(^|/)(panoptic|semantic)/")


@dataclass(frozen=True)
class Group:
    """Runs with the same settings.

    Attributes:
        name: of the run, or what the names of the runs have in common.
        color: of its lines, as in HTML.
        runs: one for each seed.
    """

    name: str
    color: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Spread:
    """A value of a group: the mean over its runs, and the standard deviation, NaN for a single run."""

    mean: float
    deviation: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Mean and spread of the values that exist."""
        real = [v for v in values if not math.isnan(v)]
        if not real:
            return cls(math.nan)
        return cls(float(np.mean(real)), float(np.std(real, ddof=1)) if len(real) > 1 else math.nan)

    def text(self, digits: int = 1) -> str:
        """Such as "51.3 ± 0.4"; "–" where there is no value."""
        if math.isnan(self.mean):
            return "–"
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def default_settings() -> dict[str, Any]:
    """{key: default} of this version."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_dearli_config(cfg)
    return {key: plain(value) for key, value in leaves(cfg)}


def group_runs(runs: Sequence[Run], defaults: dict[str, Any]) -> list[Group]:
    """Groups runs, in the order of their first ones. A key that a run lacks has its default. Runs without a config stay alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {**defaults, **run.config}
        same = sorted((key, value) for key, value in settings.items() if key not in _NO_DIFFERENCE)
        groups.setdefault(repr(same) if run.config else run.name, []).append(run)
    return [
        Group(_common_name(members), COLORS[i % len(COLORS)], tuple(members))
        for i, members in enumerate(groups.values())
    ]


def _common_name(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name
    common = re.sub(r"[-_/. ]*(seed)?[-_/. =]*$", "", os.path.commonprefix([run.name for run in runs]))
    return f"{common or runs[0].name} ({len(runs)} seeds)"


def mean_series(group: Group, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps, mean and standard deviation (0 where one run has a value) of a scalar; None where no run has it."""
    found: list[Series] = [run.series[name] for run in group.runs if name in run.series]
    if not found:
        return None
    values: dict[int, list[float]] = {}
    for steps, numbers in found:
        for step, number in zip(steps.tolist(), numbers.tolist(), strict=True):
            values.setdefault(step, []).append(number)
    ordered = sorted(values)
    means = np.array([np.mean(values[step]) for step in ordered])
    deviations = np.array([np.std(values[step], ddof=1) if len(values[step]) > 1 else 0.0 for step in ordered])
    return np.array(ordered), means, deviations


def score_names(runs: Sequence[Run]) -> list[str]:
    """Names of the evaluations' scores, in the order in which they appear."""
    return list(dict.fromkeys(name for run in runs for name in _scores(run)))


def is_score(name: str) -> bool:
    """True for a scalar that an evaluation made."""
    return _SCORE.search(name) is not None


def _scores(run: Run) -> dict[str, float]:
    """Final scores: of the last evaluation, where training has noted none those of the files."""
    noted = {name: float(values[-1]) for name, (_, values) in run.series.items() if is_score(name)}
    if noted:
        return noted
    several = len(run.evaluations) > 1
    return {
        f"{evaluation.name}/{task}/{name}" if several else f"{task}/{name}": float(value)
        for evaluation in run.evaluations
        for task, scores in evaluation.results.items()
        for name, value in scores.items()
        if isinstance(value, int | float)
    }


def final(run: Run, name: str) -> float:
    """The last value of a score, NaN where there is none."""
    return _scores(run).get(name, math.nan)


def best(run: Run, name: str) -> tuple[float, int | None]:
    """The highest value of a score and its step."""
    if name not in run.series:
        return final(run, name), None
    steps, values = run.series[name]
    at = int(values.argmax())
    return float(values[at]), int(steps[at])


def main_score(runs: Sequence[Run]) -> str | None:
    """The score that says which checkpoint is the best (TEST.BEST_METRIC), else the first one."""
    names = score_names(runs)
    wanted = [run.config.get("TEST.BEST_METRIC") for run in runs]
    chosen = (name for metric in wanted if metric for name in names if name.endswith(metric))
    return next(chosen, names[0] if names else None)


def settings_table(groups: Sequence[Group], defaults: dict[str, Any]) -> list[tuple[str, str, list[str], bool]]:
    """Settings that differ from their default or between groups.

    Returns:
        Key, default, value in each group, and whether groups differ; those that differ come first.
    """
    rows = []
    with_config = [[run for run in group.runs if run.config] for group in groups]
    keys = dict.fromkeys(key for runs in with_config for run in runs for key in run.config)
    for key in keys:
        if key == "OUTPUT_DIR":
            continue
        default = defaults.get(key)
        values = [[run.config.get(key, default) for run in runs] for runs in with_config]
        shown = [", ".join(dict.fromkeys(_shown(v) for v in group)) if group else "unknown" for group in values]
        differ = len({text for text, group in zip(shown, values, strict=True) if group}) > 1
        if differ or key not in defaults or any(v != default for group in values for v in group):
            rows.append((key, _shown(default) if key in defaults else "no key of this version", shown, differ))
    return sorted(rows, key=lambda row: (not row[3], row[0]))


def _shown(value: Any) -> str:
    return '""' if value == "" else str(value)
