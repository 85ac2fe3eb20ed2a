"""A training run as its folder tells it. What is missing or damaged becomes a note, since a report shows the rest."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import ConfigError, first_few
from ..files import parse_json
from .log import Log, read_log

Series = tuple[np.ndarray, np.ndarray]  # steps, from 1 on, and values
_KNOWN = ("config.yaml", "log.txt", "metrics.json", "evaluation")


@dataclass
class Evaluation:
    """The last evaluation on a data set.

    Attributes:
        name: of the data set, perhaps below the name of the model, such as "teacher/miniworld_val".
        folder: with the pictures.
        step: number of steps after which it was made, None where it is unknown.
        results: {task: {score: value, "per_class": {name: {metric: value or None}}}}.
        images: scores of images, and their pictures; empty in runs of earlier versions.
    """

    name: str
    folder: Path
    step: int | None
    results: dict[str, dict[str, Any]]
    images: list[dict[str, Any]]

    def classes(self, task: str) -> dict[str, dict[str, float]]:
        """{class: {metric: value}} of a task; values that do not exist are NaN."""
        rows = self.results.get(task, {}).get("per_class")
        if not isinstance(rows, dict):
            return {}
        return {
            name: {metric: _number(value) for metric, value in row.items()}
            for name, row in rows.items()
            if isinstance(row, dict)
        }

    def confusion(self, task: str) -> np.ndarray | None:
        """(K, K) pixel counts, rows ground truth; None where the evaluation has none."""
        rows, count = self.results.get(task, {}).get("confusion"), len(self.classes(task))
        try:
            matrix = np.array(rows, dtype=np.float64)
        except (TypeError, ValueError):
            return None
        return matrix if matrix.shape == (count, count) and count else None


@dataclass
class Run:
    """A run.

    Attributes:
        folder: of the run.
        name: tells it apart from the others of the report.
        config: {key: value}; empty without a config.yaml.
        series: {name of a scalar: its values over steps}.
        log: content of log.txt.
        evaluations: the last one of each data set.
        notes: what is missing or damaged.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    log: Log = field(default_factory=Log)
    evaluations: list[Evaluation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps that metrics.json knows of."""
        return max((int(steps[-1]) for steps, _ in self.series.values()), default=0)

    @property
    def total(self) -> int | None:
        """Number of steps that the config asks for."""
        total = self.config.get("SOLVER.MAX_ITER")
        return total if isinstance(total, int) else None

    @property
    def finished(self) -> bool:
        """True if the final checkpoint is there."""
        return (self.folder / "model_final.pth").is_file()

    def checkpoints(self) -> list[tuple[str, int]]:
        """Names of the checkpoints, and their sizes in bytes."""
        return [(path.name, path.stat().st_size) for path in sorted(self.folder.glob("*.pth")) if path.is_file()]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads run folders. Raises `ConfigError` for one that is none."""
    wrong = [str(folder) for folder in folders if not any((folder / name).exists() for name in _KNOWN)]
    if wrong:
        raise ConfigError(f"{first_few(wrong)}: no folder of a training run; it would hold one of {', '.join(_KNOWN)}")
    unique = {Path(os.path.abspath(folder)): folder for folder in folders}
    above = os.path.commonpath([path.parent for path in unique])
    return [_read_run(folder, path.relative_to(above).as_posix()) for path, folder in unique.items()]


def _read_run(folder: Path, name: str) -> Run:
    run = Run(folder, name)
    run.config = _read_config(run)
    run.series = _read_metrics(run)
    log = folder / "log.txt"
    if log.is_file():
        run.log = read_log(log)
    else:
        run.notes.append("log.txt is missing: machine, versions, duration, data and warnings are unknown")
    run.evaluations = _read_evaluations(run)
    return run


def _read_config(run: Run) -> dict[str, Any]:
    for name in ("config.yaml", "evaluation/config.yaml"):  # the second one where only an evaluation took place
        path = run.folder / name
        if not path.is_file():
            continue
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            run.notes.append(f"{name} is damaged: {str(error).splitlines()[0]}")
            continue
        if isinstance(content, dict):
            return dict(leaves(content))
        run.notes.append(f"{name} is damaged: it holds no keys")
    if not (run.folder / "config.yaml").is_file():
        run.notes.append("config.yaml is missing: the settings are unknown")
    return {}


def leaves(content: dict[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Keys such as "SOLVER.MAX_ITER" and their values, of a config as nested dicts."""
    result = []
    for key, value in content.items():
        result += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return result


def _read_metrics(run: Run) -> dict[str, Series]:
    path = run.folder / "metrics.json"
    if not path.is_file():
        run.notes.append("metrics.json is missing: there are no curves")
        return {}
    found: dict[str, dict[int, float]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    damaged = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            step = int(row["iteration"]) + 1
        except (ValueError, KeyError, TypeError, OverflowError):
            damaged.append(number)
            continue
        for name, value in row.items():
            if name != "iteration" and not math.isnan(_number(value)):
                found.setdefault(name, {})[step] = value
    if damaged:
        run.notes.append(
            f"metrics.json: {len(damaged)} of {len(lines)} lines are damaged and left out: line {first_few(damaged)}"
        )
    ordered = {name: sorted(values.items()) for name, values in found.items()}
    return {name: (np.array([s for s, _ in v]), np.array([x for _, x in v], float)) for name, v in ordered.items()}


def _number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def _read_evaluations(run: Run) -> list[Evaluation]:
    root = run.folder / "evaluation"
    found = []
    for path in sorted(root.rglob("results.json")):
        content = _json(run, path)
        results = content.get("results") if isinstance(content, dict) else None
        if not isinstance(results, dict) or not all(isinstance(scores, dict) for scores in results.values()):
            if content is not None:
                run.notes.append(f"{path.relative_to(run.folder)} is damaged: it has no results")
            continue
        scored = path.with_name("per_image.json")
        images = _json(run, scored) if scored.is_file() else []
        rows = (
            [row for row in images if isinstance(row, dict) and isinstance(row.get("image"), str)]
            if isinstance(images, list)
            else []
        )
        step = content.get("iteration")
        name = path.parent.relative_to(root).as_posix()
        found.append(Evaluation(name, path.parent, step if isinstance(step, int) else None, results, rows))
    if not found:
        run.notes.append("there is no evaluation/*/results.json: the run was not evaluated")
    return found


def _json(run: Run, path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        run.notes.append(f"{path.relative_to(run.folder)} cannot be read: {str(error).splitlines()[0]}")
        return None
