"""Evaluation results as tables for people and JSON for programs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files import write_json


def scalars(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """{"panoptic": {"PQ": 1.0, "per_class": ...}} to {"panoptic/PQ": 1.0}."""
    return {
        f"{task}/{name}": value
        for task, scores in results.items()
        for name, value in scores.items()
        if name != "per_class"
    }


def tables(results: dict[str, dict[str, Any]]) -> str:
    """A table of the means and one of the classes."""
    means = tabulate([[name, f"{value:.2f}"] for name, value in scalars(results).items()], ["metric", "%"])
    columns = [
        (task, metric) for task, scores in results.items() for metric in next(iter(scores["per_class"].values()))
    ]
    names = next(iter(results.values()))["per_class"]
    rows = [[name] + [_cell(results[task]["per_class"][name][metric]) for task, metric in columns] for name in names]
    return f"{means}\n\n{tabulate(rows, ['class'] + [metric for _, metric in columns])}"


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def write_results(results: dict[str, dict[str, Any]], path: Path, **context: Any) -> None:
    """Writes the results and their context as JSON; values that do not exist are null."""
    write_json(path, _without_nan({**context, "results": results}), indent=2)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
