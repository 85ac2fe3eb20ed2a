"""What stands on the page, in the order in which it stands there."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from .. import __version__
from ..errors import first_few
from ..files import write_atomically
from .album import Album
from .curves import curves, heat_map
from .groups import (
    Group,
    Spread,
    best,
    default_settings,
    final,
    group_runs,
    is_score,
    main_score,
    score_names,
    settings_table,
)
from .read import Run, read_runs

_ASSETS = Path(__file__).parents[1] / "assets"
_LAYER = re.compile(r"_\d+$")  # losses of the decoder's earlier layers
_MOST_PANELS = 30
_MOST_CLASSES = 40  # of a heat map
_CONFUSIONS = 10
_SMALL = 0.001  # share of all pixels; rarer classes are not named among the confusions


def write_report(folders: Sequence[Path], out: Path) -> list[str]:
    """Writes one HTML file about runs.

    Args:
        folders: of finished or of unfinished runs.
        out: file to write.

    Returns:
        What is missing or damaged, a line each; the page has it too.

    Raises:
        ConfigError: a folder holds no run.
    """
    runs = read_runs(folders)
    defaults = default_settings()
    groups = group_runs(runs, defaults)
    album = Album(len(runs))
    script = (_ASSETS / "report.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string((_ASSETS / "report.html.j2").read_text(encoding="utf-8")).render(
        version=__version__,
        title=first_few([group.name for group in groups], 4),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=[_head(run, group) for group in groups for run in group.runs],
        groups=groups,
        seeds=any(len(group.runs) > 1 for group in groups),
        scores=_scores(groups),
        main=main_score(runs),
        data=_data(runs),
        curves=_curves(groups),
        classes=_class_tables(groups),
        confusions=_confusions(groups),
        examples=[
            (run, evaluation, album.worst_and_best(evaluation)) for run in runs for evaluation in run.evaluations
        ],
        batches=[(run, album.batches(run)) for run in runs],
        settings=settings_table(groups, defaults),
        warnings=[(run, run.log.warnings.most_common()) for run in runs],
        notes=[(run, run.notes) for run in runs],
        data_pictures=[
            album.embed(run.folder / "data.png", run.name) for run in runs if (run.folder / "data.png").is_file()
        ],
    )
    write_atomically(out, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return [f"{run.name}: {note}" for run in runs for note in run.notes]


def _head(run: Run, group: Group) -> dict[str, Any]:
    """Facts about a run: what was trained, how far, on which machine, by which command."""
    config, log = run.config, run.log
    total = f" of {run.total}" if run.total else ""
    state = "finished" if run.finished else f"not finished, last line of the log: {log.last or 'unknown'}"
    facts = [
        ("method", _method(config)),
        ("config", _config_file(log.commands)),
        ("steps", f"{run.steps}{total}, {state}" if run.series else state),
        ("machine", dict(log.environment).get("devices", "")),
        ("duration", _duration(log.seconds, log.sessions)),
        ("checkpoints", ", ".join(f"{name} ({size / 1e6:.0f} MB)" for name, size in run.checkpoints()) or "none"),
    ]
    return {
        "run": run,
        "group": group,
        "facts": [(name, value) for name, value in facts if value],
        "environment": log.environment,
        "commands": list(dict.fromkeys(log.commands)),
    }


def _method(config: dict[str, Any]) -> str:
    parts = [config.get("MODEL.META_ARCHITECTURE", ""), config.get("MODEL.BACKBONE.NAME", "")]
    parts.append(config.get("MODEL.BACKBONE.ARCH", ""))
    if config:
        parts.append("labelled and unlabelled images" if config.get("DATASETS.UNLABELED") else "labelled images alone")
    return ", ".join(str(part) for part in parts if part)


def _config_file(commands: Sequence[str]) -> str:
    found = (re.search(r"--config-file[ =](\S+)", command) for command in reversed(commands))
    return next((match[1] for match in found if match), "")


def _duration(seconds: float, sessions: int) -> str:
    if not sessions:
        return ""
    parts = f", in {sessions} parts" if sessions > 1 else ""
    return f"{timedelta(seconds=round(seconds))}{parts}"


def _scores(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row for each score: final and best value of each group, and the difference of the final one to the first group's."""
    rows = []
    for name in score_names([run for group in groups for run in group.runs]):
        finals = [Spread.of([final(run, name) for run in group.runs]) for group in groups]
        bests = [[best(run, name) for run in group.runs] for group in groups]
        cells = []
        for value, found in zip(finals, bests, strict=True):
            at = ", ".join(str(step) for step in sorted({step for _, step in found if step is not None}))
            cells.append(
                {
                    "final": value.text(2),
                    "difference": _difference(value.mean - finals[0].mean) if value is not finals[0] else "",
                    "best": Spread.of([v for v, _ in found]).text(2),
                    "step": at,
                }
            )
        rows.append({"name": name, "cells": cells})
    return rows


def _difference(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}"


def _data(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each data set of the runs: name, role, number of images, what the checks said."""
    roles: dict[str, list[str]] = {}
    for run in runs:
        for key in ("TRAIN", "UNLABELED", "SOURCE", "TEST"):
            for name in run.config.get(f"DATASETS.{key}") or ():
                role = {"TRAIN": "labelled", "UNLABELED": "unlabelled", "SOURCE": "source", "TEST": "evaluation"}[key]
                if role not in roles.setdefault(str(name), []):
                    roles[str(name)].append(role)
    known = {name: found for run in runs for name, found in run.log.datasets.items()}
    rows = []
    for name in dict.fromkeys([*roles, *known]):
        count, facts = known.get(name, ("unknown", ""))
        rows.append({"name": name, "roles": ", ".join(roles.get(name, ())), "count": count, "facts": facts})
    return rows


def _curves(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Title, picture and a remark, for each kind of scalars."""
    names = list(dict.fromkeys(name for group in groups for run in group.runs for name in run.series))
    for group in groups:
        for run in group.runs:
            if run.log.memory:
                steps = sorted(run.log.memory)
                run.series["memory"] = np.array(steps) + 1, np.array([run.log.memory[step] for step in steps])
    losses = sorted(n for n in names if "loss" in n and n != "total_loss" and not _LAYER.search(n))
    losses.sort(key=lambda name: name.startswith("unlabeled"))
    layers = sum("loss" in name and _LAYER.search(name) is not None for name in names)
    scores = [n for n in names if is_score(n) and not n.endswith(("_th", "_st"))]
    pseudo = [n for n in names if n.startswith("pseudo_label/")]
    speed = [n for n in ("time", "data_time") if n in names]
    shown = {*losses, "total_loss", "lr", "grad_norm", "eta_seconds", *pseudo, *speed}
    others = [n for n in names if n not in shown and not is_score(n) and not _LAYER.search(n)]
    found = [
        ("Scores of the evaluation", scores, "%", ""),
        (
            "Quality of the pseudo-labels",
            pseudo,
            "%",
            "Scored against annotations that training does not see (SSL.MONITOR_PERIOD).",
        ),
        (
            "Losses",
            ["total_loss", *losses],
            "",
            f"{layers} losses of earlier layers of the decoder are left out." if layers else "",
        ),
        ("Learning rate and gradient", ["lr", "grad_norm"], "", ""),
        ("Seconds of a step", speed, "s", ""),
        ("Memory of the GPU", ["memory"], "MB", ""),
        ("Other values", others, "", ""),
    ]
    drawn = [(title, curves(groups, chosen[:_MOST_PANELS], unit), note) for title, chosen, unit, note in found]
    return [entry for entry in drawn if entry[1]]


def _class_tables(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A table for each evaluation and task: all metrics of one group, or the first metric of several groups."""
    result = []
    for name, task in _tasks(groups):
        tables = [[_with_accuracy(e.classes(task), e.confusion(task)) for e in _evaluations(g, name)] for g in groups]
        classes = list(dict.fromkeys(c for group in tables for table in group for c in table))
        metrics = list(dict.fromkeys(m for group in tables for table in group for row in table.values() for m in row))
        if not classes or not metrics:
            continue
        columns = (
            [(0, metric) for metric in metrics] if len(groups) == 1 else [(i, metrics[0]) for i in range(len(groups))]
        )
        rows = []
        for label in classes:
            values = [
                Spread.of([table[label][metric] for table in tables[i] if metric in table.get(label, {})])
                for i, metric in columns
            ]
            rows.append((label, [(value.mean, value.text()) for value in values]))
        titles = [metric if len(groups) == 1 else f"{metric}, {groups[i].name}" for i, metric in columns]
        colors = [groups[i].color for i, _ in columns]
        result.append({"title": f"{name}: {task}", "columns": list(zip(titles, colors, strict=True)), "rows": rows})
    return result


def _tasks(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Name of the evaluation and task."""
    runs = [run for group in groups for run in group.runs]
    return list(dict.fromkeys((e.name, task) for run in runs for e in run.evaluations for task in e.results))


def _evaluations(group: Group, name: str) -> list[Any]:
    return [e for run in group.runs for e in run.evaluations if e.name == name]


def _with_accuracy(classes: dict[str, dict[str, float]], matrix: np.ndarray | None) -> dict[str, dict[str, float]]:
    if matrix is None:
        return classes
    with np.errstate(invalid="ignore"):
        accuracy = 100 * np.diag(matrix) / matrix.sum(1)
    return {name: {**row, "accuracy": float(a)} for (name, row), a in zip(classes.items(), accuracy, strict=True)}


def _confusions(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The strongest confusions of each group in words, and its matrix; of several seeds the sum."""
    result = []
    for name, task in _tasks(groups):
        for group in groups:
            found = [(list(e.classes(task)), e.confusion(task)) for e in _evaluations(group, name)]
            matrices = [matrix for labels, matrix in found if matrix is not None and labels == found[0][0]]
            if not matrices:
                continue
            labels, matrix = found[0][0], np.sum(matrices, axis=0)
            picture = heat_map(matrix, labels, f"{name} {task} {group.name}") if len(labels) <= _MOST_CLASSES else ""
            words = _strongest(matrix, labels)
            result.append({"name": name, "group": group, "words": words, "picture": picture})
    return result


def _strongest(matrix: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Sentences about the largest shares of a class that were found as another one."""
    totals = matrix.sum(1)
    shares = np.where(totals[:, None] >= _SMALL * matrix.sum(), 100 * matrix / np.maximum(totals[:, None], 1), 0)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = (np.unravel_index(i, shares.shape) for i in order)
    return [
        f"{shares[t, p]:.0f} % of “{labels[t]}” was found as “{labels[p]}” ({matrix[t, p]:,.0f} pixels)."
        for t, p in pairs
        if shares[t, p] >= 1
    ]
