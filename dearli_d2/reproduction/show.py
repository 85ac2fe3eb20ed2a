"""One row on one screen: what the paper prints, how to get there, what is missing, what it costs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from .cost import cost_of
from .papers import Experiment
from .requirements import config_of, needs_of
from .result import finished
from .stages import Choice, Step, steps_of
from .state import Progress, progress_of

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
    yield f"  spread     {experiment.spread:g}: {paper.spread_source}"
    yield f"  hardware   {paper.hardware}"
    ours = finished(experiment, choice.out)
    if ours is not None:
        yield f"  ours       {', '.join(f'{metric} {ours.text(metric)}{ours.mark}' for metric in ours.figures)}"
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
    yield f"\n{described(steps)}"
    yield from costs(steps)
    needs = needs_of(steps)
    table = [[need.role, need.name, ("" if need.there else "MISSING: ") + need.state] for need in needs]
    text = tabulate(table, tablefmt="plain", maxcolwidths=[None, 45, 80], disable_numparse=True)
    yield f"\nNeeded\n{textwrap.indent(text, '  ')}"
    missing = sum(not need.there for need in needs)
    first = f"{missing} of these are missing; then " if missing else ""
    yield f"\n{first}`dearli reproduce {experiment.name}` runs all stages and continues after an interruption."


def described(steps: Sequence[Step]) -> str:
    """The stages in order: how far each is, and its command.

    Raises:
        ConfigError: a folder holds something of another command.
    """
    lines = ["Stages"]
    for number, step in enumerate(steps, start=1):
        lines += [f"  {number} {step.name}: {progress_of(step).value}", f"    {step.line}"]
    return "\n".join(lines)


def costs(steps: Sequence[Step]) -> Iterator[str]:
    """A line for each training that has not begun: memory and hours on one GPU."""
    source = ""
    for step in steps:
        if step.trains and progress_of(step) is Progress.TO_DO:
            cost = cost_of(config_of(step))
            hours = ", ".join(f"{hours:.2g} h on one {gpu}" for gpu, hours in cost.hours.items())
            yield f"  cost of {step.name}: {cost.gpu_gib:.1f} GiB; {hours}"
            source = cost.source
    if source:
        yield f"  ({source})"
