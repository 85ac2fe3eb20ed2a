"""Start-up: the environment report, cheap imports, the demo on a few iterations."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "f.txt"
    write_atomically(path, lambda t: t.write_text("old"))
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, lambda t: (t.write_text("new"), 1 / 0))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]
