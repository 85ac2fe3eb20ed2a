"""Evaluation results as tables for people and JSON for programs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files import write_atomically

_IMAGES = "per_image"


def scalars(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """{"panoptic": {"PQ": 1.0, "per_class": ...}} to {"panoptic/PQ": 1.0}."""
    return {
        f"{task}/{name}": value
        for task, scores in results.items()
        for name, value in scores.items()
        if isinstance(value, int | float)  # the others are tables
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
    """Writes the results and their context as JSON; values that do not exist are null, a row of a matrix is a line.

    The scores of images have a file of their own, see `write_image_scores`.
    """
    shown = {task: {k: v for k, v in scores.items() if k != _IMAGES} for task, scores in results.items()}
    text = json.dumps(_without_nan({**context, "results": shown}), indent=2)
    text = re.sub(r"\[[\d\s,]+\]", lambda row: " ".join(row[0].split()), text)
    write_atomically(path, lambda temporary: temporary.write_text(text))


def image_scores(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{file: {"panoptic/PQ": 50.0, "semantic/mIoU": 60.0}} of each image; NaN where nothing is annotated nor found."""
    images: dict[str, dict[str, float]] = {}
    for task, scores in results.items():
        metric = f"{task}/{next(iter(scores))}"
        for file, score in scores.get(_IMAGES, ()):
            images.setdefault(file, {})[metric] = score
    return images


def worst_and_best(images: dict[str, dict[str, float]], count: int) -> list[str]:
    """The files of `count` images by their first score: the worse half from the bottom, the better half from the top."""
    scored = [(next(iter(scores.values())), file) for file, scores in images.items()]
    ranked = [file for _, file in sorted(entry for entry in scored if not math.isnan(entry[0]))]
    if len(ranked) <= count:
        return ranked
    return ranked[: count - count // 2] + ranked[len(ranked) - count // 2 :]


def write_image_scores(images: dict[str, dict[str, float]], pictures: dict[str, str], path: Path) -> None:
    """Writes a list with the scores of each image, and with its picture where it has one.

    Args:
        images: from `image_scores`.
        pictures: {file of an image: its picture, relative to the folder of `path`}.
        path: file to write.
    """
    rows = [
        {"image": file, **scores} | ({"picture": pictures[file]} if file in pictures else {})
        for file, scores in images.items()
    ]
    text = ",\n".join(json.dumps(_without_nan(row)) for row in rows)
    write_atomically(path, lambda temporary: temporary.write_text(f"[{text}]\n"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
