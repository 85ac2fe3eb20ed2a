"""The stages of a row in order: which `dearli` command makes each, and in which folder.

OUT/stages/PAPER/STAGE      what rows share, such as masks and warm-ups
OUT/ROW/training            the training of the row; a row with `run_of` has none of its own
OUT/ROW/evaluation          an evaluation with settings of its own, where the training's last one is not enough
OUT/ROW/official            the same for the published checkpoint
OUT/ROW/seed_3              training and evaluation of another seed; the stages before them are shared
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, WeightsError
from .papers import Experiment, Stage
from .settings import settings_of

OUT = Path("output/reproduce")
TRAINING, EVALUATION = "training", "evaluation"
SEED_FOLDER = "seed_"
# keys of the evaluation alone; a stage that rows share is not evaluated
_SCORING = ("DATASETS.TEST", "TEST.")


@dataclass(frozen=True)
class Step:
    """One stage of a row.

    Attributes:
        name: of the stage, or "training" or "evaluation".
        folder: where its product lies.
        command: words of `dearli`. A file of weights that is not here stands as `$(dearli weights path NAME)`.
        config: of a training or an evaluation, below `configs/`; "" for another command.
        pairs: keys and values that replace those of the config; OUTPUT_DIR is not among them.
        given: keys among them that earlier stages give.
        files: names in the list of weights that the command reads, and what stands for them in the command.
        product: a file or a folder that is there once the stage is finished.
        shared: rows share it.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    product: Path
    config: str = ""
    pairs: Mapping[str, str] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False

    @property
    def trains(self) -> bool:
        """True for a training, also for one that comes before the row's own."""
        return self.command[0] == "train"

    @property
    def line(self) -> str:
        """The command as a user types it."""
        return f"dearli {' '.join(_quoted(word) for word in self.command)}"

    @property
    def overrides(self) -> list[str]:
        """KEY VALUE pairs."""
        return [word for pair in self.pairs.items() for word in pair]


@dataclass(frozen=True)
class Choice:
    """Choices of a user for a run.

    Attributes:
        out: folder of all runs.
        num_gpus: of trainings and evaluations.
        overrides: KEY VALUE pairs for every stage that reads a config.
        official: evaluate the published checkpoint, train nothing.
        seed: of the row's training, in a folder of its own; None = that of the config.
    """

    out: Path = OUT
    num_gpus: int = 1
    overrides: tuple[str, ...] = ()
    official: bool = False
    seed: int | None = None


def folder_of(experiment: Experiment, choice: Choice) -> Path:
    """The folder of a row, with its result."""
    folder = choice.out / experiment.name
    if choice.official:
        return folder / "official"
    return folder if choice.seed is None else folder / f"{SEED_FOLDER}{choice.seed}"


def steps_of(experiment: Experiment, choice: Choice) -> list[Step]:
    """The stages of a row in order.

    Raises:
        ConfigError: the row cannot be run, a key is overridden that a stage gives, or a seed is chosen for a row without a training.
        WeightsError: the row has no published checkpoint to evaluate.
    """
    if not experiment.training.row.config:
        raise ConfigError(f"{experiment.name} cannot be run: {experiment.row.missing}")
    if choice.seed is not None and (choice.official or experiment.row.command or not trains(experiment)):
        raise ConfigError(f"--seed {choice.seed}: nothing is trained here, so there is no seed to choose")
    steps = _Steps(experiment, choice)
    if experiment.row.command and not choice.official:
        return [*map(steps.before, experiment.stages), steps.command()]
    if choice.official or not trains(experiment):
        return [steps.official()]
    found = [*map(steps.before, experiment.stages), steps.training()]
    if experiment.row.test:
        found.append(steps.evaluation(found[-1]))
    return found


def trains(experiment: Experiment) -> bool:
    """False for a row that evaluates published weights: its config has nothing to train on."""
    found = settings_of(experiment.training.row.config, experiment.overrides())
    return bool(found.get("DATASETS.TRAIN") or found.get("DATASETS.SOURCE"))


class _Steps:
    """Makes the steps of an experiment."""

    def __init__(self, experiment: Experiment, choice: Choice) -> None:
        self.experiment, self.choice = experiment, choice
        self.config = experiment.training.row.config
        self.own = pairs_of(choice.overrides)
        if "OUTPUT_DIR" in self.own:
            raise ConfigError("OUTPUT_DIR follows from the row; --out chooses the folder of all rows")
        if "SEED" in self.own:
            raise ConfigError(f"SEED is chosen by --seed {self.own['SEED']}, which gives each seed a folder of its own")
        self.seed = {} if choice.seed is None else {"SEED": str(choice.seed)}

    def before(self, stage: Stage) -> Step:
        """A stage that comes before the training."""
        folder = self._folder(stage)
        own = {key: value for key, value in self.own.items() if not key.startswith(_SCORING)}
        if stage.config:
            return self._training(stage.name, folder, stage.config, {**_texts(stage.set), **own}, stage.after)
        files = _Files()
        words = [word.format(out=folder, weights=files) for word in shlex.split(stage.command)]
        pairs = own if "--config-file" in words else {}
        return Step(stage.name, folder, (*words, *_flat(pairs)), folder, pairs=pairs, files=files.found, shared=True)

    def training(self) -> Step:
        """The row's own training, or that of the row whose training it evaluates."""
        experiment = self.experiment.training
        folder = folder_of(experiment, self.choice) / TRAINING
        pairs = {**pairs_of(experiment.overrides()), **self.own, **self.seed}
        return self._training(TRAINING, folder, self.config, pairs, experiment.row.after)

    def evaluation(self, training: Step) -> Step:
        """An evaluation of the training with overrides of its own."""
        return self._evaluation(str(training.product), self.experiment.overrides(evaluation=True), _Files())

    def command(self) -> Step:
        """The command of a row that has no training."""
        files, folder = _Files(), folder_of(self.experiment, self.choice) / EVALUATION
        folders = {stage.name: str(self._folder(stage)) for stage in self.experiment.stages}
        own = (word.format(weights=files, **folders) for word in shlex.split(self.experiment.row.command))
        pairs = {**pairs_of(self.experiment.overrides()), **self.own}
        words = (*own, "--config-file", f"configs/{self.config}", "--out", str(folder), *_flat(pairs))
        return Step(EVALUATION, folder, words, folder / "evaluation", self.config, pairs, files=files.found)

    def official(self) -> Step:
        """The evaluation of the published checkpoint."""
        name, files = self.experiment.checkpoint, _Files()
        if not name:
            raise WeightsError(f"{self.experiment.name}: the list of weights has no published checkpoint of this row")
        overrides = [
            word.format(weights=files) if "{weights:" in word else word
            for word in map(str, self.experiment.overrides(official=True))
        ]
        return self._evaluation(f"{files:{name}}", overrides, files)

    def _training(self, name: str, folder: Path, config: str, pairs: Mapping[str, str], after: Sequence[str]) -> Step:
        given = self._given(after)
        if both := given.keys() & self.own.keys():
            raise ConfigError(f"{', '.join(sorted(both))} cannot be overridden: an earlier stage gives it to {name}")
        pairs, product = {**pairs, **given}, folder / "model_final.pth"
        command = ("train", *self._common(config), "--resume", *_flat(pairs), "OUTPUT_DIR", str(folder))
        return Step(name, folder, command, product, config, pairs, tuple(given), shared=name != TRAINING)

    def _evaluation(self, weights: str, overrides: Sequence[str], files: _Files) -> Step:
        folder = folder_of(self.experiment, self.choice) / EVALUATION
        pairs = {**pairs_of(overrides), **self.own, **self.seed}
        command = ("eval", *self._common(self.config), "--weights", weights, *_flat(pairs), "OUTPUT_DIR", str(folder))
        return Step(EVALUATION, folder, command, folder / "evaluation", self.config, pairs, files=files.found)

    def _common(self, config: str) -> list[str]:
        gpus = ["--num-gpus", str(self.choice.num_gpus)] if self.choice.num_gpus != 1 else []
        return ["--config-file", f"configs/{config}", *gpus]

    def _folder(self, stage: Stage) -> Path:
        return self.choice.out / "stages" / self.experiment.paper.name / stage.folder

    def _given(self, names: Sequence[str]) -> dict[str, str]:
        """Keys that the stages `names` give to what comes right after them, with the files or folders."""
        stages = [stage for stage in self.experiment.stages if stage.name in names and stage.gives]
        folders = {stage.name: self._folder(stage) for stage in stages}
        return {
            stage.gives: str(folders[stage.name] / "model_final.pth" if stage.config else folders[stage.name])
            for stage in stages
        }


class _Files:
    """`{weights:NAME}` in a command: the file if it is here, else a command that finds it."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def __format__(self, name: str) -> str:
        from ..weight_list import path_of

        try:
            self.found[name] = str(path_of(name))
        except WeightsError:
            self.found[name] = f"$(dearli weights path {name})"
        return self.found[name]


def pairs_of(overrides: Sequence[Any]) -> dict[str, str]:
    """KEY VALUE pairs as texts by key. Raises `ConfigError` for a key without a value."""
    if len(overrides) % 2:
        raise ConfigError(f"overrides are KEY VALUE pairs; the last, {overrides[-1]!r}, has no value")
    return {str(key): str(value) for key, value in zip(overrides[::2], overrides[1::2], strict=True)}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _flat(pairs: Mapping[str, str]) -> list[str]:
    return [word for pair in pairs.items() for word in pair]


def _quoted(word: str) -> str:
    return word if word.startswith("$(") else shlex.quote(word)
