"""One row on one screen: what the paper prints, how to get there, what is missing, what it costs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from .papers import Experiment
from .requirements import needs_of
from .result import finished
from .stages import Choice, steps_of

_WIDTH = 120


def show(experiment: Experiment, out: Path) -> str:
    """The screen of a row, also of one that cannot be run.

    Args:
        out: folder of the runs.
    """
    return "\n".join(_lines(experiment, Choice(out)))


def _lines(experiment: Experiment, choice: Choice) -> Iterator[str]:
    paper, row = experiment.paper, experiment.row
    yield f"{experiment.name}: {paper.title}"
    for table, name in row.table.items():
        yield f"  place      Table {table} ({paper.tables[table]}), row {name}"
    for metric, figure in experiment.figures.items():
        yield f"  figure     {metric} {'–, the paper prints none' if figure is None else f'{figure:g}'}"
    yield f"  spread     {paper.spread:g}: {paper.spread_source}"
    yield f"  hardware   {paper.hardware}"
    ours = finished(experiment, choice.out)
    if ours is not None:
        yield f"  ours       {', '.join(f'{m} {v}{ours.mark}' for m, v in ours.figures.items())}"
    if row.note:
        yield f"  note       {row.note}"
    if not experiment.training.row.config:
        yield f"  not run    {row.missing}"
        return
    for entry in experiment.deviations():
        values = ", ".join(f"{key} {value}" for key, value in entry.values.items())
        text = f"  differs    {entry.source}: the paper {entry.printed}; here {values}: {entry.why}"
        yield textwrap.fill(text, _WIDTH, subsequent_indent=" " * 13)
    if experiment.checkpoint:
        yield f"  published  {experiment.checkpoint}; --official evaluates it"
    yield from _stages(experiment, choice)


def _stages(experiment: Experiment, choice: Choice) -> Iterator[str]:
    steps = steps_of(experiment, choice)
    yield "\nStages"
    for number, step in enumerate(steps, start=1):
        yield f"  {number} {step.name}\n    {step.line}"
    needs = needs_of(steps)
    table = [[need.role, need.name, ("" if need.there else "MISSING: ") + need.state] for need in needs]
    yield "\nNeeded\n" + textwrap.indent(
        tabulate(table, tablefmt="plain", maxcolwidths=[None, None, 80], disable_numparse=True), "  "
    )
    missing = sum(not need.there for need in needs)
    yield (
        f"\n{missing} of these are missing. Then `dearli reproduce {experiment.name}` runs all stages."
        if missing
        else f"\n`dearli reproduce {experiment.name}` runs all stages."
    )
