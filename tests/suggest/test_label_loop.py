"""The commands of docs/label_loop.md, run one after another as they are printed, in a small world."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import numpy as np

from dearli_d2.cli import main
from dearli_d2.data import miniworld
from dearli_d2.labels.convert import write_labels
from dearli_d2.labels.geometry import encode
from dearli_d2.labels.structures import LabelClass, LabeledImage, LabelSet, Shape
from tests.conftest import REPO
from tests.printed_commands import of_markdown

PAGE = REPO / "docs" / "label_loop.md"
SMALL = (
    "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "TEST.EVAL_PERIOD", "0",
    "SSL.START", "0", "SSL.IMS_PER_BATCH", "2", "SSL.PICTURE_PERIOD", "0", "INPUT.CROP_SIZE", "64", "MODEL.TEXT.TEMPLATES", "name",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64", "DATASETS.CUSTOM.VAL_FRACTION", "0.2",
)  # fmt: skip


def write_shots(folder, labeled: int = 6, unlabeled: int = 22) -> None:
    """All images in one folder, some with a file of Labelme beside them, and the class list."""
    images, names = [], {}
    (folder / "images").mkdir(parents=True)
    for index in range(labeled + unlabeled):
        scene, file = miniworld.make_scene(0, index), folder / "images" / f"{index}.jpg"
        miniworld.save_image(scene, file)
        classes = {c.id - 1: c for c in scene.classes}
        semantic = scene.semantic()
        if index < labeled:
            shapes = [
                Shape(classes[v].name, encode(semantic == v)) for v in np.unique(semantic).tolist() if v in classes
            ]
            images.append(LabeledImage(file, semantic.shape, lambda shapes=shapes: shapes))
            names |= {v: c for v, c in classes.items() if (semantic == v).any()}
    found = [LabelClass(c.name, v, c.isthing) for v, c in sorted(names.items())]
    write_labels(LabelSet(folder, "labelme", found, images, True, ""), "labelme", folder / "new", folder / "images")
    for path in (folder / "new").iterdir():
        shutil.move(path, folder / "images")
    (folder / "new").rmdir()
    lines = [f"{v} {'thing' if c.isthing else 'stuff'} {c.name}" for v, c in sorted(names.items())]
    (folder / "classes.txt").write_text("\n".join(lines))


def test_the_printed_loop_runs_and_the_second_round_has_more_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink(REPO / "configs", tmp_path / "configs")
    write_shots(tmp_path / "shots")
    labels, told = [], ""
    commands = [line for line, typed in of_markdown(PAGE.read_text()) if typed]
    assert len(commands) == 6
    for line in commands:
        words = shlex.split(line)
        if words[0] == "cp":
            subprocess.run(line, shell=True, check=True)
            continue
        small = SMALL if "--config-file" in words else ()
        assert main([*words[1:], *small]) == 0, line
        told = capsys.readouterr().out
        labels.append(len(list((tmp_path / "shots" / "images").glob("*.json"))))
    assert labels == [6, 6, 6, 26, 26]  # 22 images had no labels
    assert '"segments"' in told
    assert (tmp_path / "output" / "round2" / "model_final.pth").is_file()
    assert (tmp_path / "output" / "round2" / "suggestions" / "doubted.html").is_file()
