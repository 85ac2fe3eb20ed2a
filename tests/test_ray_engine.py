"""Work on a Ray cluster against the same work in one process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from dearli_d2 import ray_engine
from dearli_d2.errors import ClusterError, ConfigError
from dearli_d2.pipeline import chunks_of, run
from dearli_d2.ray_engine import RayCluster, RayEngine, chosen_cluster
from tests.ray_parts import ALL, DAMAGED, Broken, Load


def ended(outcomes):
    return sorted((o.key, json.dumps(o.record), str(o.skipped)) for o in outcomes)


def test_a_worker_that_is_killed_loses_no_image_and_none_is_done_twice(tmp_path, monkeypatch):
    pytest.importorskip("ray.data")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster that nobody asked for
    chunks, done = chunks_of(ALL, 2), {"image 2", "image 8", "image 9"}
    for name in ("one", "ray"):
        (tmp_path / name).mkdir()
    (tmp_path / "never").touch()
    work = Load(tmp_path / "never", tmp_path / "one")()
    expected = ended(run(work, chunks, done))
    with RayCluster(actors=2) as cluster:
        engine = RayEngine(cluster, Load(tmp_path / "killed", tmp_path / "ray"), tmp_path / "notes")
        assert ended(engine(work, chunks, done)) == expected
        assert (tmp_path / "killed").exists()
        assert not (tmp_path / "notes").exists()
        files = [{p.name: p.read_text() for p in (tmp_path / name).iterdir()} for name in ("one", "ray")]
        assert files[0] == files[1]  # a second time would be a second line
        assert set(files[0]) == set(ALL) - done - {DAMAGED}
        # an error of the work is that error
        broken = RayEngine(cluster, Broken(), tmp_path / "notes")
        with pytest.raises(ConfigError, match="no weights"):
            list(broken(work, chunks))


def test_a_cluster_that_cannot_be_had_is_a_line_in_seconds():
    pytest.importorskip("ray.data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ClusterError, match="nothing answers there"):
        RayCluster(f"127.0.0.1:{port}").__enter__()
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        RayCluster("ray://127.0.0.1:10001").__enter__()
    assert time.monotonic() - started < 10


def test_what_is_no_ray_cluster_or_one_of_another_version_is_a_line(monkeypatch):
    monkeypatch.setattr(ray_engine, "_RAY_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(ClusterError, match="is no Ray cluster"):
            ray_engine._try_out(f"127.0.0.1:{other.getsockname()[1]}")
    trace = (
        "Traceback (most recent call last):\n  File x\nRuntimeError: Version mismatch: The cluster has:\n    Ray: 2.9\n"
    )
    failed = subprocess.CompletedProcess([], 1, "", trace)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ClusterError, match="6379: RuntimeError: Version mismatch: The cluster has: Ray: 2.9$"):
        ray_engine._try_out("127.0.0.1:6379")


def test_options_of_ray_without_ray_and_ray_without_its_package(monkeypatch):
    with pytest.raises(ConfigError, match="need --engine ray"):
        chosen_cluster("process", None, 2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[ray\]'"):
        chosen_cluster("ray", None, None).__enter__()
