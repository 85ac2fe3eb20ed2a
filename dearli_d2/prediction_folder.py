"""The folder that `predict` writes: the names of its files, what lies there already, and `predictions.json`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .data.taxonomy import Taxonomy
from .errors import ConfigError, first_few
from .files import leads_out, remove_leftovers
from .journal import Journal, entries
from .locks import only_process, taking_turns
from .pipeline import Outcome, Work, run
from .prediction_files import DEFAULT_KINDS, ENDINGS, Maps, chosen_kinds, write_files
from .prediction_inputs import Inputs, Task, find_inputs, forget_outputs, stamp_of
from .prediction_list import NAME, files_of, own_list, write_list
from .progress import progress_bar

__all__ = ["Inputs", "PredictionFolder", "Summary", "find_inputs"]

_JOURNALS = ".predictions"
_ADVICE = "choose another --out, or replace them with --overwrite"


@dataclass(frozen=True)
class Summary:
    """The work of one process.

    Args:
        predicted: number of its images that have a prediction now.
        present: number of those that were there before.
        skipped: path and reason of its images without a prediction.
        complete: `predictions.json` holds the images of all processes.
    """

    predicted: int
    present: int
    skipped: list[tuple[Path, str]]
    complete: bool


class HasPixels(Protocol):
    """An image that was read: `pixels` is (H, W, 3) uint8 RGB."""

    @property
    def pixels(self) -> np.ndarray:
        """The image as it is seen."""


@dataclass(frozen=True)
class WriteTask:
    """Writes the files of an image, and returns its record."""

    out: Path
    through: Path
    kinds: tuple[str, ...]
    taxonomy: Taxonomy

    def __call__(self, task: Task, loaded: HasPixels, maps: Maps) -> dict[str, Any]:
        """Writes the files."""
        stamp = stamp_of(task.path)
        record = write_files(self.out, task.name, self.kinds, loaded.pixels, maps, self.taxonomy, self.through)
        return {"name": task.name, "stamp": stamp, **record}


# the formats of labelling tools need packages that predictions alone do not


def _writable(formats: Sequence[str]) -> list[str]:
    if not formats:
        return []
    from .labels.convert import writable

    return [writable(name) for name in dict.fromkeys(formats)]


def _known(formats: Sequence[str]) -> list[str]:
    if not formats:
        return []
    from .labels.formats import formats as known

    return [name for name in formats if name in known()]


class PredictionFolder:
    """The folder of the predictions of `inputs`. Until all are there its `predictions.json` says that it is not complete.

    Each process that works on it (`fill`) appends the record of an image to a journal of its own, in the hidden folder
    `.predictions`, when the files of the image are complete. A later call with the same inputs and the same `run` goes on there.

    Args:
        out: the folder; made if it is missing.
        inputs: the images.
        run: identifies the run by everything that its predictions depend on, for example {"weights": digest}. The same run may
            go on with the folder, also with more images.
        overwrite: replace predictions of another run or of other images, and files of others.
        kinds: the files to write of each image, see `prediction_files.ENDINGS`; "panoptic" always is.
        formats: of labels to write as well, each to a folder of its name in `out`, see `labels.formats`.

    Raises:
        ConfigError: a format that cannot be written; an output would replace an image that is read; or, without `overwrite`, predictions of another run or of
            other images, or files of others.
    """

    def __init__(
        self,
        out: str | Path,
        inputs: Inputs,
        run: dict[str, str],
        overwrite: bool = False,
        kinds: Sequence[str] = DEFAULT_KINDS,
        formats: Sequence[str] = (),
    ) -> None:
        self.out, self.inputs, self.run = Path(out), inputs, run
        self.kinds = chosen_kinds(kinds)
        self.formats = _writable(formats)
        targets = files_of(inputs.names)
        read = {os.path.realpath(path): path for path in inputs.paths}
        replaced = [read[real] for t in sorted(targets) if (real := os.path.realpath(self.out / t)) in read]
        if replaced:
            raise ConfigError(
                f"--out {self.out}: {len(replaced)} of the images to predict would be overwritten by predictions of others: "
                f"{first_few(replaced)}; choose another folder"
            )
        with taking_turns(self.out / _JOURNALS / "lock"):
            self._claim(targets, overwrite)
        forget_outputs()

    def _claim(self, targets: set[str], overwrite: bool) -> None:
        before = own_list(self.out / NAME)
        earlier = _known((before or {}).get("info", {}).get("formats", ()))
        try:
            self._check_free(before, targets)
            strange = [name for name in self.formats if name not in earlier and (self.out / name).exists()]
            if strange:
                raise ConfigError(f"{self.out / strange[0]} was not written by this program; {_ADVICE}")
            if before is None:
                self._forget()
        except ConfigError:
            if not overwrite:
                raise
            self._forget()
        for name in earlier:  # they are made anew of the predictions
            shutil.rmtree(self.out / name, ignore_errors=True)
        self._write()
        for name in set((before or {}).get("outputs", {})) - set(self.inputs.names):
            if not leads_out(name):
                self.remove(name)
        remove_leftovers(self.out)

    def _forget(self) -> None:
        """Drops the journals of earlier predictions."""
        for path in (self.out / _JOURNALS).glob("*.jsonl"):
            path.unlink()

    def _check_free(self, before: dict[str, Any] | None, targets: set[str]) -> None:
        path, ours = self.out / NAME, set()
        if before is None and path.exists():
            raise ConfigError(f"{path} was not written by this version of this program; {_ADVICE}")
        if before is not None:
            info, outputs = before["info"], before["outputs"]
            known = info.get("run") if isinstance(info.get("run"), dict) else {}
            other = [key for key in {**known, **self.run} if known.get(key) != self.run.get(key)]
            if other:
                raise ConfigError(f"{self.out} holds predictions made with other {' and '.join(other)}; {_ADVICE}")
            own = set(self.inputs.file_names)
            strange = [file for file in outputs.values() if file not in own]
            if strange or info.get("image_folder") != str(self.inputs.folder):
                raise ConfigError(
                    f"{self.out} holds predictions of {len(strange) or len(outputs)} other images, of "
                    f"{info.get('image_folder')}: {first_few(strange or list(outputs.values()))}; {_ADVICE}"
                )
            ours = files_of(outputs)
        strangers = [t for t in sorted(targets - ours) if (self.out / t).exists()]
        if strangers:
            raise ConfigError(
                f"{self.out} holds {len(strangers)} files that would be overwritten: {first_few(strangers)}; {_ADVICE}"
            )

    def path(self, name: str, kind: str) -> Path:
        """The path of one of the output files of an image."""
        return self.out / f"{name}{ENDINGS[kind]}"

    def remove(self, name: str) -> None:
        """Deletes what has been written of an image."""
        for kind in ENDINGS:
            self.path(name, kind).unlink(missing_ok=True)

    def staging(self, shard: tuple[int, int]) -> Path:
        """The folder where the files of a shard lie until they are complete."""
        return self.out / _JOURNALS / f"{shard[0]}-of-{shard[1]}"

    def fill(
        self,
        work: Work[Task, Any, Any],
        chunks: Sequence[Sequence[Task]],
        taxonomy: Taxonomy,
        shard: tuple[int, int] = (0, 1),
        workers: int | None = None,
        engine: Callable[..., Iterator[Outcome[Task]]] = run,
    ) -> Summary:
        """Does what is missing, and completes `predictions.json` if nothing is missing of other shards.

        Args:
            work: makes and writes predictions. Its records have "name", "stamp", "height", "width" and "segments_info".
            chunks: the images of this process.
            taxonomy: the classes of the predictions.
            shard: names the journal of this process.
            workers: see `pipeline.run`.
            engine: has the arguments of `pipeline.run`.

        Raises:
            DatasetError: another process works on this shard.
            OSError: a file cannot be written.
        """
        staging = self.staging(shard)
        name = staging.name
        total, skipped = sum(map(len, chunks)), []
        with only_process(self.out / _JOURNALS / f"{name}.lock", "works on this part of the predictions"):
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            staging.mkdir()
            there = self._results(self._valid)
            done = {task for chunk in chunks for task in chunk if task.file_name in there}
            bar = progress_bar(total, len(done), name if shard[1] > 1 else None)
            with Journal(self.out / _JOURNALS / f"{name}.jsonl") as journal, bar:
                for outcome in engine(work, chunks, done, workers):
                    task, record = outcome.key, outcome.record
                    if outcome.skipped:
                        bar.write(f"skipped: {outcome.skipped}", file=sys.stderr)
                        skipped.append((task.path, outcome.skipped))
                        self.remove(task.name)
                        record = {"name": task.name, "stamp": stamp_of(task.path), "skipped": outcome.skipped}
                    journal.append(task.file_name, record)
                    bar.update()
            staging.rmdir()
        return Summary(total - len(skipped), len(done), skipped, self._complete(taxonomy))

    def _valid(self, name: str, path: Path, record: dict[str, Any]) -> bool:
        """True for the record of a prediction that is there, of an image that has not changed."""
        return "skipped" not in record and self._current(name, path, record)

    def _current(self, name: str, path: Path, record: dict[str, Any]) -> bool:
        """True for a record as in `_valid`, also of an image that was skipped."""
        if record["name"] != name or record["stamp"] != stamp_of(path):
            return False
        return "skipped" in record or all(self.path(name, kind).is_file() for kind in self.kinds)

    def _results(self, accept: Callable[[str, Path, dict[str, Any]], bool]) -> dict[str, tuple[Path, int]]:
        """The journal, and the place of the record there, of each image whose record is accepted; predictions before skips."""
        images = {file: (name, path) for path, file, name in zip(self.inputs.paths, self.inputs.file_names, self.inputs.names, strict=True)}  # fmt: skip
        found: dict[str, tuple[Path, int]] = {}
        skipped: dict[str, tuple[Path, int]] = {}
        for journal in sorted((self.out / _JOURNALS).glob("*.jsonl")):
            for file, record, begin, _ in entries(journal):
                if file in images and accept(*images[file], record):
                    (skipped if "skipped" in record else found)[file] = journal, begin
        return {**skipped, **found}

    def _complete(self, taxonomy: Taxonomy) -> bool:
        """Writes the whole `predictions.json` and the formats, once every image has a result. False before."""
        with taking_turns(self.out / _JOURNALS / "lock"):
            found = self._results(self._current)
            if len(found) < len(self.inputs.file_names):
                return False
            self._write(found, taxonomy)
            self.write_formats()
        return True

    def _write(self, places: dict[str, tuple[Path, int]] | None = None, taxonomy: Taxonomy | None = None) -> None:
        info = {"run": self.run, "formats": self.formats}
        write_list(self.out / NAME, info, self.inputs, places, taxonomy)

    def write_formats(self) -> None:
        """Writes the finished predictions in each of `formats`.

        Raises:
            OSError: a file cannot be written.
        """
        if not self.formats:
            return
        from .labels.convert import write_labels
        from .labels.recognition import read_labels
        from .labels.structures import Request

        for name in self.formats:
            labels = read_labels(Request(self.out / NAME, self.inputs.folder), "coco-panoptic")
            write_labels(labels, name, self.out / name, self.inputs.folder, overwrite=True)
