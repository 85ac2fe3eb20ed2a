"""Every row of the papers' tables resolves to a config that has the hyper-parameters that the paper prints."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatchcase

import click
import pytest
import yaml

from dearli_d2.cli import dearli
from dearli_d2.cli.base import Group
from dearli_d2.config import get_config
from dearli_d2.data.catalog import source_of
from dearli_d2.data.class_names import class_table
from dearli_d2.errors import ConfigError
from dearli_d2.files import beside_package
from dearli_d2.reproduction import experiments, find, papers
from dearli_d2.reproduction.papers import read_paper
from dearli_d2.reproduction.settings import settings_of
from tests.experiments import header_of

ALL = experiments()
RUNS = {name: e for name, e in ALL.items() if e.training.row.config}
STAGES = {f"{e.paper.name}-{s.folder}": s for e in ALL.values() if not e.row.missing for s in e.stages}
COMMANDS = {name: stage.command for name, stage in STAGES.items() if stage.command}
COMMANDS |= {
    name: f"{e.row.command} --config-file configs/{e.row.config} --out {{out}}"
    for name, e in ALL.items()
    if e.row.command
}
EPOCHS = "SOLVER.EPOCHS"  # the resolved config has steps in its place
WITHOUT_OVERRIDES = [row for paper in papers().values() for row in paper.rows.values() if row.config and not row.set]


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg


@pytest.mark.parametrize("name", RUNS)
def test_a_row_has_the_values_that_its_paper_prints(name):
    experiment = RUNS[name]
    cfg = experiment.config(["MODEL.DEVICE", "cpu"])
    files = settings_of(experiment.training.row.config, experiment.overrides())
    for entry in (*experiment.printed(), *experiment.deviations()):
        found = {key: files[key] if key == EPOCHS else value_of(cfg, key) for key in entry.values}
        wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in entry.values.items()}
        assert found == wanted, entry.source
    assert cfg.DATASETS.TEST
    experiment.config(["MODEL.DEVICE", "cpu"], evaluation=True)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_gives_a_key_that_exists(stage):
    assert stage.gives in ("", "MODEL.WEIGHTS", "SSL.TEACHER_WEIGHTS", "DATASETS.MASKS", "MODEL.SPLIT.REGIONS.CACHE")
    if stage.config:
        pairs = [item for pair in stage.set.items() for item in pair]
        get_config(str(beside_package("configs") / stage.config), pairs)


class Placeholder:
    def __format__(self, name):
        return f"file_of_{name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_one_of_the_command_line(name):
    paper = papers()[name.partition("-" if name in STAGES else "/")[0]]
    words = shlex.split(
        COMMANDS[name].format(out="out", weights=Placeholder(), **dict.fromkeys(paper.stages, "folder"))
    )
    command, context = dearli, click.Context(dearli)
    while isinstance(command, Group):
        _, command, words = command.resolve_command(context, words)
    values = command.make_context(name, list(words)).params
    if "config_file" in values:
        assert get_config(values["config_file"], [*values["overrides"], "MODEL.DEVICE", "cpu"]).DATASETS.TEST


def test_every_stage_comes_before_a_row():
    for paper in papers().values():
        used = {s.name for e in paper.experiments() if not e.row.missing for s in e.stages}
        assert used == set(paper.stages), paper.name


def test_a_stage_of_a_column_has_its_partition_and_a_folder_of_its_own():
    stages = {part: find(f"dearli/ade20k/dear_labels_init/{part}").stages for part in ("1_128", "1_8")}
    assert [s.folder for (s,) in stages.values()] == ["labels_ade20k_1_128", "labels_ade20k_1_8"]
    assert [s.set["DATASETS.PARTITION"] for (s,) in stages.values()] == ["1_128", "1_8"]
    assert len({s.folder for part in stages for s in find(f"dearli/ade20k/{part}").stages}) == 2  # of all columns


@pytest.mark.parametrize("config", sorted({row.config for row in WITHOUT_OVERRIDES}))
def test_the_header_of_a_config_has_the_figures_of_a_row(config):
    header = header_of(beside_package("configs") / config)
    table = re.findall(r"^#   (\S+) +\d+ +(\d+\.\d)$", header, re.MULTILINE)
    table += [("-", figure) for figure in re.findall(r"[hsu]IoU (\d+\.\d)", header)]
    figures = {
        (part, f)
        for row in WITHOUT_OVERRIDES
        if row.config == config
        for part in row.figures
        for f in row.figures[part]
    }
    assert {(part, float(figure)) for part, figure in table} <= figures


def test_published_weights_are_evaluated_with_their_own_class_names():
    experiment = find("dearli/coco_objects/dear/1_512")
    key = experiment.overrides(official=True).index("MODEL.TEXT.CLASS_NAMES")
    assert experiment.overrides(official=True)[key + 1] == "{weights:dearli/class_names/coco_objects}"
    assert "MODEL.TEXT.CLASS_NAMES" not in experiment.overrides(evaluation=True)
    assert experiment.checkpoint == "dearli/coco_objects/dear/1_512"


def test_every_table_has_rows_and_every_deviation_a_reason():
    for paper in papers().values():
        used = {table for row in paper.rows.values() for table in row.table}
        assert used == set(paper.tables), paper.name
        assert all(entry.why and entry.printed for entry in paper.deviations), paper.name


def test_every_entry_is_about_a_row():
    for paper in papers().values():
        rows = list(paper.rows)
        for entry in (*paper.printed, *paper.deviations):
            assert [p for p in entry.rows if not any(fnmatchcase(row, p) for row in rows)] == [], entry


def test_a_metric_of_a_class_has_a_name_of_the_data_set():
    for experiment in RUNS.values():
        of_class = {metric.split("/", 2)[2] for metric in experiment.row.metric if metric.count("/") == 2}
        if of_class:
            (test,) = experiment.config(["MODEL.DEVICE", "cpu"]).DATASETS.TEST
            assert of_class <= {entry.names[0] for entry in class_table(source_of(test).classes)}, experiment.name


def test_stages_come_in_order():
    assert [stage.name for stage in find("miniworld/dearli").stages] == ["masks", "warmup"]


def test_an_unknown_row_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=re.escape("dearli/ade20k/1_128")):
        find("dearli/ade20k/1_127")
    with pytest.raises(ConfigError, match=re.escape("dearli/ade20k/1_64")):
        find("dearli/ade20k")


GOOD = {
    "title": "t", "url": "u", "hardware": "h", "spread": 1.0, "spread_source": "s", "tables": {"1": "c"},
    "stages": {"s": {"command": "masks", "gives": "DATASETS.MASKS"}},
    "rows": {"r": {"table": {"1": "r"}, "config": "c.yaml", "metric": "m", "figures": {"a": 1.0}, "after": ["s"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("rows", "r", "after"), ["x"], "rows: r: after: there is no 'x'"),
        (("rows", "r", "table"), {"9": "r"}, "rows: r: table: there is no '9'"),
        (("rows", "r", "run_of"), "r", "give one of config, run_of and missing"),
        (("rows", "r", "figures"), {"a": [1.0, 2.0]}, "1 metrics, but another number of figures in a"),
        (("rows", "r", "figures"), {18: 1.0}, "need quotes"),
        (("rows", "r", "colums"), "K", "unknown key colums"),
        (("stages", "s", "config"), "c.yaml", "give a command or a config"),
        (("stages", "s", "after"), ["q"], "stages: s: after: there is no 'q'"),
        (("titel",), "x", "unknown key titel"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(tmp_path, place, value, message):
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_paper(path)
