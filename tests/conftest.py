"""Shared fixtures: a cache of its own, small targets, and the developers' real data where it is present."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dearli_d2.structures import Targets
from tests.browser import browser as browser
from tests.browser import page as page

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    # one cache for all runs of the suite on this machine, apart from the user's
    os.environ.setdefault("DEARLI_CACHE", str(REPO / ".cache" / "tests"))
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a hub
    # a shell starts what it runs in the background with Ctrl-C ignored, which the commands of tests would inherit
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = (
            "1"  # kernels run on the CPU, for tests/modeling/test_deformable_attention_triton.py
        )
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    threads = max(1, (os.cpu_count() or 2) // workers)
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the commands that tests start
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", threads)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _logs_reach_caplog() -> Iterator[None]:
    """A command that a test runs ends the propagation of its loggers, which `caplog` before pytest 9.1 depends on."""
    yield
    for name in ("dearli_d2", "detectron2", "fvcore"):
        logging.getLogger(name).propagate = True


@pytest.fixture
def repo() -> Path:
    return REPO


def copy_of_checkout(target: Path) -> Path:
    """Copies what a clone of this working tree would hold; without git, everything but environments and outputs."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=REPO, capture_output=True, text=True
    )
    if listed.returncode:
        ignored = shutil.ignore_patterns(".*", "output", "build", "__pycache__", "*.egg-info")
        return Path(shutil.copytree(REPO, target, ignore=ignored))
    for name in listed.stdout.splitlines():
        source = REPO / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / name)
    return target


@pytest.fixture
def shared() -> Path:
    """Real data for developers; a user does not have it."""
    if not SHARED.is_dir():
        pytest.skip("the developers' real data (../shared/data) is not here")
    return SHARED


@pytest.fixture
def make_targets():
    """make_targets(count, height, width, classes): random boxes as masks."""

    def make(count: int, height: int = 64, width: int = 64, classes: int = 5, seed: int = 0) -> Targets:
        generator = torch.Generator().manual_seed(seed)
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for mask in masks:
            y, x = (int(torch.randint(0, n // 2, (1,), generator=generator)) for n in (height, width))
            mask[y : y + height // 3, x : x + width // 3] = True
        return Targets(torch.randint(0, classes, (count,), generator=generator), masks)

    return make


MINI_OVERRIDES = (
    "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "2",
    "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "128",
    "INPUT.CROP_SIZE", "64", "MODEL.TEXT.TEMPLATES", "name",
)  # fmt: skip


@pytest.fixture
def mini_config(tmp_path: Path):
    """mini_config(*overrides, file=...): a config of miniworld that trains in seconds into tmp_path/run."""
    from dearli_d2.config import get_config

    def make(*overrides: str, file: str = "m2f_lang.yaml"):
        path = REPO / "configs" / "miniworld" / file
        return get_config(path, [*MINI_OVERRIDES, "OUTPUT_DIR", str(tmp_path / "run"), *overrides])

    return make


SSL = ("SSL.START", "0", "SSL.IMS_PER_BATCH", "2", "SSL.PICTURE_PERIOD", "0", "SSL.MONITOR_PERIOD", "0")


@pytest.fixture
def ssl_config(mini_config):
    """As mini_config, semi-supervised from the first step."""
    return lambda *overrides, file="dear.yaml": mini_config(*SSL, *overrides, file=file)


def train_until(cfg, step: int):
    """A run that is interrupted in a step, which is not finished."""
    from dearli_d2.engine.trainer import DualStreamTrainer

    class Interrupted(DualStreamTrainer):
        def run_step(self):
            if self.iter == step:
                raise KeyboardInterrupt
            super().run_step()

    with pytest.raises(KeyboardInterrupt):
        Interrupted(cfg).train()


@pytest.fixture
def semidavil(mini_config):
    """semidavil(*overrides): the miniworld config with the paper's values, unlabelled images from the first step."""
    paper = "SSL.LOSS_WEIGHT", "1.0", "MODEL.SEMIDAVIL.HARD_FRACTION", "0.2", "SSL.SOURCE_IMS_PER_BATCH", "2"
    return lambda *overrides: mini_config(*SSL, *paper, *overrides, file="semidavil.yaml")
