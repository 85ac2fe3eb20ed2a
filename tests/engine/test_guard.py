"""The guard against bad steps: what is bad, what is counted, when training stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dearli_d2.engine.guard import BadStepGuard
from dearli_d2.errors import TrainingError

NAMES = ["loss_a", "loss_b"]
GOOD, BAD = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
NORM, HUGE = torch.tensor(0.5), torch.tensor(float("inf"))


def guard(limit: int = 2, scaling: bool = False) -> tuple[BadStepGuard, list[int]]:
    saved: list[int] = []
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaling)
    return BadStepGuard(limit, scaler, lambda done: saved.append(done) or Path("bad_step.pth")), saved


def test_a_good_step_gives_its_scalars_and_ends_the_count():
    own, saved = guard()
    assert own.step(3, NAMES, BAD, NORM, ["a.jpg"]) is None
    assert own.bad_steps == 1
    scalars = own.step(4, NAMES, GOOD, NORM, ["a.jpg"])
    assert scalars == {"total_loss": 3.0, "grad_norm": 0.5, "loss_a": 1.0, "loss_b": 2.0}
    assert (own.bad_steps, saved) == (0, [])


def test_a_bad_loss_is_named_with_the_files_of_the_step(caplog):
    own, _ = guard()
    assert own.step(7, NAMES, BAD, NORM, ["a.jpg", "b.jpg"]) is None
    assert "step skipped (1 in a row). iteration 7: losses not finite: loss_b; files: a.jpg, b.jpg" in caplog.text


def test_an_infinite_norm_is_bad_unless_losses_are_scaled(caplog):
    own, _ = guard()
    assert own.step(0, NAMES, GOOD, HUGE, ["a.jpg"]) is None
    assert "gradient norm is inf; files: a.jpg" in caplog.text
    scaled, _ = guard(scaling=True)
    assert scaled.step(0, NAMES, GOOD, HUGE, ["a.jpg"])["total_loss"] == 3.0


def test_a_bad_loss_lowers_the_scale_of_the_losses():
    own, _ = guard(scaling=True)
    own.scaler.scale(torch.zeros(()))  # makes the scale
    own.step(0, NAMES, BAD, NORM, [])
    assert own.scaler.get_scale() == 512.0


def test_training_stops_after_the_limit_with_the_state_saved():
    own, saved = guard(limit=2)
    for step in range(2):
        assert own.step(step, NAMES, BAD, NORM, ["a.jpg"]) is None
    with pytest.raises(
        TrainingError, match=r"3 steps in a row .*iteration 2: .* files: a.jpg. The state is in bad_step.pth"
    ):
        own.step(2, NAMES, BAD, NORM, ["a.jpg"])
    assert saved == [2]


def test_the_count_goes_on_after_a_resume_and_is_0_in_files_that_lack_it():
    own, _ = guard()
    own.step(0, NAMES, BAD, NORM, [])
    other, _ = guard()
    other.load_state_dict({"model": {}, **own.state_dict()})
    assert other.bad_steps == 1
    other.load_state_dict({"model": {}})
    assert other.bad_steps == 0
