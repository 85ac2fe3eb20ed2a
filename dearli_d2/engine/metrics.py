"""Scalars of a run: to the console, `metrics.json` and TensorBoard, the same after an interruption as without."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.engine.hooks import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter, JSONWriter, TensorboardXWriter

from ..files import write_atomically

PERIOD = 20  # iterations between lines
WINDOW = 20  # iterations whose median a line gives
_PATIENCE = 30  # seconds without a line on the console


class MetricsFile(JSONWriter):
    """`metrics.json`, with a line of JSON for each iteration that has values.

    Lines from iteration `start` on are removed, since the run was interrupted later than its last checkpoint. An incomplete
    line is removed too.
    """

    def __init__(self, path: Path, start: int) -> None:
        kept = _lines_before(path, start)
        if path.is_file():
            text = "".join(f"{line}\n" for line, _ in kept)
            if text != path.read_text():
                write_atomically(path, lambda temporary: temporary.write_text(text))
        super().__init__(str(path), WINDOW)
        self._last_write = max((iteration for _, iteration in kept), default=-1)


def _lines_before(path: Path, start: int) -> list[tuple[str, int]]:
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            iteration = json.loads(line)["iteration"]
        except (ValueError, KeyError, TypeError):  # cut off by a kill
            continue
        if iteration < start:
            kept.append((line, iteration))
    return kept


class RecentScalars:
    """The last values of every scalar, as a part of a checkpoint: the medians of a resumed run start from them."""

    def __init__(self, storage: EventStorage) -> None:
        self.storage = storage

    def state_dict(self) -> dict[str, Any]:
        """The entry of a checkpoint."""
        hints = self.storage.smoothing_hints()
        recent = {
            name: {"smooth": hints[name], "values": [list(pair) for pair in buffer.values()[-WINDOW:]]}
            for name, buffer in self.storage.histories().items()
        }
        return {"recent": recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back the values of a checkpoint; early versions did not save them."""
        for name, entry in state.get("recent", {}).items():
            for value, iteration in entry["values"]:
                self.storage.put_scalar(name, value, smoothing_hint=entry["smooth"], cur_iter=int(iteration))


class MetricsHook(HookBase):
    """Writes every `PERIOD` iterations and at the end; to the console also the first step, and when it was silent for long.

    Args:
        folder: with `metrics.json`.
        start: steps that are done.
        max_iter: steps of the run.
        trackers: makes further writers when training begins.
    """

    def __init__(
        self, folder: str | Path, start: int, max_iter: int, trackers: Callable[[], Sequence[Any]] = list
    ) -> None:
        self.printer = CommonMetricPrinter(max_iter, WINDOW)
        self.lines = MetricsFile(Path(folder) / "metrics.json", start)
        board = TensorboardXWriter(str(folder), WINDOW, purge_step=start)
        board._last_write = self.lines._last_write  # what was written before the interruption
        self.files: list[EventWriter] = [self.lines, board]
        self.trackers = trackers
        self.printed = time.monotonic()

    def before_train(self) -> None:
        """Writes a line that a kill after the checkpoint prevented."""
        for tracker in self.trackers():
            tracker._last_write = self.lines._last_write
            self.files.append(tracker)
        start = self.trainer.start_iter
        if start and (start % PERIOD == 0 or start == self.trainer.max_iter):
            for writer in self.files:
                writer.write()

    def after_step(self) -> None:
        trainer = self.trainer
        done = trainer.iter + 1
        due = done % PERIOD == 0 or done == trainer.max_iter
        if due or trainer.iter == trainer.start_iter or time.monotonic() - self.printed > _PATIENCE:
            self.printer.write()
            self.printed = time.monotonic()
        if due:
            for writer in self.files:
                writer.write()

    def after_train(self) -> None:
        for writer in self.files:
            writer.close()
