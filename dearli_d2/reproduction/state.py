"""What is done of a stage: a note in its folder, and a lock while it is made."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from ..engine.resume import FREE
from ..engine.run_folder import FolderLock
from ..errors import ConfigError, WeightsError
from ..files import parse_json, write_json
from ..masks.shards import INDEX
from .stages import Step

_NOTE = "stage.json"
_LOCK = ".reproduce"
_POLL = 2.0  # seconds between two looks at a stage that another process makes


class Progress(Enum):
    """State of a stage."""

    TO_DO = "to do"
    BEGUN = "begun"
    FINISHED = "finished"
    DAMAGED = "damaged: files that it had made are missing or shorter"


@dataclass
class Note:
    """The file `stage.json` in the folder of a stage.

    Attributes:
        settings: what the product depends on.
        commands: that were run, the first one and its repetitions after interruptions, each text once.
        seconds: that they took, without those of commands that were killed.
        finished: the product is complete.
        files, size: see `content_of`, at that time.
    """

    settings: dict[str, Any]
    commands: list[str] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False
    files: int = 0
    size: int = 0


def settings_of(step: Step) -> dict[str, Any]:
    """Settings that the product of a stage depends on: its command, or its config with the overrides; no folder is among them."""
    pairs = {key: value for key, value in step.pairs.items() if key not in FREE and key not in step.given}
    if not step.config:
        words = step.command[: len(step.command) - len(step.overrides)]
        command = [word for word in words if word not in (str(step.folder), *step.files.values())]
        return {"command": command, "overrides": pairs}
    return {"command": step.command[0], "config": step.config, "overrides": pairs}


def read_note(step: Step) -> Note | None:
    """The note of a stage, None where it has none. Raises `WeightsError` for a damaged one."""
    path = step.folder / _NOTE
    if not path.is_file():
        return None
    try:
        return Note(**parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: {error}; delete the folder to make the stage again") from error


def write_note(step: Step, note: Note) -> None:
    """Writes the note of a stage, whole or not at all."""
    write_json(step.folder / _NOTE, asdict(note), indent=2)


def progress_of(step: Step) -> Progress:
    """Looks how far a stage is.

    Raises:
        ConfigError: its folder holds something of another command or of other overrides.
    """
    note = read_note(step)
    if note is None:
        # hidden are the lock, and what a process left that was killed while it wrote its first note
        if step.folder.is_dir() and any(not path.name.startswith(".") for path in step.folder.iterdir()):
            raise ConfigError(f"{step.folder} holds files that no `dearli reproduce` has made; choose another --out")
        return Progress.TO_DO
    if differences := _differences(note.settings, settings_of(step)):
        raise ConfigError(
            f"{step.folder} holds the stage {step.name} made in another way: {'; '.join(differences)}. Use the same overrides, "
            "or choose another --out"
        )
    if not note.finished:
        return Progress.BEGUN
    files, size = content_of(step)
    return (
        Progress.FINISHED if step.product.exists() and files >= note.files and size >= note.size else Progress.DAMAGED
    )


def content_of(step: Step) -> tuple[int, int]:
    """Number of the files that a stage has made, scores of a training among them, and bytes of its product if it is one file.

    The index of shards does not count: a reader may write it later.
    """
    if step.product.is_file():
        scores = (step.folder / "evaluation").rglob("results.json") if step.trains else ()
        return 1 + len(list(scores)), step.product.stat().st_size
    return sum(name != INDEX for _, _, names in os.walk(step.product) for name in names), 0


def _differences(had: dict[str, Any], has: dict[str, Any]) -> list[str]:
    """Each setting that differs, with both values."""
    had, has = ({**d, **d.get("overrides", {})} for d in (had, has))
    keys = [key for key in {**had, **has} if key != "overrides" and had.get(key) != has.get(key)]
    return [f"{key} was {had.get(key, 'not set')} and is {has.get(key, 'not set')}" for key in keys]


@contextmanager
def locked(step: Step) -> Iterator[None]:
    """Keeps other processes from a stage. One that rows share is waited for.

    Raises:
        ConfigError: another process makes a stage that is the row's own.
    """
    told = False
    while True:
        try:
            lock = FolderLock(step.folder / _LOCK)
            break
        except ConfigError as error:
            if not (step.shared and " is in use by " in str(error)):
                raise
            if not told:
                print(f"waiting for another process that makes the stage {step.name}: {error}", flush=True)
            told = True
            time.sleep(_POLL)
    with lock:
        yield
