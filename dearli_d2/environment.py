"""What torchrun and SLURM say about the processes that they start. Only the environment is read; nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ConfigError

# srun sets these for its tasks; the shell of sbatch and of salloc has none of them
_OF_A_STEP = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_LAUNCH_NODE_IPADDR")
_SHELLS = 4294967290  # the numbers from here on are those of the steps in which SLURM runs the shells themselves


@dataclass(frozen=True)
class Started:
    """A process that another program has started as one of several.

    Attributes:
        by: the program, "torchrun" or "srun".
        rank: of this process, from 0 on.
        world: number of processes, two or more.
        local: rank among the processes of this machine.
        local_world: number of those; None where the environment does not say.
        url: where the processes meet: "env://" as torch reads it, or "tcp://HOST:PORT" of the first one.
    """

    by: str
    rank: int
    world: int
    local: int
    local_world: int | None
    url: str


def started_by(env: Mapping[str, str]) -> Started | None:
    """The place of this process among those that torchrun or srun started; None for a process on its own.

    Inside of a SLURM job, torchrun counts as torchrun.

    Args:
        env: the environment of the process.

    Raises:
        ConfigError: the variables are incomplete or contradict each other.
    """
    return _of_torchrun(env) or _of_srun(env)


def local_rank(env: Mapping[str, str]) -> int:
    """Rank of this process among those of its machine; 0 for a process on its own. Raises as `started_by`."""
    place = started_by(env)
    return place.local if place else 0


def waiting_tasks(env: Mapping[str, str]) -> int:
    """Number of tasks of the SLURM job in whose shell this process runs without srun; 0 elsewhere."""
    if _in_step(env) or _of_torchrun(env) is not None or "SLURM_JOB_ID" not in env:
        return 0
    return int(env["SLURM_NTASKS"]) if env.get("SLURM_NTASKS", "").isdigit() else 0


def _of_torchrun(env: Mapping[str, str]) -> Started | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not any(env.get(name) for name in names[:2]) or env.get("WORLD_SIZE") == "1":
        return None
    values = {name: env[name] for name in (*names, "LOCAL_WORLD_SIZE") if env.get(name)}
    present = ", ".join(f"{name}={value}" for name, value in values.items())
    advice = "start the processes with torchrun, which sets all of them, or unset them for a single process"
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise ConfigError(f"the environment has {present}, but no {', '.join(missing)}; {advice}")
    numbers = {name: _number(value, name, present) for name, value in values.items()}
    local_world = numbers.get("LOCAL_WORLD_SIZE")
    rank, world, local = (numbers[name] for name in names)
    if not (rank < world and local <= rank and (local_world is None or local < local_world <= world)):
        raise ConfigError(f"the environment contradicts itself: {present}; {advice}")
    return Started("torchrun", rank, world, local, local_world, "env://")


def _in_step(env: Mapping[str, str]) -> bool:
    step = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", ""))
    if step.isdigit() and int(step) >= _SHELLS:
        return False
    return "SLURM_PROCID" in env and any(name in env for name in _OF_A_STEP)


def _of_srun(env: Mapping[str, str]) -> Started | None:
    if not _in_step(env):
        return None
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    names = (tasks, "SLURM_PROCID", "SLURM_LOCALID")
    present = ", ".join(f"{name}={env[name]}" for name in names if name in env)
    world = _number(env.get(tasks, "1"), tasks, present)
    if world <= 1:
        return None
    missing = [name for name in names if name not in env]
    if missing:
        raise ConfigError(f"the environment has {present}, but no {', '.join(missing)}; srun sets all of them")
    rank, local = (_number(env[name], name, present) for name in names[1:])
    if not local <= rank < world:
        raise ConfigError(f"the environment contradicts itself: {present}; start the processes with srun")
    return Started("srun", rank, world, local, _tasks_of_node(env), f"tcp://{_first_node(env)}:{_port(env)}")


def _tasks_of_node(env: Mapping[str, str]) -> int | None:
    """The number of tasks of this node out of a list such as "2(x3),1"."""
    counts = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "")).split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            return None
        counts += [int(found[1])] * int(found[2] or 1)
    node = env.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def _first_node(env: Mapping[str, str]) -> str:
    """The host of rank 0: MASTER_ADDR, else the first of a list such as "gpu[03-07,11],big1", where srun puts task 0."""
    if env.get("MASTER_ADDR"):
        return env["MASTER_ADDR"]
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", env.get(name, ""))
        if first is not None:
            return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])
    if env.get("SLURM_LAUNCH_NODE_IPADDR"):  # right where srun is called on the first node, as in a script of sbatch
        return env["SLURM_LAUNCH_NODE_IPADDR"]
    raise ConfigError("SLURM does not say on which node task 0 runs; set MASTER_ADDR to its name")


def _port(env: Mapping[str, str]) -> int:
    """MASTER_PORT, else a number below the system's own range that differs for the jobs and steps of a node."""
    if env.get("MASTER_PORT"):
        return _number(env["MASTER_PORT"], "MASTER_PORT", f"MASTER_PORT={env['MASTER_PORT']}")
    job, step = (env.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 12000 + (7 * int(job or 0) + int(step or 0)) % 20000 if (job + step).isdigit() else 12000


def _number(text: str, name: str, present: str) -> int:
    if not text.isdigit():
        raise ConfigError(f"the environment has {present}; {name} must be a number from 0 on")
    return int(text)
