"""A training step on tensors without content against the real step."""

from __future__ import annotations

import signal

import pytest
import torch

from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.masks.classical import ClassicalGenerator
from dearli_d2.masks.generate import generate
from dearli_d2.masks.storage import MaskFolder
from dearli_d2.modeling import linear
from dearli_d2.modeling.mask2former import deformable_attention
from dearli_d2.rehearsal import LiveBytes, count_operations, rehearse, without_start
from tests.experiments import CONFIGS

DATA = "miniworld_val@n4"
FAST = {"dear", "segkc", "semidavil", "split_matching"}
CHECKPOINT = ("MODEL.BACKBONE.CHECKPOINT_BLOCKS", "True")
MINIWORLD = sorted((CONFIGS / "miniworld").glob("[!B]*.yaml"))


def test_bytes_are_counted_while_a_tensor_lives():
    with LiveBytes() as memory:
        first = torch.zeros(1000)
        view, second = first[:10], first + 1
        assert memory.now == 8000
        first = None
        assert memory.now == 8000  # the view keeps it
        del view
        assert (memory.now, memory.peak) == (4000, 8000)
        second.add_(1)
        memory.restart()
        assert (memory.now, memory.peak) == (4000, 4000)


@pytest.mark.parametrize("backward", [False, True])
def test_operations_of_attention_count_on_a_cpu(backward):
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    with count_operations() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        if backward:
            out.sum().backward()
    product = 2 * 2 * 16 * 16 * 8  # 2 heads, 2 per multiply-add
    assert counter.get_total_flops() == (2 + 5 * backward) * product


def test_weights_without_a_start_are_not_drawn_until_they_fit():
    """What memory holds may be out of every bound."""

    def stop(*_):
        raise TimeoutError

    weight = torch.full((300, 300), 1e9)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    try:
        with without_start():
            torch.nn.init.trunc_normal_(weight, std=0.02)
            torch.nn.init.trunc_normal_(weight, std=5.0, a=-1.0, b=1.0)
    finally:
        signal.alarm(0)
    assert (weight == 1e9).all()  # left as it was


class Measured(DualStreamTrainer):
    """Counts its second step; the first one makes the state of the optimiser."""

    def run_step(self):
        if self.iter == 0:
            return super().run_step()
        self.memory, self.operations = LiveBytes(), count_operations()
        self.memory.note(self.student)
        if isinstance(self.labeler, EMATeacher):
            self.memory.note(self.labeler.model)
        with self.memory:
            for values in self.optimizer.state.values():
                for value in values.values():
                    value.view_as(value)
            for parameter in self.student.parameters():
                if parameter.grad is not None:
                    parameter.grad.view_as(parameter.grad)
            self.memory.restart()
            with self.operations:
                super().run_step()


@pytest.mark.parametrize(
    ("path", "more"),
    [
        *(pytest.param(p, (), id=p.stem, marks=[] if p.stem in FAST else [pytest.mark.slow]) for p in MINIWORLD),
        pytest.param(CONFIGS / "miniworld/hvl.yaml", CHECKPOINT, id="hvl, blocks computed again"),
    ],
)
def test_memory_and_operations_are_those_of_a_real_step(path, more, tmp_path, monkeypatch):
    for module in linear, deformable_attention:  # a rehearsal counts the operators of a GPU
        monkeypatch.setattr(module, "computes_here", lambda x: False)
    options = [
        "MODEL.DEVICE",
        "cpu",
        "OUTPUT_DIR",
        str(tmp_path / "run"),
        "DATASETS.TEST",
        "()",
        "TEST.EVAL_PERIOD",
        "0",
    ]
    options += ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "MODEL.WEIGHTS", "", "SSL.TEACHER_WEIGHTS", ""]
    options += ["SSL.START", "0", "SSL.PICTURE_PERIOD", "0", "SSL.MONITOR_PERIOD", "0", "MODEL.TEXT.TEMPLATES", "name"]
    if get_config(path).DATASETS.MASKS:
        masks = MaskFolder(tmp_path / "masks")
        generate([d["file_name"] for d in dataset_dicts(DATA)], ClassicalGenerator(), masks, batch_size=2)
        options += ["DATASETS.MASKS", str(masks.folder), "DATASETS.TRAIN", f"('{DATA}',)"]
    cfg = get_config(path, [*options, *more])
    trainer = Measured(cfg)
    trainer.train()
    step = rehearse(cfg)
    assert step.peak == pytest.approx(trainer.memory.peak, rel=0.15)
    assert step.operations == pytest.approx(trainer.operations.get_total_flops(), rel=0.1)
    assert step.fixed == pytest.approx(trainer.memory.now, rel=0.2)  # which also holds the batch
    assert step.images == sum(len(samples) for samples in trainer.batch.values())
    assert step.trainable == sum(p.numel() for p in trainer.student.parameters() if p.requires_grad)
