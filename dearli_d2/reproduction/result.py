"""The result of a row: our figures beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..errors import ConfigError, DatasetError
from ..files import parse_json
from .papers import Experiment, Figure
from .stages import SEED_FOLDER

RESULT = "reproduction.json"


@dataclass(frozen=True)
class Comparison:
    """One figure.

    Attributes:
        metric: such as "panoptic/PQ".
        paper: None where the paper prints none.
        ours: None where the evaluation gives none, such as the IoU of a class that no image shows.
        spread: by how much two runs may differ.
    """

    metric: str
    paper: Figure
    ours: Figure
    spread: float

    @property
    def difference(self) -> Figure:
        """Ours less the paper's, rounded as printed figures are."""
        return None if self.paper is None or self.ours is None else round(self.ours - self.paper, 2)

    @property
    def within(self) -> bool | None:
        """True if the difference is within the spread; None where there is nothing to compare."""
        return None if self.difference is None else abs(self.difference) <= self.spread

    @property
    def verdict(self) -> str:
        """In words."""
        ours = "no figure" if self.ours is None else f"{self.ours:.2f}"
        if self.difference is None:
            return f"{self.metric} {ours}; the paper prints none" if self.paper is None else f"{self.metric} {ours}"
        size = f"{abs(self.difference):.2f} {'lower' if self.difference < 0 else 'higher'}"
        place = "within" if self.within else "NOT within"
        return f"{self.metric} {ours}, the paper {self.paper:g}: {size}, {place} the spread of {self.spread:g}"


def compare(experiment: Experiment, results: Mapping[str, Any], source: Path) -> list[Comparison]:
    """Our figures of an evaluation beside the paper's.

    Args:
        results: content of the evaluation's file.
        source: that file, for errors.

    Raises:
        ConfigError: the evaluation has no such metric.
    """
    return [
        Comparison(metric, figure, figure_of(results["results"], metric, source), experiment.spread)
        for metric, figure in experiment.figures.items()
    ]


def figure_of(results: Mapping[str, Any], metric: str, source: Path) -> Figure:
    """A figure by its name: `panoptic/PQ`, or of a class `semantic/IoU/road`.

    Raises:
        ConfigError: there is no such metric or class.
    """
    task, name, *of_class = metric.split("/", 2)
    scores = results.get(task, {})
    if of_class:
        scores = scores.get("per_class", {}).get(of_class[0], {})
    if name not in scores:
        known = [f"{t}/{n}" for t, found in results.items() for n, v in found.items() if not isinstance(v, dict | list)]
        known += [f"{t}/{n}/CLASS" for t, found in results.items() for n in next(iter(found["per_class"].values()), {})]
        raise ConfigError(f"{source} has no {metric}; it has {', '.join(known)}")
    value = scores[name]
    return None if value is None else float(value)


def read_results(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The file of the evaluation of a data set in a run's folder, and its content. Raises `DatasetError`."""
    path = folder / "evaluation" / name.replace("/", "_") / "results.json"
    if not path.is_file():
        raise DatasetError(f"the evaluation has not written {path}")
    return path, parse_json(path.read_text(encoding="utf-8"))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A figure in `reproduction.json`."""
    return {**asdict(comparison), "difference": comparison.difference, "within": comparison.within}


@dataclass(frozen=True)
class Finished:
    """A row that is finished here.

    Attributes:
        figures: ours, by metric; of several seeds their mean.
        errors: standard error of the mean, by metric; of a single seed there is none.
        seeds: how many runs the figures are of.
        official: of the published checkpoint.
        own_settings: the user has overridden keys that results depend on.
    """

    figures: dict[str, Figure]
    errors: dict[str, float]
    seeds: int
    official: bool
    own_settings: bool

    @property
    def mark(self) -> str:
        """Signs that a table adds to the figure."""
        signs = ("°" if self.official else "") + ("*" if self.own_settings else "")
        return signs + (f", {self.seeds} seeds" if self.seeds > 1 else "")

    def text(self, metric: str) -> str:
        """A figure for readers, without the mark."""
        error = f"±{self.errors[metric]:.2f}" if metric in self.errors else ""
        return number(self.figures.get(metric)) + error


def number(value: Figure) -> str:
    """A figure with the digits that it has, two at most."""
    return "–" if value is None else f"{value:g}" if value == round(value, 1) else f"{value:.2f}"


def finished(experiment: Experiment, out: Path) -> Finished | None:
    """The result of a row's own trainings, else of its published checkpoint; None where there is neither.

    Several seeds are one result. Runs with overridden settings are left out where there are others, and those of different
    settings are never mixed.
    """
    folder = out / experiment.name
    paths = (folder / RESULT, *sorted(folder.glob(f"{SEED_FOLDER}*/{RESULT}")))
    runs = [run for path in paths if (run := _Run.read(path))]
    runs = [run for run in runs if not run.own_settings] or [run for run in runs if run.overrides == runs[0].overrides]
    if not runs:
        official = _Run.read(folder / "official" / RESULT)
        return _mean([official]) if official else None
    return _mean(list({run.seed: run for run in runs}.values()))


@dataclass(frozen=True)
class _Run:
    """The part of `reproduction.json` that tables need."""

    figures: dict[str, Figure]
    seed: int
    overrides: list[str]
    official: bool
    own_settings: bool

    @classmethod
    def read(cls, path: Path) -> _Run | None:
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            figures = {entry["metric"]: entry["ours"] for entry in content["figures"]}
            own = not content["papers_settings"]
            return cls(figures, content["seed"], content["overrides"], content["official"], own)
        except (OSError, ValueError, KeyError, TypeError):  # absent, or of another version
            return None


def _mean(runs: Sequence[_Run]) -> Finished:
    figures: dict[str, Figure] = {}
    errors = {}
    for metric in runs[0].figures:
        values = [value for run in runs if (value := run.figures.get(metric)) is not None]
        figures[metric] = mean(values) if values else None
        if len(values) > 1:
            errors[metric] = stdev(values) / len(values) ** 0.5
    return Finished(figures, errors, len(runs), runs[0].official, runs[0].own_settings)
