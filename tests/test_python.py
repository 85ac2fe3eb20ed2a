"""The code of docs/python.md runs; what the functions add to the commands."""

from __future__ import annotations

import re

import pytest
from PIL import Image

import dearli_d2
from dearli_d2.config import build
from dearli_d2.errors import ConfigError
from tests.conftest import MINI_OVERRIDES, REPO

PAGE = (REPO / "docs" / "python.md").read_text()
FEW = ("SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0", "TEST.PICTURES", "0")


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """In one piece, as one would type it; trainings are short and sets small."""
    original = build.get_config

    def small(config_file, overrides=()):
        return original(config_file, [*MINI_OVERRIDES, *overrides, *FEW])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "get_config", small)
    Image.new("RGB", (96, 64), (90, 160, 60)).save("photo.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    names: dict = {}
    exec("\n".join(blocks).replace("miniworld_val@0.1", "miniworld_val@0.02"), names)
    assert names["run"] == build.Path("output/python")
    assert (tmp_path / "output/python/model_final.pth").is_file()
    assert (tmp_path / "output/python/evaluation/config.yaml").is_file()
    assert names["one"].panoptic.shape == names["two"].panoptic.shape == (64, 96)
    output = capsys.readouterr().out
    assert "['meadow', 'sky', 'red thing']" in output
    assert "no key SOLVER.MAX_ITERS; did you mean SOLVER.MAX_ITER" in output


def test_the_table_of_the_page_lists_the_public_names():
    assert sorted(re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)) == sorted(dearli_d2.__all__)


def test_train_refuses_what_the_command_refuses(mini_config, tmp_path):
    cfg = mini_config(*FEW)
    assert dearli_d2.train(cfg) == tmp_path / "run"
    with pytest.raises(ConfigError, match="already holds a run; --resume continues it"):
        dearli_d2.train(cfg)
    assert dearli_d2.train(cfg, resume=True) == tmp_path / "run"  # complete
    with pytest.raises(ConfigError, match="evaluation needs weights"):
        dearli_d2.evaluate(cfg)
    from dearli_d2.engine.run_folder import FolderLock

    with FolderLock(tmp_path / "run"):  # of this process, which may take it again
        pass
