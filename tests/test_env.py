"""Start-up: the environment report, cheap imports, the demo on a few iterations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dearli_d2 import demo
from dearli_d2.env import report
from dearli_d2.files import write_atomically
from tests.conftest import REPO


def test_report_names_versions_and_devices():
    text = report()
    for word in ("dearli_d2", "torch", "detectron2", "open_clip_torch", "DETECTRON2_DATASETS", "weights in packages"):
        assert word in text


def test_import_does_not_load_torch():
    code = "import dearli_d2, sys; assert 'torch' not in sys.modules; dearli_d2.get_config"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPO, check=True, timeout=120)


def test_unknown_attribute_is_an_attribute_error():
    import dearli_d2

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dearli_d2.nothing  # noqa: B018


def test_demo_writes_a_report_with_table_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROWS", demo.ROWS[-1:])
    original = demo.get_config
    few = ["DATASETS.TEST", "('miniworld_val@0.05',)"]
    monkeypatch.setattr(demo, "get_config", lambda file, opts: original(file, opts if "()" in opts else [*opts, *few]))
    monkeypatch.setattr(demo, "SCORED_ON", "miniworld_val@0.05")
    table = demo.run(tmp_path, iterations=2)
    assert "M2F-Lang + ensembling at inference" in table
    text = (tmp_path / "report.md").read_text()
    assert table in text
    pictures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert pictures
    assert all((tmp_path / Path(p)).is_file() for p in pictures)


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "f.txt"
    write_atomically(path, lambda t: t.write_text("old"))
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, lambda t: (t.write_text("new"), 1 / 0))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]
