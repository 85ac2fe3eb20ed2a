"""What torchrun and SLURM say about a process."""

from __future__ import annotations

import pytest

from dearli_d2.environment import Started, local_rank, started_by, waiting_tasks
from dearli_d2.errors import ConfigError
from dearli_d2.pipeline import parse_shard
from dearli_d2.runs import Processes

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "29500",
}
SHELL = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
         "SLURM_JOB_NODELIST": "gpu[03-05,11],big1"}  # fmt: skip
STEP = {**SHELL, "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "3,1"}  # fmt: skip
PORT = 12000 + 7 * 17 + 2


def processes(env, local=None, machines=1, machine=0, url="auto"):
    return Processes.of(env, local, machines, machine, url)


def test_torchrun_gives_the_place_of_a_process_also_inside_of_a_slurm_job():
    place = Started("torchrun", 3, 4, 1, 2, "env://")
    assert started_by(TORCHRUN) == started_by(STEP | TORCHRUN) == place


def test_srun_gives_the_place_and_the_first_node_is_where_all_meet():
    assert started_by(STEP) == Started("srun", 3, 4, 0, 1, f"tcp://gpu03:{PORT}")
    assert started_by(STEP | {"MASTER_ADDR": "b", "MASTER_PORT": "7"}).url == "tcp://b:7"
    assert started_by(STEP | {"SLURM_STEP_NODELIST": "rack[1-2]n[5,9]"}).url == f"tcp://rack1n5:{PORT}"
    assert started_by(STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}).local_world == 2
    assert started_by({key: value for key, value in STEP.items() if "PER_NODE" not in key}).local_world is None
    nowhere = {key: value for key, value in STEP.items() if "NODELIST" not in key}
    assert started_by(nowhere | {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.3"}).url == f"tcp://10.0.0.3:{PORT}"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        SHELL,
        SHELL | {"SLURM_STEP_ID": "4294967290"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_process_alone_is_alone_also_in_the_shell_of_a_job(env):
    assert started_by(env) is None


def test_the_shell_of_a_job_of_several_tasks_waits_for_none_and_says_so(caplog):
    assert waiting_tasks(SHELL) == 4
    assert waiting_tasks(STEP) == waiting_tasks({}) == 0
    assert processes(SHELL) == Processes()
    assert "this is one process in the shell of a SLURM job of 4 tasks: put srun before the command" in caplog.text
    caplog.clear()
    assert processes(SHELL, local=2) == Processes(2)
    assert not caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"RANK": ""},
            "has WORLD_SIZE=4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2, but no RANK; start the processes with torchrun",
        ),
        ({"LOCAL_RANK": "", "MASTER_PORT": ""}, "but no LOCAL_RANK, MASTER_PORT"),
        ({"RANK": "4"}, "contradicts itself: RANK=4, WORLD_SIZE=4"),
        ({"LOCAL_RANK": "2"}, "contradicts itself"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE must be a number"),
    ],
)
def test_an_incomplete_environment_of_torchrun_is_one_line(change, words):
    with pytest.raises(ConfigError, match=words):
        started_by(TORCHRUN | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"SLURM_PROCID": "4"}, "contradicts itself: SLURM_STEP_NUM_TASKS=4, SLURM_PROCID=4"),
     ({"SLURM_LOCALID": "x"}, "SLURM_LOCALID must be a number"),
     ({"SLURM_JOB_NODELIST": ""}, "set MASTER_ADDR")],
)  # fmt: skip
def test_an_environment_of_srun_that_cannot_be_is_one_line(change, words):
    with pytest.raises(ConfigError, match=words):
        started_by(STEP | change)


def test_options_that_contradict_the_environment_are_one_line():
    with pytest.raises(
        ConfigError, match="torchrun has started 4 processes, one for each GPU; leave out --num-gpus 2, or start"
    ):
        processes(TORCHRUN, local=2)
    with pytest.raises(ConfigError, match="srun has started 4 .* leave out --num-gpus 4 --dist-url tcp://x:1"):
        processes(STEP, local=4, url="tcp://x:1")
    assert processes(TORCHRUN, local=1).started == started_by(TORCHRUN)
    # detectron2's own way: srun starts the command once on each machine
    assert processes(STEP, local=8, machines=4, machine=3, url="tcp://x:1") == Processes(8, 4, 3, "tcp://x:1")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="torchrun starts 2 processes .* which has 1 GPUs"):
        processes(TORCHRUN).check("cuda", cpu_is_chosen=False)
    processes(STEP | {"SLURM_LOCALID": "2"}).check(
        "cuda", cpu_is_chosen=False
    )  # SLURM may show each task its own alone


@pytest.mark.parametrize(("env", "by"), [(TORCHRUN, "torchrun"), (STEP, "srun")])
def test_processes_that_torchrun_or_srun_started_share_the_images(env, by, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert parse_shard(None) == parse_shard("3/4") == (3, 4)
    assert local_rank(env) == {"torchrun": 1, "srun": 0}[by]
    with pytest.raises(
        ConfigError, match=f"--shard 0/2: {by} has started 4 processes, which share the images; leave out"
    ):
        parse_shard("0/2")


def test_a_process_on_its_own_has_all_images_or_the_share_it_is_told(monkeypatch):
    assert parse_shard(None) == (0, 1)
    assert parse_shard("1/3") == (1, 3)
    assert local_rank({}) == 0
    for text, words in (("3/3", "must be one of 0..2"), ("1", "write i/n"), ("-1/3", "must be one of 0..2")):
        with pytest.raises(ConfigError, match=words):
            parse_shard(text)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a quarter of the images, if it were believed
    with pytest.raises(ConfigError, match="WORLD_SIZE=4, but no RANK, LOCAL_RANK"):
        parse_shard(None)
