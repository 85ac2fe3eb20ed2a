"""Every row of the papers' tables resolves to a config that has the hyper-parameters that the paper prints."""

from __future__ import annotations

import re

import pytest
import yaml

from dearli_d2.config import get_config
from dearli_d2.errors import ConfigError
from dearli_d2.files import beside_package
from dearli_d2.reproduction import experiments, find, papers
from dearli_d2.reproduction.papers import read_paper

ALL = experiments()
RUNS = {name: e for name, e in ALL.items() if e.training.row.config}
STAGES = [(paper, stage) for paper in papers().values() for stage in paper.stages.values()]


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg


@pytest.mark.parametrize("name", RUNS)
def test_a_row_has_the_values_that_its_paper_prints(name):
    experiment = RUNS[name]
    cfg = experiment.config(["MODEL.DEVICE", "cpu"])
    for entry in (*experiment.printed(), *experiment.deviations()):
        found = {key: value_of(cfg, key) for key in entry.values}
        wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in entry.values.items()}
        assert found == wanted, entry.source
    assert cfg.DATASETS.TEST
    experiment.config(["MODEL.DEVICE", "cpu"], evaluation=True)


@pytest.mark.parametrize(("paper", "stage"), STAGES, ids=[f"{p.name}-{s.name}" for p, s in STAGES])
def test_a_stage_gives_a_key_that_exists(paper, stage):
    assert stage.gives in ("", "MODEL.WEIGHTS", "SSL.TEACHER_WEIGHTS", "DATASETS.MASKS", "MODEL.SPLIT.REGIONS.CACHE")
    if stage.config:
        pairs = [item for pair in stage.set.items() for item in pair]
        get_config(str(beside_package("configs") / stage.config), pairs)


def test_every_table_has_rows_and_every_deviation_a_reason():
    for paper in papers().values():
        used = {table for row in paper.rows.values() for table in row.table}
        assert used == set(paper.tables), paper.name
        assert all(entry.why and entry.printed for entry in paper.deviations), paper.name


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
