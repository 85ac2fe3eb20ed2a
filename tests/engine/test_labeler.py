"""The trainer and a labeler of another kind: what it asks of it, and when."""

from __future__ import annotations

import pytest
import torch

from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError
from dearli_d2.modeling.labeler import Labeler
from dearli_d2.modeling.segmenter import Segmenter
from dearli_d2.structures import Targets


class Constant(Labeler):
    """Says that every image shows class 3 and nothing else; counts what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def label(self, weak):
        self.calls.append(("label", len(weak)))
        size = weak[0]["image"].shape[-2:]
        return {"targets": [Targets(torch.tensor([3]), torch.ones(1, *size).bool()) for _ in weak]}

    def follow(self, student, step):
        self.calls.append(("follow", step))

    def state_dict(self):
        return {"calls": len(self.calls)}

    def load_state_dict(self, state):
        self.calls = [("before",)] * state["calls"]


@pytest.fixture
def constant(monkeypatch):
    """Every model declares that a `Constant` labels its images."""
    monkeypatch.setattr(Segmenter, "labeler", lambda self, cfg: Constant())


def test_the_labeler_of_a_model_labels_before_each_step_and_follows_after_it(ssl_config, constant):
    options = "SOLVER.MAX_ITER", "3", "SSL.START", "1", "SSL.CUTMIX", "0.0"
    trainer = DualStreamTrainer(ssl_config(*options))
    assert trainer.teacher is None
    trainer.train()
    expected = [("follow", 0), ("label", 2), ("follow", 1), ("label", 2), ("follow", 2)]
    assert trainer.labeler.calls == expected
    assert [x["targets"].labels.tolist() for x in trainer.batch["unlabeled"]] == [[3], [3]]
    resumed = DualStreamTrainer(ssl_config(*options), resume=True)
    assert len(resumed.labeler.calls) == len(expected)  # its state is in the checkpoint


def test_a_labeler_does_not_follow_a_step_that_was_skipped(ssl_config, constant, monkeypatch):
    trainer = DualStreamTrainer(ssl_config("SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0"))
    original = trainer.student.losses
    monkeypatch.setattr(
        trainer.student, "losses", lambda *args: {k: v * float("nan") for k, v in original(*args).items()}
    )
    trainer.train()
    assert trainer.labeler.calls == [("label", 2)]
    assert trainer.guard.bad_steps == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("TEST.WEIGHTS", "both"), "TEST.WEIGHTS is both but this model has no teacher"),
        (("SSL.TEACHER_WEIGHTS", "weights.pth"), "has no EMA teacher: SSL.TEACHER_WEIGHTS must be empty"),
    ],
)
def test_a_teacher_that_no_labeler_gives_cannot_be_asked_for(ssl_config, constant, tmp_path, overrides, message):
    (tmp_path / "weights.pth").write_bytes(b"")
    overrides = [str(tmp_path / v) if v.endswith(".pth") else v for v in overrides]
    with pytest.raises(ConfigError, match=message):
        DualStreamTrainer(ssl_config(*overrides))
