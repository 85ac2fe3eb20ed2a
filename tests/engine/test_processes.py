"""Runs of several processes as users start them: torchrun, srun, two machines. A rank that is lost ends all of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from dearli_d2 import runs
from dearli_d2.config.run_sections import Ranks
from dearli_d2.engine import agreement
from dearli_d2.engine.checkpoints import RunCheckpoints
from dearli_d2.engine.launch import _meet, launch, run_started
from dearli_d2.engine.watch import mark
from dearli_d2.environment import Started
from dearli_d2.errors import ConfigError, WeightsError
from tests.conftest import MINI_OVERRIDES, REPO, SSL

TRAIN = ("train_net.py", "--config-file", str(REPO / "configs/miniworld/m2f_lang.yaml"))
LONG = ("SOLVER.MAX_ITER", "100000", "SOLVER.KEEP_CHECKPOINTS", "100000")
MONITOR = ("SSL.MONITOR_PERIOD", "2", "SSL.MONITOR_IMAGES", "4", "SSL.CUTMIX", "0.0")
SOON = 30.0  # seconds; the documentation says 10, and a test may run beside others


@pytest.fixture
def begin(monkeypatch):
    """begin(*words, **environment): a command of Python; it is killed at the end of the test if it still runs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    running = []

    def start(*words, **env):
        command = [sys.executable, "-W", "ignore", *words]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, cwd=REPO, env=os.environ | env, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def options(folder, *more):
    return *MINI_OVERRIDES, "OUTPUT_DIR", str(folder), *more


def wait_for(path, *processes, seconds=240.0):
    until = time.monotonic() + seconds
    while not path.is_file():
        assert time.monotonic() < until, path
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
        time.sleep(0.1)


def kill_rank_1(log: Path) -> str:
    """Kills a process by SIGKILL; returns how the others should call it."""
    process = re.findall(r"rank 1 of 2: process (\d+)", log.read_text())[-1]
    os.kill(int(process), signal.SIGKILL)
    return f"rank 1 (process {process} on {socket.gethostname()})"


def test_a_killed_rank_ends_a_run_of_torchrun_with_a_line_that_names_it(tmp_path, begin):
    words = [word.replace("m2f_lang", "dear") for word in TRAIN]
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    run = begin(*torchrun, *words, *options(tmp_path, *LONG, *SSL, *MONITOR))
    wait_for(tmp_path / "model_0000002.pth", run)
    assert "pseudo-labels of 4 images" in (tmp_path / "log.txt").read_text()  # of both ranks
    name = kill_rank_1(tmp_path / "log.txt.rank1")
    _, errors = run.communicate(timeout=SOON)
    assert run.returncode not in (0, None)
    line = re.search(rf"error: ({re.escape(name)} ended at \d\d:\d\d:\d\d, .*)", errors)
    assert line, errors
    assert line[1] in (tmp_path / "log.txt").read_text()


def test_machines_with_folders_of_their_own_go_on_from_the_checkpoint_of_rank_0_and_end_with_a_lost_rank(
    tmp_path, begin
):
    """Begun as srun would start the tasks, continued by the command of docs/many_gpus.md."""
    folders = [tmp_path / "node_0", tmp_path / "node_1"]
    port = free_port()
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NODELIST": "localhost",
             "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "MASTER_PORT": port}  # fmt: skip
    tasks = [
        begin(*TRAIN, *options(folder, "SOLVER.MAX_ITER", "2"), **slurm, SLURM_PROCID=str(i), SLURM_NODEID=str(i))
        for i, folder in enumerate(folders)
    ]
    for task in tasks:
        _, errors = task.communicate(timeout=300)
        assert task.returncode == 0, errors
    assert (folders[0] / "model_final.pth").is_file()
    assert not list(folders[1].glob("*.pth"))

    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [
        begin(
            *TRAIN,
            "--num-machines",
            "2",
            "--machine-rank",
            str(i),
            "--dist-url",
            url,
            "--resume",
            *options(folder, *LONG),
        )
        for i, folder in enumerate(folders)
    ]
    wait_for(folders[0] / "model_0000004.pth", *machines)
    log = (folders[0] / "log.txt").read_text()
    assert "rank 0 sends model_final.pth to the others" in log
    assert "Starting training from iteration 2" in log
    assert "Starting training from iteration 2" in (folders[1] / "log.txt.rank1").read_text()
    name = kill_rank_1(folders[1] / "log.txt.rank1")
    for machine, status, words in zip(machines, (1, 137), ("ended at", "was ended by SIGKILL at"), strict=True):
        _, errors = machine.communicate(timeout=SOON)
        assert machine.returncode == status, errors
        assert f"error: {name} {words}" in errors, errors


def _hang(seconds):
    """One process: the second rank never takes part in what the first one waits for."""
    if comm.get_rank() == 1:
        mark(5, "loading images")
        time.sleep(seconds)
    mark(5, "training")
    comm.synchronize()


def test_a_hanging_rank_ends_the_run_and_is_named(capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    begin = time.monotonic()
    with pytest.raises(ProcessExitedException) as error:
        launch(_hang, 2, arguments=(600,), limits=Ranks(hang_timeout=2.0))
    assert error.value.exit_code == 1
    assert time.monotonic() - begin < 120
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert lines
    assert all(
        re.match(r"error: rank 1 \(process .* has not got on since .*, in step 6, loading images", x) for x in lines
    )


def test_a_machine_that_waits_in_vain_says_for_whom():
    url = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=rf"1 of 3 processes have met at {url} within 0.3 s .*; missing: rank 1, 2$"):
        _meet(Started("", 0, 3, 0, 1, url), 0.3)
    with pytest.raises(
        ConfigError, match=rf"rank 1 does not reach rank 0 at {url} within 0.3 s .*may this machine connect"
    ):
        _meet(Started("", 1, 3, 1, 1, url), 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"cannot wait for the others at {url}: the port is in use"):
            _meet(Started("", 0, 3, 0, 1, url), 0.3)


class Ranks2:
    """As if there were two ranks; `other` is what the second one says where this one says `own`."""

    def __init__(self, monkeypatch):
        self.other = None
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "all_gather", lambda own: [own, ("n2", own[1] if self.other is None else self.other)])


def test_ranks_with_other_settings_code_or_images_are_refused_with_key_values_and_ranks(mini_config, monkeypatch):
    ranks, cfg = Ranks2(monkeypatch), mini_config()
    agreement.check_settings_alike(cfg)
    seen = {}
    monkeypatch.setattr(agreement, "check_alike", lambda facts, *_: seen.update(facts))
    agreement.check_settings_alike(mini_config("SOLVER.BASE_LR", "0.5", "OUTPUT_DIR", "elsewhere"))
    monkeypatch.undo()
    ranks = Ranks2(monkeypatch)
    ranks.other = dict(seen)
    with pytest.raises(
        ConfigError, match=r"differ in SOLVER.BASE_LR \(0.001: rank 0 on .*; 0.5: rank 1 on n2\); give all"
    ):
        agreement.check_settings_alike(cfg)
    ranks.other = {**seen, "SOLVER.BASE_LR": 0.001, "the code of dearli_d2": "abc"}
    with pytest.raises(ConfigError, match=r"the code of dearli_d2 \(.*: rank 0 on .*; abc: rank 1 on n2\)"):
        agreement.check_settings_alike(cfg)
    ranks.other = {"DATASETS.TRAIN miniworld_train@0.1": "99 images, digest 1"}
    with pytest.raises(ConfigError, match=r"DATASETS.TRAIN miniworld_train@0.1 \(\d+ images, digest .*; 99 images"):
        agreement.check_data_alike(cfg)
    assert "OUTPUT_DIR" not in seen


def test_ranks_with_other_start_weights_are_refused(monkeypatch):
    ranks, model = Ranks2(monkeypatch), torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    agreement.check_weights_alike(model)
    sums = {f"the start weights of {name}": int(agreement._bits(value)) for name, value in model.state_dict().items()}
    ranks.other = {**sums, "the start weights of 0.bias": 1}
    with pytest.raises(WeightsError, match=r"differ in the start weights of 0.bias \("):
        agreement.check_weights_alike(model)


def test_a_checkpoint_that_rank_0_does_not_have_is_no_start_at_step_0(tmp_path, monkeypatch):
    ranks = Ranks2(monkeypatch)
    assert agreement.load_last_of_rank_0(RunCheckpoints(tmp_path, 1)) is None
    ranks.other = ("model_0001000.pth", "abc")
    with pytest.raises(
        WeightsError, match="no checkpoint in .* of rank 0, but n2 of rank 1 has model_0001000.pth; start"
    ):
        agreement.load_last_of_rank_0(RunCheckpoints(tmp_path, 1))


def test_processes_of_torchrun_that_are_not_joined_do_not_train_side_by_side_into_one_folder(mini_config, monkeypatch):
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match="torchrun has started 2 processes that are not joined; let it start `dearli train`"
    ):
        runs.train(mini_config())


def _refuse() -> None:
    raise ConfigError("no")


@pytest.mark.parametrize(("job", "status"), [(list, 0), (_refuse, 2)])
def test_a_process_of_several_is_never_left_to_the_interpreter(job, status, monkeypatch):
    """In its last moments gloo's threads may still run, and SIGABRT would follow a complete run."""
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr("logging.shutdown", lambda: ended.append("logs are written"))
    monkeypatch.setattr("dearli_d2.engine.launch.joined", lambda *_: nullcontext())
    run_started(Started("torchrun", 1, 2, 1, 2, "env://"), job, (), "cpu", Ranks())
    assert ended == ["logs are written", status]
