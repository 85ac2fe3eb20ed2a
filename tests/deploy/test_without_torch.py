"""Prediction from an exported file in a Python that has numpy, Pillow and onnxruntime alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.panoptic_png import read_panoptic, segment_ids
from dearli_d2.deploy import OnnxPredictor
from dearli_d2.deploy.__main__ import main
from dearli_d2.labels.recognition import read_labels
from dearli_d2.labels.structures import Request
from tests.conftest import REPO
from tests.deploy.conftest import CLASSES

pytest.importorskip("onnxruntime")

REFUSING = """
import sys
allowed = {*sys.stdlib_module_names, "numpy", "PIL", "onnxruntime", "dearli_d2"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from dearli_d2.deploy.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def images(tmp_path, photograph) -> Path:
    folder = tmp_path / "images"
    (folder / "day").mkdir(parents=True)
    Image.fromarray(photograph).save(folder / "day" / "a.png")
    Image.fromarray(photograph[:, ::-1]).save(folder / "b.jpg")
    (folder / "broken.png").write_text("no image")
    return folder


def check_folder(out: Path, predictor: OnnxPredictor, image: Path) -> None:
    found = predictor(image)
    assert np.array_equal(segment_ids(read_panoptic(out / "day" / "a_panoptic.png")), found.panoptic)
    ids = np.array([c.category_id for c in CLASSES])
    assert np.array_equal(np.asarray(Image.open(out / "day" / "a_semantic.png")), ids[found.semantic])
    assert (out / "b_overlay.png").is_file()
    content = json.loads((out / "predictions.json").read_text())
    assert content["info"]["complete"]
    assert [c["name"] for c in content["categories"]] == [c.name for c in CLASSES]
    assert [c["synonyms"] for c in content["categories"]] == [list(c.synonyms) for c in CLASSES]
    assert [a["file_name"] for a in content["annotations"]] == ["b_panoptic.png", "day/a_panoptic.png"]
    assert {s["id"] for s in content["annotations"][1]["segments_info"]} == set(np.unique(found.panoptic)) - {0}
    assert len(content["skipped"]) == 1


def test_the_command_needs_three_packages_and_writes_what_dearli_predict_writes(tiny_file, images, tmp_path):
    model, out = tiny_file(), tmp_path / "out"
    words = [str(model), str(images), "--out", str(out), "--threads", "1"]
    result = subprocess.run(
        [sys.executable, "-c", REFUSING, *words], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"predicted": 2, "skipped": 1, "out": str(out)}
    assert "broken.png cannot be read as an image" in result.stderr
    check_folder(out, OnnxPredictor(model), images / "day" / "a.png")
    labels = read_labels(Request(out / "predictions.json", images), "coco-panoptic")
    assert [c.name for c in labels.classes] == [c.name for c in CLASSES]


def test_the_panoptic_file_alone_is_the_same_and_a_repeated_command_goes_on(tiny_file, images, tmp_path, capsys):
    model = tiny_file()
    for out, files in [("all", "panoptic,semantic,overlay,confidence"), ("one", "panoptic")]:
        assert main([str(model), str(images), "--out", str(tmp_path / out), "--files", files]) == 0
    first = (tmp_path / "all" / "b_panoptic.png").read_bytes()
    assert (tmp_path / "one" / "b_panoptic.png").read_bytes() == first
    assert not list((tmp_path / "one").rglob("*_semantic.png"))
    (tmp_path / "all" / "b_panoptic.png").unlink()
    time = (tmp_path / "all" / "day" / "a_panoptic.png").stat().st_mtime_ns
    assert (
        main([str(model), str(images), "--out", str(tmp_path / "all"), "--files", "confidence,semantic,overlay"]) == 0
    )
    assert (tmp_path / "all" / "b_panoptic.png").read_bytes() == first
    assert (tmp_path / "all" / "day" / "a_panoptic.png").stat().st_mtime_ns == time


def test_a_wrong_word_is_one_line(tmp_path):
    words = [sys.executable, "-m", "dearli_d2.deploy", "none.onnx", str(REPO / "docs"), "--out", str(tmp_path)]
    result = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr == "error: there is no file none.onnx\n"


@pytest.mark.slow
def test_a_fresh_environment_with_three_packages_is_enough(tiny_file, images, tmp_path):
    """Needs a package index, so it is skipped where pip finds none."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True, timeout=120)
    install = [str(python), "-m", "pip", "install", "--quiet", "numpy", "Pillow", "onnxruntime"]
    if subprocess.run(install, capture_output=True, timeout=300).returncode:
        pytest.skip("pip cannot install packages here")
    model, out = tiny_file(), tmp_path / "out"
    words = [str(python), "-m", "dearli_d2.deploy", str(model), str(images), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    check_folder(out, OnnxPredictor(model), images / "day" / "a.png")
