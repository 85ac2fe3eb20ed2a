"""`dearli train` and `dearli eval` as a user meets them: refused starts, locks, full disks, errors in one line, evaluation."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from dearli_d2 import reporting, weights
from dearli_d2.checkpoint import load_state
from dearli_d2.cli import main
from dearli_d2.engine.run_folder import FolderLock
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, DatasetError, WeightsError
from tests.conftest import MINI_OVERRIDES, REPO

CONFIG = str(REPO / "configs/miniworld/m2f_lang.yaml")
FEW = (*MINI_OVERRIDES, "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1", "DATALOADER.NUM_WORKERS", "0")


def start(folder: Path, *overrides: str, flags: tuple[str, ...] = (), command: str = "train") -> int:
    return main([command, "--config-file", CONFIG, *flags, *FEW, "OUTPUT_DIR", str(folder), *overrides])


def content(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_processes_on_the_cpu_are_not_joined_by_nccl_where_there_is_a_gpu(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("dearli_d2.runs.launch", lambda *given: seen.append((given[1], given[6])))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for processes in ("1", "2"):
        assert start(tmp_path, flags=("--num-gpus", processes)) == 0
    assert seen == [(1, "cpu"), (2, "cpu")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert start(folder) == 0
    return folder


# ---------------------------------------------------------------------------------------------- output folder


def test_a_folder_may_be_called_as_a_text_file(tmp_path, capsys):
    assert start(tmp_path / "run.txt", "DATASETS.TRAIN", "('nothing',)") == 2
    assert "there is no data set 'nothing'" in capsys.readouterr().err
    assert "there is no data set 'nothing'" in (tmp_path / "run.txt" / "log.txt").read_text()


def test_a_refused_start_touches_no_file_of_the_run(finished, capsys):
    before = content(finished)
    assert start(finished, "SOLVER.BASE_LR", "0.5") == 2
    assert "already holds a run; --resume continues it" in capsys.readouterr().err
    assert content(finished) == before


def test_neither_evaluation_nor_a_refused_resume_rewrites_the_config_of_a_run(finished, capsys):
    before = (finished / "config.yaml").read_bytes()
    test_set = ("DATASETS.TEST", "('miniworld_val@0.02',)", "TEST.PICTURES", "0")
    weights_of = ("MODEL.WEIGHTS", str(finished / "model_final.pth"), "TEST.OBJECT_THRESHOLD", "0.3")
    assert start(finished, *test_set, *weights_of, command="eval") == 0
    assert "OBJECT_THRESHOLD: 0.3" in (finished / "evaluation/config.yaml").read_text()
    assert start(finished, "SEED", "3", flags=("--resume",)) == 2
    assert "SEED was 0, is 3" in capsys.readouterr().err
    assert "SEED was 0, is 3" in (finished / "log.txt").read_text()
    assert start(finished, flags=("--resume",)) == 0  # complete
    assert (finished / "config.yaml").read_bytes() == before


def _hold(folder: Path, ready, release) -> None:
    with FolderLock(folder):
        ready.set()
        release.wait(60)


def test_a_second_run_in_a_folder_is_refused_until_the_first_ends_in_any_way(tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, release))
    other.start()
    assert ready.wait(30)
    (tmp_path / "log.txt").write_text("of the other run\n")
    before = content(tmp_path)
    for command, flags in (("train", ()), ("train", ("--resume",)), ("eval", ())):
        assert start(tmp_path, command=command, flags=flags) == 2
        assert f"OUTPUT_DIR {tmp_path} is in use by process {other.pid} on " in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"in use by process {other.pid}"):
        FolderLock(tmp_path)
    assert content(tmp_path) == before
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with FolderLock(tmp_path), FolderLock(tmp_path):  # the dead one's is in nobody's way
        pass


# ---------------------------------------------------------------------------------------------- full disks


def full(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_within_torch(*_args, **_options):
    """As torch reports it: the system's error is only the context of its own."""
    try:
        full()
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def full_from_second(original):
    calls = []

    def write(*args, **options):
        calls.append(1)
        return original(*args, **options) if len(calls) < 2 else full_within_torch()

    return write


FULL = {
    "a checkpoint": (weights.torch, "save", full_from_second(torch.save)),
    "the metrics": ("dearli_d2.engine.metrics.MetricsFile", "write", full),
    "the config": ("dearli_d2.engine.trainer", "write_atomically", full),
    "a picture": ("PIL.Image.Image", "save", full),
    "the results": ("dearli_d2.engine.evaluation", "write_results", full),
}


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_is_one_line_and_earlier_checkpoints_load(tmp_path, capsys, monkeypatch, case):
    owner, name, broken = FULL[case]
    test_set = ("DATASETS.TEST", "('miniworld_val@0.01',)", "TEST.PICTURES", "1", "TEST.EVAL_PERIOD", "1")
    with monkeypatch.context() as patch:
        patch.setattr(*((f"{owner}.{name}", broken) if isinstance(owner, str) else (owner, name, broken)))
        assert start(tmp_path, *test_set) == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: no space is left to write")
    log = (tmp_path / "log.txt").read_text()
    assert "no space is left" in log
    assert "Traceback" in log
    for path in tmp_path.glob("*.pth"):
        assert weights.read_file(path)["iteration"] >= 1
    assert not list(tmp_path.glob(".*.pth"))


def test_a_file_beyond_what_the_system_grants_is_an_error_of_the_system(tmp_path):
    """The real thing, with a limit on the size of files in place of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    weights.write_file(tmp_path / "model.pth", {"a": torch.zeros(3)})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match="File too large") as caught:
            weights.write_file(tmp_path / "model.pth", {"a": torch.zeros(300_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert str(tmp_path / "model.pth") in reporting.describe_os_error(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
    assert torch.equal(weights.read_file(tmp_path / "model.pth")["a"], torch.zeros(3))


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RuntimeError("shapes\ndo not fit"), 1, "error: RuntimeError: shapes do not fit (stack trace in {}/log.txt)"),
        (DatasetError("x.jpg is broken"), 2, "error: x.jpg is broken"),
        (
            DatasetError(
                "Caught DatasetError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                '  File "a.py", line 1, in f\ndearli_d2.errors.DatasetError: x.jpg is broken\n'
            ),
            2,
            "error: x.jpg is broken",
        ),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "error: Permission denied: /x/y"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            2,
            "error: out of memory: CUDA out of memory",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes"),
            2,
            "error: out of memory: [enforce fail] DefaultCPUAllocator",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_an_error_in_the_loop_is_one_line_with_its_stack_trace_in_the_log(
    tmp_path, capsys, monkeypatch, error, status, line
):
    def fail(self):
        raise error

    monkeypatch.setattr(DualStreamTrainer, "run_step", fail)
    assert start(tmp_path) == status
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out
    shown = [x for x in output.err.splitlines() if x.startswith("error: ")]
    assert len(shown) == 1
    assert shown[0].startswith(line.format(tmp_path))
    log = (tmp_path / "log.txt").read_text()
    assert shown[0].removeprefix("error: ") in log
    assert "Traceback (most recent call last)" in log
    assert ", in fail\n" in log


def test_an_error_without_a_log_file_keeps_its_stack_trace(monkeypatch):
    monkeypatch.setattr(reporting, "_log_handlers", list)

    def fail():
        raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault of the program"):
        reporting.report_errors(fail)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [(-9, 137, "ended by SIGKILL at .+, often because"), (-11, 139, "ended by SIGSEGV at [0-9:]+;"), (2, 2, "")],
)
def test_a_rank_that_a_signal_ends_is_named_with_it(tmp_path, capsys, code, status, words):
    assert reporting.report_dead_rank(ProcessExitedException("", 1, 99, code), 3, tmp_path) == status
    message = capsys.readouterr().err
    pattern = rf"^error: rank 3 \(process 99 on .+\) was {words}"
    assert bool(re.match(pattern, message)) == bool(words)
    assert (tmp_path / "log.txt").is_file() == bool(words)
    if words:
        assert (tmp_path / "log.txt").read_text() == message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num-machines", "2", "--machine-rank", "5", "--dist-url", "tcp://127.0.0.1:1"), "--machine-rank 5 must be in 0..1"),
        (("--machine-rank", "1"), "--machine-rank 1 must be in 0..0"),
        (("--num-machines", "0"), "--num-machines 0 must be 1 or more"),
        (("--num-machines", "2", "--dist-url", "host"), "needs --dist-url, for example tcp://10.0.0.1:29500, not host"),
        (("--num-gpus", "0"), "--num-gpus 0 must be 1 or more"),
    ],
)  # fmt: skip
def test_impossible_machines_are_refused_at_once(tmp_path, capsys, flags, words):
    assert start(tmp_path, flags=flags) == 2
    assert words in capsys.readouterr().err


def test_evaluation_needs_a_data_set(tmp_path, finished, capsys):
    assert start(tmp_path, flags=("--weights", str(finished / "model_final.pth")), command="eval") == 2
    assert "evaluation needs DATASETS.TEST" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "wrong", [[torch.zeros(2)], torch.zeros(2), {1: torch.zeros(2)}, "text", {"model": 3}], ids=str
)
def test_a_weight_file_without_names_is_an_error(tmp_path, wrong):
    torch.save(wrong, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a.pth holds"):
        weights.read_state_dict(tmp_path / "a.pth")


def test_weights_of_a_diverged_training_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    load_state(model, state, "x.pth")
    state["0.weight"][0, 1] = np.nan
    with pytest.raises(WeightsError, match="x.pth: 1 of 4 weights hold NaN or infinity: 0.weight"):
        load_state(model, state, "x.pth")


def test_keys_are_listed_with_default_meaning_and_rule(capsys):
    assert main(["keys", "teacher", "decay"]) == 0
    name, meaning, rule, *_ = capsys.readouterr().out.splitlines()
    assert name == "SSL.EMA_DECAY 0.999"
    assert "teacher" in meaning
    assert rule == "    Accepts a finite number, at least 0 and below 1."
    assert main(["keys", "cheese"]) == 2
    assert "no key has cheese in its name or meaning" in capsys.readouterr().err


def test_every_key_is_explained():
    from dearli_d2.config.schema import entries

    assert [entry.name for entry in entries() if not entry.explanation.endswith(".")] == []
