"""Runs the stages of a row, each in a process of its own; what is finished is not repeated."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.checkpoints import RunCheckpoints
from ..engine.resume import FREE
from ..env import report as environment_report
from ..errors import ConfigError
from ..files import write_json
from . import requirements
from .page import PAGE, write_page
from .papers import Experiment
from .process import run_dearli
from .requirements import config_of
from .result import RESULT, Comparison, as_json, compare, finished, read_results
from .show import costs, described
from .stages import Choice, Step, folder_of, steps_of
from .state import Note, Progress, content_of, locked, progress_of, read_note, settings_of, write_note


def run(experiment: Experiment, choice: Choice, stage: str = "", dry: bool = False) -> int:
    """Makes what is missing of a row, and compares its figures with the paper's.

    Args:
        stage: make only this one, "" for all.
        dry: say what would be done, and do nothing.

    Returns:
        The exit status: 0, or that of the stage that failed.

    Raises:
        RequirementsError: data, weights or settings are missing, with all of them; nothing has been started.
        ConfigError: there is no such stage, an earlier one is not finished, a folder holds something else, or another process
            works on the row.
    """
    steps = steps_of(experiment, choice)
    to_make = [step for step in _chosen(steps, stage) if progress_of(step) is not Progress.FINISHED]
    print(f"{experiment.name}, to {folder_of(experiment, choice)}\n{described(steps)}", flush=True)
    if stage and not dry:
        _check_earlier(steps, stage)
    requirements.check(to_make, choice)
    for line in costs(to_make):
        print(line, flush=True)
    if dry:
        return 0
    for step in to_make:
        status = _make(step)
        if status:
            print(
                f"the stage {step.name} ended with status {status}; when that is mended, the same command continues it",
                flush=True,
            )
            return status
    if all(progress_of(step) is Progress.FINISHED for step in steps):
        for comparison in finish(experiment, choice, steps):
            print(comparison.verdict)
        for verdict in _over_seeds(experiment, choice.out):
            print(verdict)
        print(f"page: {folder_of(experiment, choice) / PAGE}", flush=True)
    return 0


def _over_seeds(experiment: Experiment, out: Path) -> list[str]:
    """The verdict on the mean of several seeds, for each figure; none for a single one."""
    found = finished(experiment, out)
    if found is None or found.seeds == 1:
        return []
    comparisons = (Comparison(m, f, found.figures.get(m), experiment.spread) for m, f in experiment.figures.items())
    return [f"mean of {found.seeds} seeds: {comparison.verdict}" for comparison in comparisons]


def _chosen(steps: Sequence[Step], stage: str) -> list[Step]:
    chosen = [step for step in steps if stage in ("", step.name)]
    if not chosen:
        raise ConfigError(f"there is no stage {stage!r}; the stages are {', '.join(step.name for step in steps)}")
    return chosen


def _check_earlier(steps: Sequence[Step], stage: str) -> None:
    names = [step.name for step in steps]
    missing = [step.name for step in steps[: names.index(stage)] if progress_of(step) is not Progress.FINISHED]
    if missing:
        raise ConfigError(f"the stage {stage} comes after {', '.join(missing)}, which must be finished first")


def _make(step: Step) -> int:
    """Runs the command of a stage unless another process has done so meanwhile. Returns its exit status."""
    with locked(step):
        progress = progress_of(step)
        if progress is Progress.FINISHED:
            return 0
        if progress is Progress.DAMAGED and step.trains:  # its scores may be gone
            RunCheckpoints(step.folder, keep=0).forget_evaluation()
        note = read_note(step) or Note(settings_of(step))
        note.commands = list(dict.fromkeys([*note.commands, step.line]))
        write_note(step, note)
        print(f"\n== {step.name}\n{step.line}", flush=True)
        begin = time.monotonic()
        try:
            status = run_dearli(step.command)
            note.finished = status == 0 and step.product.exists()
            note.files, note.size = content_of(step) if note.finished else (0, 0)
        finally:
            note.seconds += time.monotonic() - begin
            write_note(step, note)
        if status == 0 and not note.finished:
            raise ConfigError(f"the stage {step.name} has ended without {step.product}: {step.line}")
    return status


def finish(experiment: Experiment, choice: Choice, steps: Sequence[Step]) -> list[Comparison]:
    """Writes `reproduction.json` and the page of a row whose stages are finished. Returns its figures."""
    last = steps[-1]
    cfg = config_of(last)
    source, results = read_results(last.folder, cfg.DATASETS.TEST[0])
    comparisons = compare(experiment, results, source)
    folder = folder_of(experiment, choice)
    record = {
        "row": experiment.name,
        "paper": experiment.paper.title,
        "table": experiment.row.table,
        "figures": [as_json(comparison) for comparison in comparisons],
        "verdict": [comparison.verdict for comparison in comparisons],
        "spread_source": experiment.paper.spread_source,
        "official": choice.official,
        "papers_settings": not _own_settings(choice),
        "config": f"configs/{last.config}",
        "overrides": list(choice.overrides),
        "stages": [_stage_record(step) for step in steps],
        "results": str(source),
        "pictures": sorted(str(path) for path in (source.parent / "pictures").rglob("*.png")),
        "seed": cfg.SEED,
        "seeds_of_the_paper": experiment.paper.seeds,
        "environment": dict(_split(line) for line in environment_report().splitlines()),
        "commit": _commit(),
    }
    write_json(folder / RESULT, record, indent=2)
    write_page(folder / PAGE, experiment, comparisons, record)
    return comparisons


def _own_settings(choice: Choice) -> list[str]:
    """Keys that the user has overridden and that results depend on."""
    return [key for key in choice.overrides[::2] if key not in FREE]


def _stage_record(step: Step) -> dict[str, Any]:
    note = read_note(step)
    return {
        "name": step.name,
        "folder": str(step.folder),
        "commands": note.commands if note else [],
        "seconds": round(note.seconds, 1) if note else None,
    }


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition("  ")
    return name, value.strip()


def _commit() -> str | None:
    """The commit of the checkout that runs, None without one."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
