"""Tables of rows for the console: what can be run, what is finished, and the papers' tables with ours beside."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from tabulate import tabulate

from ..errors import ConfigError
from .papers import NO_COLUMN, Experiment, Paper, Row, papers
from .result import finished, number
from .settings import data_of, missing_data, missing_weights, settings_of, weights_of

_WIDTH = 80  # characters of what a row needs


def list_rows(pattern: str, paper: str, out: Path) -> Iterator[str]:
    """A block for each table of each paper, with a line for each row.

    Args:
        pattern: part of a row's name, or a pattern with `*`; "" for all.
        paper: its name, "" for all.
        out: folder of the runs.

    Raises:
        ConfigError: no such paper, or no row fits.
    """
    chosen = {name: found for name, found in papers().items() if paper in ("", name)}
    if not chosen:
        raise ConfigError(f"there is no paper {paper!r}; known are {', '.join(papers())}")
    none = True
    for found in chosen.values():
        head = f"{found.name}: {found.title}\n{found.url}, on {found.hardware}\n"
        for table, caption in found.tables.items():
            rows = [row for row in found.rows.values() if table in row.table and _fits(found, row, pattern)]
            if rows:
                lines = [_line(found, row, out) for row in rows]
                block = tabulate(lines, ["row", "columns", "metric", "needs", "ours"], tablefmt="plain")
                yield f"{head}\nTable {table}: {caption}\n{textwrap.indent(block, '  ')}\n"
                head, none = "", False
    if none:
        raise ConfigError(f"no row has {pattern!r} in its name; `dearli reproduce list` shows all")


def _fits(paper: Paper, row: Row, pattern: str) -> bool:
    names = [f"{paper.name}/{row.name}", *(Experiment(paper, row, column).name for column in row.figures)]
    wanted = pattern if "*" in pattern else f"*{pattern}*"
    return any(fnmatchcase(name, wanted) for name in names)


def _line(paper: Paper, row: Row, out: Path) -> list[str]:
    experiments = [Experiment(paper, row, column) for column in row.figures]
    metrics = " ".join(metric.partition("/")[2] for metric in row.metric[:4])
    return [
        f"{paper.name}/{row.name}",
        " ".join(column for column in row.figures if column != NO_COLUMN),
        metrics + (" ..." if len(row.metric) > 4 else ""),
        _short(state_of(experiments)),
        ", ".join(filter(None, (_ours(experiment, out) for experiment in experiments))),
    ]


def state_of(experiments: list[Experiment]) -> str:
    """Names what is missing of the columns of a row, or says why it cannot be run."""
    if not experiments[0].training.row.config:
        return f"not run: {experiments[0].row.missing}"
    data: dict[str, None] = {}
    weights: dict[str, None] = {}
    for experiment in experiments:
        settings = settings_of(experiment.training.row.config, experiment.overrides())
        data |= dict.fromkeys(re.sub(r" FOLDER .*", "", hint) for d in data_of(settings) for hint in _missing_data(d))
        names = [
            *weights_of(settings),
            *(n for s in experiment.stages for n in re.findall(r"{weights:(.+?)}", s.command)),
        ]
        weights |= dict.fromkeys(filter(None, map(_missing_weights, names)))
    files = [f"{len(weights)} file{'s' * (len(weights) > 1)} of weights"] if weights else []
    return ", ".join([*data, *files]) or "ready"


_missing_data, _missing_weights = lru_cache(maxsize=None)(missing_data), lru_cache(maxsize=None)(missing_weights)


def _short(text: str) -> str:
    return textwrap.shorten(text, _WIDTH, placeholder=" ...")


def _ours(experiment: Experiment, out: Path) -> str:
    found = finished(experiment, out)
    if found is None:
        return ""
    figures = "/".join(map(found.text, experiment.row.metric))
    return " ".join(filter(None, (experiment.column.strip(NO_COLUMN), figures + found.mark)))


# ------------------------------------------------------------------------------------------ the papers' tables

FORMATS = ("plain", "markdown", "csv")
_MANY = 4  # metrics in a cell


def table_of(paper: str, table: str, out: Path, form: str = "plain") -> str:
    """A table of a paper; behind a figure stands ours in parentheses.

    Args:
        form: one of `FORMATS`; CSV has a line for each figure.

    Raises:
        ConfigError: no such paper or table.
    """
    found = papers().get(paper)
    if found is None:
        raise ConfigError(f"there is no paper {paper!r}; known are {', '.join(papers())}")
    if table not in found.tables:
        raise ConfigError(f"{paper} has no table {table!r}; it has {', '.join(found.tables)}")
    rows = [row for row in found.rows.values() if table in row.table]
    if form == "csv":
        return _csv(found, rows, table, out)
    head, lines = _cells(found, rows, table, out)
    style = {"plain": "simple", "markdown": "github"}[form]
    return f"Table {table}: {found.tables[table]}\n\n{tabulate(lines, head, tablefmt=style, disable_numparse=True)}\n\n{_LEGEND}"


def _cells(paper: Paper, rows: list[Row], table: str, out: Path) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table: its columns are those of the paper, or the metrics where these are many or its only column."""
    columns = list(dict.fromkeys(column for row in rows for column in row.figures))
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metric))
    if len(columns) == 1 or len(metrics) > _MANY:
        lines = []
        for row in rows:
            for column in row.figures:
                experiment = Experiment(paper, row, column)
                name = row.table[table] if len(columns) == 1 else f"{row.table[table]}, {column}"
                lines.append([name, *(_cell(experiment, [m], out) if m in row.metric else "" for m in metrics)])
        return ["row", *(metric.rpartition("/")[2] for metric in metrics)], lines
    head = ["row", "metric", *columns]
    lines = []
    for row in rows:
        experiments = {column: Experiment(paper, row, column) for column in row.figures}
        cells = [_cell(experiments[c], row.metric, out) if c in experiments else "" for c in columns]
        lines.append([row.table[table], " ".join(m.partition("/")[2] for m in row.metric), *cells])
    return head, lines


_LEGEND = "figure of the paper (ours); ± standard error over seeds, ° the published checkpoint, * overridden settings"


def _cell(experiment: Experiment, metrics: Sequence[str], out: Path) -> str:
    figures = " / ".join(number(experiment.figures[metric]) for metric in metrics)
    found = finished(experiment, out)
    if found is None:
        return figures
    ours = " / ".join(map(found.text, metrics))
    return f"{figures} ({ours}{found.mark})"


def _csv(paper: Paper, rows: list[Row], table: str, out: Path) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["id", "row", "column", "metric", "paper", "ours", "official", "overridden", "standard_error", "seeds"]
    )
    for row in rows:
        for column in row.figures:
            experiment = Experiment(paper, row, column)
            found = finished(experiment, out)
            for metric, figure in experiment.figures.items():
                ours = found.figures.get(metric) if found else None
                own = [found.official, found.own_settings, found.errors.get(metric), found.seeds] if found else [""] * 4
                writer.writerow([experiment.name, row.table[table], column, metric, figure, ours, *own])
    return text.getvalue().rstrip()
