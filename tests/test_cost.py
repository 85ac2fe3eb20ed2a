"""What a training costs, before it is run."""

from __future__ import annotations

import pytest

from dearli_d2.config import get_config
from dearli_d2.errors import ConfigError
from dearli_d2.rehearsal import rehearse
from dearli_d2.reproduction.cost import (
    MEASURED_CONFIG,
    MEASURED_GIB,
    MEASURED_OPERATIONS,
    MEASURED_SECONDS,
    PEAKS,
    cost_of,
)
from tests.experiments import CONFIGS, EXPERIMENTS, name_of


def test_hours_are_operations_at_the_measured_rate_and_both_phases_count(mini_config):
    options = ["SOLVER.MAX_ITER", "100", "SSL.START", "40", "SSL.IMS_PER_BATCH", "2"]
    cfg = mini_config(*options, file="ssl.yaml")
    cost = cost_of(cfg)
    early, late = rehearse(cfg, unlabeled=False), rehearse(cfg)
    assert early.operations < late.operations
    assert cost.operations == 40 * early.operations + 60 * late.operations
    assert cost.hours["H200"] == pytest.approx(cost.operations / MEASURED_OPERATIONS * MEASURED_SECONDS / 3600)
    assert cost.hours["A100"] == pytest.approx(cost.hours["H200"] * PEAKS["H200"] / PEAKS["A100"])
    assert cost.gpu_gib == late.peak / 2**30
    assert cost.source.startswith("estimated")


def test_a_config_that_trains_nothing_costs_nothing(mini_config):
    cost = cost_of(mini_config("DATASETS.TRAIN", "()"))
    assert (cost.operations, set(cost.hours.values()), cost.step.images) == (0, {0.0}, 0)


def test_a_batch_that_training_refuses_has_no_cost(mini_config):
    with pytest.raises(ConfigError, match="needs two unlabelled images"):
        cost_of(mini_config("SSL.IMS_PER_BATCH", "1", file="ssl.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.parent.name not in ("custom", "miniworld")], ids=name_of)
def test_every_config_has_a_cost(path):
    cost = cost_of(get_config(path, ["MODEL.DEVICE", "cpu"]))
    assert cost.step.trainable > 0
    assert (cost.operations > 0) == (cost.step.images > 0)
    assert cost.gpu_gib * 2**30 > cost.step.fixed * 0.99


@pytest.mark.slow
def test_the_step_that_was_timed_has_the_operations_on_record():
    cfg = get_config(CONFIGS / MEASURED_CONFIG)
    assert rehearse(cfg).operations == pytest.approx(MEASURED_OPERATIONS, rel=0.01)
    cost = cost_of(cfg)
    assert cost.seconds_per_step["H200"] == pytest.approx(MEASURED_SECONDS, rel=0.01)
    assert cost.gpu_gib == MEASURED_GIB
    assert "measured" in cost.source
