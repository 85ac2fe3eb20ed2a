"""The content of a checkpoint: the same keys in every version, and files of earlier versions are resumed from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dearli_d2.engine.checkpoints import RunCheckpoints
from dearli_d2.engine.state import RunState
from dearli_d2.engine.trainer import DualStreamTrainer


class Part:
    def __init__(self, state: dict) -> None:
        self.state = state

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def test_parts_have_keys_of_their_own_and_records_lie_at_the_top():
    parts = {"optimizer": Part({"lr": 1}), "scaler": Part({}), "teacher": Part({})}
    record, student = Part({"best": 3.0}), torch.nn.Linear(1, 1)
    content = RunState(student, parts, [record], {"config": "SEED: 0"}).at(5)
    assert set(content) == {
        "model",
        "iteration",
        "optimizer",
        "scaler",
        "best",
        "config",
    }  # an empty teacher is left out
    assert (content["optimizer"], content["scaler"], content["best"], content["iteration"]) == ({"lr": 1}, {}, 3.0, 5)
    others = {name: Part({}) for name in ("optimizer", "scheduler")} | {"teacher": Part({"kept": 1})}
    RunState(student, others, [], {}).restore(content)
    assert others["optimizer"].state == {"lr": 1}
    assert others["teacher"].state == {"kept": 1}  # not in the file: it stays as it is


def earlier_content(trainer: DualStreamTrainer, done: int, early: bool) -> dict:
    """A checkpoint as earlier versions wrote it, each entry by hand; `early`: before scalars, data and bad steps were saved."""
    content = {
        "model": trainer.student.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "iteration": done,
        "best": 12.5,
        "config": trainer.cfg.dump(),
        "taxonomy": trainer.student.taxonomy.to_json(),
        "teacher": {"model": trainer.teacher.own_state(), "updates": trainer.teacher.updates},
    }
    if not early:
        content |= {"bad_steps": 1, "data": {}, "recent": {"lr": {"smooth": False, "values": [[0.25, done - 1]]}}}
    return content


@pytest.mark.parametrize("early", [False, True])
def test_a_checkpoint_of_an_earlier_version_is_resumed_from_bit_by_bit(ssl_config, tmp_path, early):
    def config(name: str):
        options = "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SSL.EMA_DECAY", "0.5", "SSL.BURN_IN", "1"
        return ssl_config(*options, "OUTPUT_DIR", str(tmp_path / name))

    whole = DualStreamTrainer(config("whole"))
    step, files = whole.run_step, RunCheckpoints(tmp_path / "resumed", 1)
    files.folder.mkdir()

    def run_step() -> None:
        step()
        if whole.iter == 1:
            files.save("model_0000002", earlier_content(whole, 2, early))

    whole.run_step = run_step
    whole.train()
    resumed = DualStreamTrainer(config("resumed"), resume=True)
    assert (resumed.start_iter, resumed.teacher.updates, resumed.guard.bad_steps) == (2, 2, 0 if early else 1)
    assert ("lr" in resumed.storage.histories()) is not early
    resumed.train()
    names = set(earlier_content(resumed, 4, early=False))
    a, b = (torch.load(Path(tmp_path) / n / "model_final.pth", weights_only=True) for n in ("whole", "resumed"))
    assert set(a) == set(b) == names
    for part in (lambda x: x["model"], lambda x: x["teacher"]["model"]):
        assert all(torch.equal(tensor, part(b)[name]) for name, tensor in part(a).items())
    assert a["scheduler"] == b["scheduler"]
    assert a["teacher"]["updates"] == b["teacher"]["updates"] == 4
