"""An engine of `pipeline` on a Ray cluster: actors have the model and do the work; this process collects the records.

Each row of a Ray Data pipeline is a few chunks of images. An actor reads, finds and writes them with `pipeline.run`, as one process
does. It notes the record of each image in a file in a folder that all machines share, as soon as the image's files are complete. Ray
starts a lost actor again and gives it the same row. The new actor finds the notes and does the rest, so that no image is lost or done
twice.

    with RayCluster(address=None, actors=2) as cluster:
        for outcome in RayEngine(cluster, load_work, scratch)(work, chunks):
            journal.append(str(outcome.key), outcome.record)

The package ray is imported where it is used: without the extra `ray` everything else works.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import secrets
import shutil
import socket
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from . import __version__
from .errors import ClusterError, ConfigError, DearliError
from .journal import Journal, entries
from .pipeline import Found, Item, Key, Outcome, Work, chunks_of, run

_SECONDS = 5.0  # that an address has to answer
_RAY_SECONDS = 30.0  # that a cluster has to answer; Ray itself waits for minutes
_CPUS = 4  # of an actor without a GPU, where the user says nothing
_OBJECT_STORE = 100 * 2**20  # bytes; rows hold names of files and records, no images
_RESTARTS = 20  # of lost actors, in all; more have a reason, such as too little memory


class RayCluster:
    """A connection to a Ray cluster; within `with`.

    Args:
        address: HOST:PORT of a running cluster; None = one is started on this machine, and ends with the connection.
        actors: number of models; None = one for each GPU of the cluster, or without GPUs one for each 4 CPUs.

    Raises:
        ConfigError: ray is not installed, or the address is no HOST:PORT.
        ClusterError: no cluster answers, or it has another version of Ray or Python.
    """

    def __init__(self, address: str | None = None, actors: int | None = None) -> None:
        self.address, self._asked = address, actors
        self._ours = False

    def __enter__(self) -> RayCluster:
        # before the import; Ray asks nobody and tells nobody
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # Ray reads it when it is imported
            if self.address is None:  # a secret of its own, and none in the home folder
                os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            elif _has_token():  # as `ray start` does
                os.environ["RAY_AUTH_MODE"] = "token"
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ConfigError(
                f"--engine ray needs the packages of the extra ray ({error.name} is missing): pip install '.[ray]' in the checkout"
            ) from error
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        if ray.is_initialized():
            return self
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            local = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
            cpus = max(os.cpu_count() or 1, self._asked or 1)
            self._init({**common, **local, "address": "local", "num_cpus": cpus})
        else:
            _check_answers(self.address)
            _try_out(self.address)
            self._init({**common, "address": self.address})
        self._ours = True
        return self

    def _init(self, arguments: dict[str, Any]) -> None:
        import ray

        try:
            ray.init(**arguments)
        except (RuntimeError, ValueError, OSError, TimeoutError) as error:
            ray.shutdown()
            where = self.address or "on this machine"
            raise ClusterError(f"no Ray cluster {where}: {' '.join(str(error).split())}") from error

    def __exit__(self, *_: object) -> None:
        if self._ours:
            import ray

            ray.shutdown()

    def actors(self) -> tuple[int, dict[str, Any]]:
        """Number of models, and what each reserves of the cluster.

        Raises:
            ClusterError: the cluster has no CPU.
        """
        import ray

        there = ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0), int(there.get("GPU", 0))
        if cpus < 1:
            raise ClusterError("the Ray cluster has no CPU for a model")
        count = self._asked or gpus or max(1, int(cpus) // _CPUS)
        share = cpus / count
        needs = {"num_cpus": float(min(int(share), _CPUS)) if share >= 1 else int(share * 100) / 100}
        if gpus:
            needs["num_gpus"] = min(1.0, int(gpus / count * 100) / 100)
        return count, needs


def chosen_cluster(
    engine: str, ray_address: str | None, ray_actors: int | None
) -> AbstractContextManager[RayCluster | None]:
    """The cluster of the options of a command; None for the engine "process".

    Raises:
        ConfigError: options of Ray without `--engine ray`.
    """
    if engine == "ray":
        return RayCluster(ray_address, ray_actors)
    if ray_address or ray_actors:
        raise ConfigError("--ray-address and --ray-actors need --engine ray")
    return nullcontext()


def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ConfigError(f"--ray-address {address}: write HOST:PORT, as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), _SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--ray-address {address}: nothing answers there ({error})") from error


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _try_out(address: str) -> None:
    """Connects in a process of its own, which can be ended."""
    code = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=_RAY_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"--ray-address {address}: what answers there is no Ray cluster, or none that is ready ({_RAY_SECONDS:g} seconds)"
        ) from error
    if tried.returncode:
        lines = tried.stderr.splitlines()
        first = max((i for i, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), default=0)
        token = (
            "; the cluster asks for its token: RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH"
            if "AuthToken" in tried.stderr
            else ""
        )
        raise ClusterError(f"--ray-address {address}: {' '.join(' '.join(lines[first:]).split())}{token}")


@dataclass(frozen=True)
class RayEngine(Generic[Item, Found]):
    """`pipeline.run` on a Ray cluster.

    Args:
        cluster: an open connection.
        load: makes the work, with its model, in an actor. It can be pickled.
        scratch: a folder that all machines share, for notes while it runs.
    """

    cluster: RayCluster
    load: Callable[[], Work[Any, Item, Found]]
    scratch: Path

    def __call__(
        self,
        work: Work[Key, Item, Found],
        chunks: Sequence[Sequence[Key]],
        done: Container[Key] = frozenset(),
        workers: int | None = None,
    ) -> Iterator[Outcome[Key]]:
        """Outcomes as they come, see `pipeline.run`. The actors have `load()` in place of `work`, and `workers` threads each.

        Raises:
            ClusterError: a machine without the project or without the folders, or actors that die again and again.
        """
        import ray

        chunks = [chunk for chunk in chunks if any(key not in done for key in chunk)]
        if not chunks:
            return
        count, needs = self.cluster.actors()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        keys: list[Key] = []
        rows = []
        # a few chunks at once keep reading and writing beside the model; several rows for each actor balance their times
        for part in chunks_of(chunks, max(1, min(8, len(chunks) // (4 * count)))):
            numbers = []
            for chunk in part:
                numbers.append(range(len(keys), len(keys) + len(chunk)))
                keys += chunk
            ready = {n for chunk in numbers for n in chunk if keys[n] in done}
            rows.append({"row": pickle.dumps(([[_Numbered(n, keys[n]) for n in chunk] for chunk in numbers], ready))})
        worker = (
            self.load,
            self.scratch.resolve(),
            Path.cwd(),
            workers,
            count + _RESTARTS,
            __version__,
        )
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(pickle.dumps(worker),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
            **needs,
        )
        try:
            for row in data.iter_rows():
                answer = pickle.loads(row["answer"])
                if isinstance(answer, Exception):
                    raise answer
                for number, record, skipped in answer:
                    yield Outcome(keys[number], record, skipped)
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise ClusterError(
                f"the Ray cluster has lost its workers: {lines[-1].strip() if lines else error}"
            ) from error
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)


class _Worker:
    """An actor: `pipeline.run` on the rows that Ray Data gives it, with notes of what it has done."""

    def __init__(self, parts: bytes) -> None:
        self.parts = parts
        self.work: Work[_Numbered, Any, Any] | None = None
        self.noted: dict[str, dict[str, Any]] = {}

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"answer": [pickle.dumps(self._answer(row)) for row in batch["row"]]}

    def _answer(self, row: bytes) -> list[tuple[int, dict[str, Any], str]] | Exception:
        try:
            if self.work is None:
                self._start()
            return self._outcomes(*pickle.loads(row))
        except (DearliError, OSError) as error:
            return error
        except Exception:  # Ray would take it for a lost worker
            return RuntimeError(f"on {socket.gethostname()}:\n{traceback.format_exc()}")

    def _start(self) -> None:
        load, scratch, folder, self.workers, starts, version = pickle.loads(self.parts)
        host = socket.gethostname()
        if version != __version__:
            raise ClusterError(f"{host} has dearli_d2 {__version__}, the process that asks it has {version}")
        if not (scratch.is_dir() and folder.is_dir()):
            raise ClusterError(
                f"{host} has no folder {folder if scratch.is_dir() else scratch}: images, weights and the folder to write must lie in "
                "a file system that all machines share"
            )
        os.chdir(folder)
        notes = list(scratch.glob("*.jsonl"))
        if len(notes) >= starts:
            raise ClusterError(
                f"{_RESTARTS} workers of the Ray cluster were killed; the machine may have too little memory"
            )
        for path in notes:
            self.noted |= {key: record for key, record, *_ in entries(path)}
        journal = Journal(scratch / f"{uuid.uuid4().hex}.jsonl")
        work = load()
        self.work = Work(_Read(work.read), work.find, _Noted(work.write, journal), work.group)

    def _outcomes(self, chunks: list[list[_Numbered]], ready: set[int]) -> list[tuple[int, dict[str, Any], str]]:
        assert self.work is not None
        keys = [key for chunk in chunks for key in chunk]
        noted = {key for key in keys if str(key.number) in self.noted and key.number not in ready}
        found = [(key.number, self.noted[str(key.number)], "") for key in noted]
        there = noted | {key for key in keys if key.number in ready}
        found += [(o.key.number, o.record, str(o.skipped)) for o in run(self.work, chunks, there, self.workers)]
        return found


@dataclass(frozen=True)
class _Numbered:
    """A key and its place among all; its name in the notes."""

    number: int
    key: Any

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True)
class _Read:
    """`Work.read` of a numbered key."""

    read: Callable[[Any], Any]

    def __call__(self, key: _Numbered) -> Any:
        return self.read(key.key)


@dataclass(frozen=True)
class _Noted:
    """`Work.write` of a numbered key; the record is noted once the files are complete."""

    write: Callable[[Any, Any, Any], dict[str, Any]]
    journal: Journal

    def __call__(self, key: _Numbered, item: Any, found: Any) -> dict[str, Any]:
        record = self.write(key.key, item, found)
        self.journal.append(str(key.number), record)
        return record
