"""The page of a finished row, for people."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..files import write_atomically
from .papers import Experiment, Figure
from .result import Comparison

PAGE = "reproduction.html"
_PICTURES = 12
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left; vertical-align: top; }
pre { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; }
img { max-width: 100%; margin: .3rem 0; }
.note { background: #fff3cd; padding: .6rem .8rem; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } pre { background: #222; } .note { background: #443a10; } }
"""


def write_page(
    path: Path, experiment: Experiment, comparisons: Sequence[Comparison], record: Mapping[str, Any]
) -> None:
    """Writes the page. Pictures are those that the evaluation wrote, by their relative paths.

    Args:
        record: content of `reproduction.json`.
    """
    text = "\n".join(_parts(path.parent, experiment, comparisons, record))
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _parts(
    folder: Path, experiment: Experiment, comparisons: Sequence[Comparison], record: Mapping[str, Any]
) -> list[str]:
    paper = experiment.paper
    places = ", ".join(f"table {table}, row {row}" for table, row in experiment.row.table.items())
    parts = [
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(experiment.name)}</title>',
        f"<style>{_STYLE}</style>\n<h1>{escape(experiment.name)}</h1>",
        f"<p>{escape(paper.title)}, {escape(places)} ({escape(paper.url)})</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in notes(experiment, record)),
        _table(
            ["metric", "paper", "ours", "difference", "spread", ""],
            [
                [c.metric, _number(c.paper), _number(c.ours), _number(c.difference, "+"), f"{c.spread:g}", _word(c)]
                for c in comparisons
            ],
        ),
        f"<p>The spread: {escape(paper.spread_source)}.</p>",
        "<h2>Commands</h2>",
        _table(
            ["stage", "seconds", "commands"],
            [[s["name"], f"{s['seconds']:.0f}", "\n".join(s["commands"])] for s in record["stages"]],
        ),
    ]
    if experiment.deviations():
        rows = [
            [e.source, e.printed, ", ".join(f"{k} {v}" for k, v in e.values.items()), e.why]
            for e in experiment.deviations()
        ]
        parts += ["<h2>Where the config differs from the paper</h2>", _table(["place", "paper", "here", "why"], rows)]
    if record["pictures"]:
        parts.append("<h2>Pictures of the evaluation</h2>")
    for picture in record["pictures"][:_PICTURES]:
        parts.append(f'<img src="{escape(os.path.relpath(picture, folder))}" alt="{escape(Path(picture).stem)}">')
    parts += ["<h2>Environment</h2>", _table(["", ""], [[k, v] for k, v in record["environment"].items()])]
    parts.append(f"<p>Hardware of the paper: {escape(paper.hardware)}. Commit: {escape(str(record['commit']))}.</p>")
    return parts


def notes(experiment: Experiment, record: Mapping[str, Any]) -> list[str]:
    """Facts that a reader must know before the figures are compared."""
    found = [experiment.row.note] if experiment.row.note else []
    if record["official"]:
        found.append("The published checkpoint was evaluated. Nothing was trained.")
    if not record["papers_settings"]:
        found.append(f"This is not the paper's setting. Overridden were {' '.join(record['overrides'])}.")
    if experiment.paper.seeds > 1 and not record["official"]:
        found.append(
            f"The paper prints the mean of {experiment.paper.seeds} runs. This is one run, of seed {record['seed']}."
        )
    return found


def _word(comparison: Comparison) -> str:
    return {True: "within the spread", False: "not within the spread", None: ""}[comparison.within]


def _number(value: Figure, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell).replace(chr(10), '<br>')}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line("th", head) + "".join(line("td", row) for row in rows) + "</table>"
