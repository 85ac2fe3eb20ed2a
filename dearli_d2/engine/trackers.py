"""W&B and MLflow: the scalars of `metrics.json` go there too, where LOG.WANDB and LOG.MLFLOW ask for it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import time
from abc import abstractmethod
from collections import defaultdict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..errors import ConfigError
from ..files import parse_json, write_json
from .resume import leaves

logger = logging.getLogger(__name__)

_PACKAGES = {"WANDB": "wandb", "MLFLOW": "mlflow"}  # and extras of this package
_NOTE = "trackers.json"  # in OUTPUT_DIR: the runs that a resumed training continues
_PARAMETERS = 100  # that MLflow takes at once
_LONGEST = 500  # characters of a parameter of MLflow


def check_trackers(cfg: CfgNode) -> None:
    """Raises `ConfigError`, with the command to install it, if a package is missing that the config asks for."""
    for key, package in _PACKAGES.items():
        if cfg.LOG[key] and importlib.util.find_spec(package) is None:
            raise ConfigError(f"LOG.{key} needs the package {package}: pip install '.[{package}]' in the checkout")


def build_trackers(cfg: CfgNode, resumed: bool, window: int) -> list[Tracker]:
    """The trackers that the config asks for; those of a resumed run continue where it was interrupted.

    Args:
        cfg: the section LOG, OUTPUT_DIR, and everything as parameters of the run.
        resumed: whether steps are done already.
        window: steps whose median a value is.

    Raises:
        ConfigError: a tracker cannot start.
    """
    path = Path(cfg.OUTPUT_DIR) / _NOTE
    noted = _read(path) if resumed else {}
    trackers: list[Tracker] = []
    for key, kind in (("WANDB", WandbTracker), ("MLFLOW", MLflowTracker)):
        if not cfg.LOG[key]:
            continue
        try:
            trackers.append(kind(cfg, noted.get(key), window))
        except Exception as error:  # these packages have many of their own
            raise ConfigError(f"LOG.{key} {kind.__name__[:-7]} does not start: {error}. {kind.advice}") from error
    if trackers:
        write_json(path, noted | {tracker.key: tracker.identity for tracker in trackers})
    return trackers


def _read(path: Path) -> dict[str, str]:
    try:
        note = parse_json(path.read_text()) if path.is_file() else {}
    except ValueError:
        note = None
    if not isinstance(note, dict):
        logger.warning("%s is damaged: the trackers begin new runs", path)
        return {}
    return note


class Tracker(EventWriter):
    """Passes new scalars of the event storage on. What cannot be passed on is a warning; training continues.

    Args:
        cfg: of the run.
        identity: of the tracker's run to continue; None = a new one.
        window: steps whose median a value is.

    Attributes:
        identity: of the tracker's run.
    """

    key: str
    advice: str

    def __init__(self, cfg: CfgNode, identity: str | None, window: int) -> None:
        self.window, self.total = window, cfg.SOLVER.MAX_ITER
        self._last_write = -1  # the name that detectron2's writers have for it
        self.identity = self.start(cfg, identity)

    @abstractmethod
    def start(self, cfg: CfgNode, identity: str | None) -> str:
        """Starts or continues the tracker's run; returns its identity."""

    @abstractmethod
    def send(self, step: int, values: dict[str, float]) -> None:
        """Passes on the scalars of a step, which counts from 0 as in `metrics.json`."""

    @abstractmethod
    def end(self, complete: bool) -> None:
        """Ends the tracker's run, which training has finished or not."""

    def write(self) -> None:
        """Passes on what is new since the last call."""
        found: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(self.window).items():
            if step > self._last_write:
                found[step][name] = float(value)
        for step in sorted(found):
            try:
                self.send(step, found[step])
            except Exception as error:
                logger.warning("LOG.%s: the scalars of step %d are lost: %s", self.key, step, error)
            self._last_write = step

    def close(self) -> None:
        """Ends the tracker's run."""
        try:
            self.end(self._last_write + 1 >= self.total)
        except Exception as error:
            logger.warning("LOG.%s: the run was not closed: %s", self.key, error)


class WandbTracker(Tracker):
    """Weights & Biases. WANDB_MODE=offline writes to OUTPUT_DIR/wandb alone."""

    key = "WANDB"
    advice = "WANDB_MODE=offline needs no account and no network"

    def start(self, cfg: CfgNode, identity: str | None) -> str:
        self.run = importlib.import_module("wandb").init(
            project=cfg.LOG.PROJECT,
            name=Path(cfg.OUTPUT_DIR).name,
            dir=cfg.OUTPUT_DIR,
            config=leaves(cfg),
            id=identity,
            resume="allow" if identity else None,
        )
        return str(self.run.id)

    def send(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def end(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)


class MLflowTracker(Tracker):
    """MLflow. MLFLOW_TRACKING_URI says where to: a server, or a folder or a data base of this machine."""

    key = "MLFLOW"
    advice = (
        "MLFLOW_TRACKING_URI says where it writes: to a server, or with the whole package mlflow to sqlite:///mlflow.db"
    )

    def start(self, cfg: CfgNode, identity: str | None) -> str:
        mlflow = importlib.import_module("mlflow")
        self.entities, self.client = importlib.import_module("mlflow.entities"), mlflow.MlflowClient()
        if identity:
            self.run_id = identity
            self.client.update_run(identity, status="RUNNING")
            return identity
        experiment = self.client.get_experiment_by_name(cfg.LOG.PROJECT)
        place = experiment.experiment_id if experiment else self.client.create_experiment(cfg.LOG.PROJECT)
        self.run_id = str(self.client.create_run(place, run_name=Path(cfg.OUTPUT_DIR).name).info.run_id)
        parameters = [self.entities.Param(name, str(value)[:_LONGEST]) for name, value in leaves(cfg).items()]
        for first in range(0, len(parameters), _PARAMETERS):
            self.client.log_batch(self.run_id, params=parameters[first : first + _PARAMETERS])
        return self.run_id

    def send(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        # MLflow refuses names with other characters, such as that of a data set's part
        names = {name: re.sub(r"[^\w\-. /]", "_", name) for name in values}
        metrics = [self.entities.Metric(names[name], value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def end(self, complete: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if complete else "KILLED")
