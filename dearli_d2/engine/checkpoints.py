"""Checkpoints of a run: one file holds everything, written whole or not at all."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import WeightsError
from ..files import parse_json, write_atomically, write_json
from ..weights import read_file, write_file

logger = logging.getLogger(__name__)

_LAST = "last_checkpoint"
_EVALUATED = "evaluated.json"
_PERIODIC = re.compile(r"model_\d{7}\.pth")


class RunCheckpoints:
    """The checkpoint files of an output folder.

    Args:
        folder: of the run.
        keep: number of periodic checkpoints to keep.
    """

    def __init__(self, folder: str | Path, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Writes `state` to `name`.pth and notes it as the last one; older periodic ones are then removed."""
        # what processes left that were killed while they wrote; each may be as large as a checkpoint
        for left in self.folder.glob(".model_*.pth"):
            left.unlink()
        path = self.save_apart(name, state)
        write_atomically(self.folder / _LAST, lambda temporary: temporary.write_text(path.name))
        periodic = sorted(p for p in self.folder.iterdir() if _PERIODIC.fullmatch(p.name))
        for old in periodic[: -self.keep]:
            old.unlink()
        return path

    def save_apart(self, name: str, state: dict[str, Any]) -> Path:
        """Writes `state` to `name`.pth without making it the one to resume from."""
        path = self.folder / f"{name}.pth"
        write_file(path, state)
        return path

    def note_evaluation(self, iteration: int, scores: dict[str, float], settings: dict[str, Any]) -> None:
        """Notes that the evaluation after `iteration` steps is done, best model included."""
        note = {"iteration": iteration, "scores": scores, "settings": settings}
        write_json(self.folder / _EVALUATED, note, indent=1)

    def evaluated(self) -> dict[str, Any]:
        """The note of the last evaluation, {} where there was none. Raises `WeightsError` for a damaged one."""
        path = self.folder / _EVALUATED
        if not path.is_file():
            return {}
        try:
            note = parse_json(path.read_text(errors="replace"))
        except ValueError as error:
            raise WeightsError(f"{path} is damaged: {error}; delete it") from error
        if not isinstance(note, dict):
            raise WeightsError(f"{path} is damaged: it holds a {type(note).__name__}; delete it")
        return note

    def forget_evaluation(self) -> None:
        """Lets a run that is continued make its last evaluation again."""
        (self.folder / _EVALUATED).unlink(missing_ok=True)

    def best_score(self) -> float:
        """The score of the best model that the folder holds, which no lower one may replace."""
        path = self.folder / "model_best.pth"
        if not path.is_file():
            return -math.inf
        try:  # maps the file instead of reading all of it
            return float(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["best"])
        except Exception as error:  # damage has many types
            logger.warning("%s cannot be read and will be replaced: %s", path, error)
            return -math.inf

    def last(self) -> Path | None:
        """The checkpoint to resume from, or None in a fresh folder.

        Raises:
            WeightsError: the folder names a checkpoint that is gone.
        """
        note = self.folder / _LAST
        if not note.is_file():
            return None
        path = self.folder / note.read_text(errors="replace").strip()
        if not path.is_file():
            raise WeightsError(
                f"{note} names {path.name}, which is not there; write the name of a checkpoint of {self.folder} into it"
            )
        return path

    def load_last(self) -> dict[str, Any] | None:
        """Content of `last()`. Raises `WeightsError` if it cannot be read."""
        path = self.last()
        if path is None:
            return None
        logger.info("resuming from %s", path)
        return read_file(path)


def branch_off(source: str | Path, folder: str | Path, iteration: int) -> None:
    """Lets a run that has not begun in `folder` go on from the state of the run in `source` after `iteration`.

    If that checkpoint was not kept (SOLVER.KEEP_CHECKPOINTS), nothing happens, and the run begins at step 0. Runs that differ in
    unlabelled images alone are the same until SSL.START, so the result is bit by bit that of a separate run.
    """
    checkpoints, path = RunCheckpoints(folder, 1), Path(source) / f"model_{iteration:07d}.pth"
    if checkpoints.last() is None and path.is_file():
        checkpoints.save(path.stem, read_file(path))
