"""Trains each method for a few steps. Started by torchrun, it does so in several processes; tests/engine/test_joint_batch.py compares.

What is random in a step is drawn alike for every image and mask here, whatever the process, since each rank has random
numbers of its own. Streams and augmentations follow from the seed and the position, so two ranks have the images of one process.

    torchrun --nproc-per-node 2 -m tests.engine.joint_batch FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from detectron2.utils import comm

from dearli_d2.config import get_config
from dearli_d2.config.run_sections import Ranks
from dearli_d2.engine import classmix, cutmix, trainer
from dearli_d2.engine.launch import run_started
from dearli_d2.environment import started_by
from tests.conftest import MINI_OVERRIDES, REPO

STEPS = 2
COMMON = ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", "SSL.START", "0", "SSL.IMS_PER_BATCH", "4", "SSL.PICTURE_PERIOD", "0",
          "SSL.MONITOR_PERIOD", "0", "SSL.EMA_DECAY", "0.5", "SSL.EMA_RAMP", "False", "SSL.CUTMIX", "1.0",
          "DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()")  # fmt: skip
LOW = ("SSL.CONFIDENCE", "0.1")  # so that an untrained teacher labels pixels
# a method by the name of its folder, perhaps with a variant: its config and options
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "mask2former": ("m2f.yaml", ()),
    "dearli": ("dear.yaml", ()),
    "eomt": ("eomt_ssl.yaml", ()),
    "hvl": ("hvl.yaml", LOW),
    "split_matching": ("split_matching.yaml", ()),
    "semidavil": ("semidavil.yaml", (*LOW, "SSL.SOURCE_IMS_PER_BATCH", "4", "MODEL.SEMIDAVIL.HARD_FRACTION", "0.3")),
    "segkc": ("segkc.yaml", LOW),
    "dpt": ("unimatch_v2.yaml", (*LOW, "MODEL.DPT.HARD_PIXELS", "500")),
}  # fmt: skip


class Middle:
    """A generator of numpy that draws the middle, and orders nothing anew."""

    def __getattr__(self, name):
        return {
            "random": lambda: 0.0,
            "uniform": lambda low, high: (low + high) / 2,
            "integers": lambda high: 0,
            "permutation": np.arange,
        }[name]


def alike(draw):
    """A random function of torch whose numbers are the same along the first axis."""

    def drawn(*size, **options):
        size = tuple(size[0]) if isinstance(size[0], tuple | torch.Size) else size
        generator = torch.Generator().manual_seed(sum(size[1:]))
        return draw(size[1:], generator=generator, dtype=options.get("dtype")).expand(size).clone()

    return drawn


def train(case: str, folder: Path) -> None:
    """Steps of one method; rank 0 writes losses, gradients and weights."""
    file, options = CASES[case]
    cfg = get_config(
        REPO / "configs/miniworld" / file, [*MINI_OVERRIDES, *COMMON, *options, "OUTPUT_DIR", str(folder / case)]
    )
    torch.manual_seed(0)
    run = trainer.DualStreamTrainer(cfg)
    for group in run.optimizer.param_groups:
        group["eps"] = 1e-2  # AdamW would make a whole step of the rounding error of a gradient that is 0
    begin = {name: value.clone() for name, value in run.student.state_dict().items()}
    losses = []
    with run.storage:
        for run.iter in range(STEPS):
            run.run_step()
            losses.append({k: v for k, (v, _) in run.storage.latest().items() if "loss" in k})
    found = {"losses": losses, "begin": begin, "student": run.student.state_dict(), "teacher": {}}
    if run.teacher is not None:
        found["teacher"] = run.teacher.own_state()
    if comm.is_main_process():
        torch.save(found, folder / f"{case}.pt")
    run.lock.release() if run.lock else None


def train_all(folder: Path, cases: list[str]) -> None:
    """Trains the methods one after the other."""
    neighbours = lambda count, rng: tuple(i ^ 1 for i in range(count))  # noqa: E731  # of the same rank
    integers = torch.randint

    def randint(low, high, size, **options):
        return alike(lambda s, generator, dtype: integers(low, high, s, generator=generator))(size)

    folder.mkdir(parents=True, exist_ok=True)
    with (
        mock.patch.object(torch, "rand", alike(torch.rand)),
        mock.patch.object(torch, "randint", randint),
        mock.patch.object(
            torch, "randperm", lambda count, **_: torch.tensor([*range(0, count, 2), *range(1, count, 2)])
        ),
        mock.patch.object(trainer, "seed_step", return_value=Middle()),
        mock.patch.object(cutmix, "draw_partners", neighbours),
        mock.patch.object(classmix, "draw_partners", neighbours),
    ):
        for case in cases:
            train(case, folder)


if __name__ == "__main__":
    place = started_by(os.environ)
    assert place is not None
    run_started(place, train_all, (Path(sys.argv[1]), sys.argv[2:] or list(CASES)), "cpu", Ranks())
