"""W&B and MLflow, as small packages that write down what they are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError
from tests.conftest import train_until

WANDB = """
import json
from pathlib import Path
def init(**settings):
    if settings["project"] == "refused":
        raise RuntimeError("no account")
    return Run(settings)
class Run:
    def __init__(self, settings):
        self.id, self.file = settings["id"] or "first", Path(settings["dir"]) / "told.jsonl"
        self.tell("init", settings["project"], settings["name"], settings["resume"], settings["config"]["SOLVER.MAX_ITER"])
    def tell(self, *words):
        with self.file.open("a") as stream:
            stream.write(json.dumps(words) + "\\n")
    def log(self, values, step):
        if self.file.parent.name == "broken":
            raise OSError("the network is gone")
        self.tell("log", step, values)
    def finish(self, exit_code):
        self.tell("finish", exit_code)
"""
MLFLOW = """
import json, os, types
from .entities import Metric, Param
def tell(*words):
    with open(os.environ["MLFLOW_TRACKING_URI"], "a") as stream:
        stream.write(json.dumps(words) + "\\n")
class MlflowClient:
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name): return f"{name} 7"
    def create_run(self, experiment, run_name):
        tell("create", experiment, run_name)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    def update_run(self, run_id, status): tell("continue", run_id, status)
    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        tell("params", dict(map(list, params))) if params else tell("log", metrics[0].step, {m.key: m.value for m in metrics})
    def set_terminated(self, run_id, status): tell("end", run_id, status)
"""
ENTITIES = """
from collections import namedtuple
Metric, Param = namedtuple("Metric", "key value timestamp step"), namedtuple("Param", "key value")
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Both packages, made up, first on the path."""
    folder = tmp_path / "packages"
    (folder / "mlflow").mkdir(parents=True)
    (folder / "wandb.py").write_text(WANDB)
    (folder / "mlflow/__init__.py").write_text(MLFLOW)
    (folder / "mlflow/entities.py").write_text(ENTITIES)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlflow.jsonl"))
    for name in ("wandb", "mlflow", "mlflow.entities"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)


def told(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {row.pop("iteration"): row for row in rows}


ON = (
    "LOG.WANDB",
    "True",
    "LOG.MLFLOW",
    "True",
    "LOG.PROJECT",
    "mine",
    "DATASETS.TEST",
    "('miniworld_val@n4',)",
    "TEST.PICTURES",
    "0",
)


@pytest.mark.usefixtures("packages")
def test_trackers_are_told_what_metrics_json_has_and_a_resumed_run_is_one_run(mini_config, tmp_path):
    cfg = mini_config(*ON)
    folder = Path(cfg.OUTPUT_DIR)
    train_until(cfg, 3)
    assert json.loads((folder / "trackers.json").read_text()) == {"WANDB": "first", "MLFLOW": "r1"}
    DualStreamTrainer(cfg, resume=True).train()
    wandb, mlflow = told(folder / "told.jsonl"), told(tmp_path / "mlflow.jsonl")
    assert [w for w in wandb if w[0] != "log"] == [
        ["init", "mine", "run", None, 4], ["finish", 1], ["init", "mine", "run", "allow", 4], ["finish", 0],
    ]  # fmt: skip
    kinds = [m for m in mlflow if m[0] not in ("log", "params")]
    assert kinds == [
        ["create", "mine 7", "run"],
        ["end", "r1", "KILLED"],
        ["continue", "r1", "RUNNING"],
        ["end", "r1", "FINISHED"],
    ]
    parameters = {key: value for m in mlflow if m[0] == "params" for key, value in m[1].items()}
    assert parameters["SOLVER.MAX_ITER"] == "4"
    assert parameters["DATASETS.TEST"] == "['miniworld_val@n4']"
    for lines in (wandb, mlflow):
        assert {line[1]: line[2] for line in lines if line[0] == "log"} == scalars(folder)


@pytest.mark.usefixtures("packages")
def test_a_tracker_that_fails_during_training_is_a_warning(mini_config, tmp_path, caplog):
    cfg = mini_config("LOG.WANDB", "True", "OUTPUT_DIR", str(tmp_path / "broken"))
    DualStreamTrainer(cfg).train()
    assert "LOG.WANDB: the scalars of step 3 are lost: the network is gone" in caplog.text
    assert (tmp_path / "broken/model_final.pth").is_file()


@pytest.mark.usefixtures("packages")
def test_a_tracker_that_does_not_start_ends_the_run_before_its_first_step(mini_config):
    cfg = mini_config("LOG.WANDB", "True", "LOG.PROJECT", "refused")
    with pytest.raises(ConfigError, match=r"LOG\.WANDB Wandb does not start: no account\. WANDB_MODE=offline needs no"):
        DualStreamTrainer(cfg).train()
    assert not (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text()


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(mini_config, package, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=rf"LOG\.{package.upper()} needs .* pip install '\.\[{package}\]' in the checkout"
    ):
        DualStreamTrainer(mini_config(f"LOG.{package.upper()}", "True"))
