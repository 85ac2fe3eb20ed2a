"""The papers' tables: which config, stages and overrides give each figure.

A paper is a file `assets/papers/NAME.yaml`. Its rows have ids such as `ade20k/dear`, and a row has a figure for each column of
its table, such as a partition. Row and column together are one experiment: `dearli/ade20k/dear/1_128`.

    title, url, code, hardware:  texts
    seeds: 1                     training runs behind a printed figure
    spread: 0.5                  by how many points a run may differ, and
    spread_source: ...           why so many
    printed:                     hyper-parameters that the paper prints; SOLVER.EPOCHS is compared with the files of the config
      - source: "Sec. 4"
        rows: ["ade20k*"]        patterns of row ids; all rows where it is missing
        values: {SOLVER.MAX_ITER: 80000}
    deviations:                  the same form; `values` say what our configs have, and `why` says why
      - {source: "Sec. 4", printed: "0.1 to 2.0", values: {INPUT.SCALE_RANGE: [0.5, 2.0]}, why: "..."}
    stages:                      what comes before a training; rows share it
      warmup_b: {config: ade20k/warmup_convnext_b.yaml, after: [sam_ade20k], gives: MODEL.WEIGHTS}
      sam_ade20k:
        command: masks generate --dataset ade20k_panoptic_train --weights {weights:sam_vit_h} --out {out}
        gives: DATASETS.MASKS    key of the config that takes what the stage makes
      labels:                    a stage whose overrides say "{column}" is a stage of each column
        {config: ade20k/m2f_lang_convnext_b.yaml, set: {DATASETS.PARTITION: "{column}"}, gives: MODEL.WEIGHTS}
    tables:
      "1": Panoptic quality on ADE20K
    rows:
      ade20k/dear:
        table: {"1": "M2F-Lang + P_ENS (DEAR)"}     each table that prints the figures, and the row's name there
        config: ade20k/dear_convnext_b.yaml
        set: {SSL.EMA_RAMP: False}                   overrides of the config
        columns: DATASETS.PARTITION                  key that the columns set (default); a column "-" sets none
        after: [warmup_b]
        metric: panoptic/PQ                          of results.json; a list where a cell has several figures
        figures: {"1_128": 27.7, "1_64": 32.3}       a list where `metric` is one; null where the paper prints none
        spread: 1.5                                  in place of the paper's, where the row's figures scatter more
        checkpoint: dearli/ade20k/dear/{column}      published weights of the figure, in the list of weights
        official: {MODEL.TEXT.CLASS_NAMES: "{weights:dearli/class_names/ade20k}"}     overrides of their evaluation
      ade20k/dear/miou:
        run_of: ade20k/dear                          the same training, another evaluation of it
        test: {TEST.AMP: False}                      overrides of that evaluation
        metric: semantic/mIoU
        ...
      ade20k/zero_shot:
        config: ade20k/m2f_lang_convnext_b.yaml
        command: zero-shot --masks {sam_ade20k}      of `dearli`, in place of a training; see Row
        ...
      voc/unimatch:
        table: {"1": "UniMatch [74]"}
        missing: "another method, which this project does not have"       in place of a config
        metric: semantic/mIoU
        figures: ...
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..config.files import read_mapping
from ..errors import ConfigError
from ..files import beside_package

if TYPE_CHECKING:
    from detectron2.config import CfgNode

Figure = float | None
Made = TypeVar("Made")
NO_COLUMN = "-"
COLUMN = "{column}"
FOLDER = Path(__file__).parents[1] / "assets" / "papers"


@dataclass(frozen=True)
class Printed:
    """Hyper-parameters of rows.

    Attributes:
        source: place in the paper.
        values: config keys and their values.
        rows: patterns of row ids.
        printed: what the paper prints where our configs differ from it, and
        why: why they do.
    """

    source: str
    values: dict[str, Any]
    rows: tuple[str, ...] = ("*",)
    printed: str = ""
    why: str = ""


@dataclass(frozen=True)
class Stage:
    """Work that comes before a training and that rows share.

    Attributes:
        name: within the paper.
        command: arguments of `dearli`; `{out}` is the stage's folder, `{weights:NAME}` a file of the list of weights. It can be
            repeated after an interruption. Empty for a training.
        config: of a training, below `configs/`.
        set: overrides of the config.
        after: names of earlier stages.
        column: of the experiment that it belongs to; empty where it serves all.
        gives: key of the config of whatever comes after that takes the product: the folder, of a training its final weights.
    """

    name: str
    command: str = ""
    config: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    gives: str = ""
    column: str = ""

    @property
    def folder(self) -> str:
        """Name of its output folder, which no other stage of the paper has."""
        return "_".join(filter(None, (self.name, self.column)))

    def of_column(self, column: str) -> Stage:
        """The stage with `column` in the overrides that say "{column}"; itself where none does."""
        if COLUMN not in self.set.values():
            return self
        return replace(self, set={k: column if v == COLUMN else v for k, v in self.set.items()}, column=column)


@dataclass(frozen=True)
class Row:
    """A row of a table; see the module for the meaning of each attribute.

    The `command` of a row without a training takes `--config-file`, `--out` and KEY VALUE too, and writes what an evaluation writes.
    `{NAME}` is the folder of the stage NAME, `{weights:NAME}` a file of the list of weights.
    """

    name: str
    metric: tuple[str, ...]
    figures: dict[str, tuple[Figure, ...]]
    table: dict[str, str] = field(default_factory=dict)
    config: str = ""
    command: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    columns: str = "DATASETS.PARTITION"
    after: tuple[str, ...] = ()
    run_of: str = ""
    test: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    official: dict[str, Any] = field(default_factory=dict)
    spread: float | None = None
    missing: str = ""
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper with its tables."""

    name: str
    title: str
    url: str
    hardware: str
    spread: float
    spread_source: str
    tables: dict[str, str]
    rows: dict[str, Row]
    code: str = ""
    seeds: int = 1
    printed: tuple[Printed, ...] = ()
    deviations: tuple[Printed, ...] = ()
    stages: dict[str, Stage] = field(default_factory=dict)

    def experiments(self) -> Iterator[Experiment]:
        """All cells of all rows, also those that this project cannot run."""
        for row in self.rows.values():
            for column in row.figures:
                yield Experiment(self, row, column)


@dataclass(frozen=True)
class Experiment:
    """One column of one row."""

    paper: Paper
    row: Row
    column: str

    @property
    def name(self) -> str:
        """Such as `dearli/ade20k/dear/1_128`."""
        return "/".join((self.paper.name, self.row.name, *([] if self.column == NO_COLUMN else [self.column])))

    @property
    def figures(self) -> dict[str, Figure]:
        """Figures that the paper prints, by metric."""
        return dict(zip(self.row.metric, self.row.figures[self.column], strict=True))

    @property
    def spread(self) -> float:
        """Points by which a run may differ from the figures."""
        return self.paper.spread if self.row.spread is None else self.row.spread

    @property
    def training(self) -> Experiment:
        """The experiment whose training this one evaluates; often itself."""
        if not self.row.run_of:
            return self
        return Experiment(self.paper, self.paper.rows[self.row.run_of], self.column)

    @property
    def checkpoint(self) -> str:
        """Name of the published weights of this figure in the list of weights; "" where there are none."""
        return self.row.checkpoint.format(column=self.column)

    @property
    def stages(self) -> list[Stage]:
        """Stages before the training, in order."""
        return [stage.of_column(self.column) for stage in ordered(self.paper, self.training.row.after)]

    def overrides(self, evaluation: bool = False, official: bool = False) -> list[Any]:
        """KEY VALUE pairs, without those that stages give.

        Args:
            evaluation: those of the evaluation; False = of the training.
            official: of the evaluation of the published `checkpoint`. A value may be `{weights:NAME}`.
        """
        training = self.training
        values = dict(training.row.set)
        if self.column != NO_COLUMN:
            values[training.row.columns] = self.column
        if evaluation or official:
            values |= self.row.test
        if official:
            values |= self.row.official
        return [item for pair in values.items() for item in pair]

    def config(self, overrides: Sequence[Any] = (), evaluation: bool = False) -> CfgNode:
        """The resolved config, further `overrides` last. Raises `ConfigError`."""
        from ..config import get_config

        if not self.training.row.config:
            raise ConfigError(f"{self.name} cannot be run: {self.row.missing}")
        path = beside_package("configs") / self.training.row.config
        return get_config(str(path), [*self.overrides(evaluation), *overrides])

    def printed(self) -> list[Printed]:
        """Hyper-parameters that the paper prints for this row."""
        return _of_row(self.paper.printed, self.training.row.name)

    def deviations(self) -> list[Printed]:
        """Places where the config differs from the paper."""
        return _of_row(self.paper.deviations, self.training.row.name)


def ordered(paper: Paper, names: Sequence[str]) -> list[Stage]:
    """Stages with all that they need, each before what needs it."""
    found: dict[str, Stage] = {}
    for name in names:
        stage = paper.stages[name]
        found |= {earlier.name: earlier for earlier in ordered(paper, stage.after)}
        found[name] = stage
    return list(found.values())


def _of_row(entries: Sequence[Printed], row: str) -> list[Printed]:
    return [entry for entry in entries if any(fnmatchcase(row, pattern) for pattern in entry.rows)]


# ------------------------------------------------------------------------------------------ finding


def papers() -> dict[str, Paper]:
    """All papers by name."""
    return {path.stem: read_paper(path) for path in sorted(FOLDER.glob("*.yaml"))}


def experiments() -> dict[str, Experiment]:
    """All experiments by name."""
    return {experiment.name: experiment for paper in papers().values() for experiment in paper.experiments()}


def find(name: str) -> Experiment:
    """The experiment of that name. Raises `ConfigError`, with the nearest names, where there is none."""
    known = experiments()
    if name not in known:
        below = [other for other in known if other.startswith(name.rstrip("/") + "/")]
        near = below or difflib.get_close_matches(name, known, 4)
        hint = f"did you mean {', '.join(near[:6])}{' ...' if len(near) > 6 else ''}? " if near else ""
        raise ConfigError(f"there is no row {name!r}; {hint}`dearli reproduce list` shows all")
    return known[name]


# ------------------------------------------------------------------------------------------ reading


@lru_cache
def read_paper(path: Path) -> Paper:
    """A paper's file.

    Raises:
        ConfigError: an unknown or missing key, or a name that nothing has, with its place.
    """
    content = read_mapping(path)
    content["name"] = path.stem
    content["rows"] = {name: _row(path, name, row) for name, row in content.get("rows", {}).items()}
    content["stages"] = {name: _stage(path, name, stage) for name, stage in content.get("stages", {}).items()}
    for key in ("printed", "deviations"):
        entries = enumerate(content.get(key, ()), start=1)
        content[key] = tuple(_make(Printed, f"{path}: {key}, entry {i}", entry) for i, entry in entries)
    paper = _make(Paper, str(path), content)
    _check(path, paper)
    return paper


def _stage(path: Path, name: str, content: Mapping[str, Any]) -> Stage:
    stage = _make(Stage, f"{path}: stages: {name}", {"name": name, **content})
    if bool(stage.command) == bool(stage.config):
        raise ConfigError(f"{path}: stages: {name}: give a command or a config")
    return stage


def _row(path: Path, name: str, content: Mapping[str, Any]) -> Row:
    place = f"{path}: rows: {name}"
    content = {"name": name, **content}
    metric = content.get("metric", ())
    content["metric"] = (metric,) if isinstance(metric, str) else tuple(metric)
    figures = content.get("figures", {})
    bare = [key for key in figures if not isinstance(key, str)]
    if bare:
        raise ConfigError(f"{place}: the columns {bare} need quotes; YAML reads 1_8 as the number 18")
    content["figures"] = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in figures.items()}
    row = _make(Row, place, content)
    if sum(map(bool, (row.config, row.run_of, row.missing))) != 1:
        raise ConfigError(f"{place}: give one of config, run_of and missing")
    if row.command and not row.config:
        raise ConfigError(f"{place}: the command needs a config")
    if not row.figures or not row.metric:
        raise ConfigError(f"{place}: metric or figures are missing")
    wrong = [column for column, values in row.figures.items() if len(values) != len(row.metric)]
    if wrong:
        raise ConfigError(f"{place}: {len(row.metric)} metrics, but another number of figures in {', '.join(wrong)}")
    return row


def _make(kind: type[Made], place: str, content: Mapping[str, Any]) -> Made:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ConfigError(f"{place}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    content = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    try:
        return kind(**content)
    except TypeError as error:
        raise ConfigError(f"{place}: {str(error).partition('__init__() ')[2]}") from error


def _check(path: Path, paper: Paper) -> None:
    """Names that rows and stages use exist."""
    wanted = [
        (f"rows: {row.name}: {key}", name, known)
        for row in paper.rows.values()
        for key, names, known in (
            ("after", row.after, paper.stages),
            ("run_of", [row.run_of] if row.run_of else [], paper.rows),
            ("table", list(row.table), paper.tables),
        )
        for name in names
    ]
    wanted += [(f"stages: {s.name}: after", name, paper.stages) for s in paper.stages.values() for name in s.after]
    for place, name, known in wanted:
        if name not in known:
            raise ConfigError(f"{path}: {place}: there is no {name!r}; known are {', '.join(known)}")
    for row in paper.rows.values():
        other = paper.rows.get(row.run_of)
        absent = [column for column in row.figures if other and column not in other.figures]
        if absent or (other and not other.config):
            raise ConfigError(
                f"{path}: rows: {row.name}: {row.run_of} has no training of {', '.join(absent) or 'its own'}"
            )
