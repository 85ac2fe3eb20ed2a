"""`dearli suggest`: what it writes, that it goes on after an interruption, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.labels.recognition import read_labels
from dearli_d2.labels.structures import Request
from dearli_d2.suggest import doubted, unlabeled
from tests.conftest import MINI_OVERRIDES, REPO


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of three steps with a teacher and two classifiers."""
    out = tmp_path_factory.mktemp("run")
    cfg = get_config(
        str(REPO / "configs/miniworld/dear.yaml"),
        [*MINI_OVERRIDES, "DATASETS.TRAIN", "('miniworld_val@n4',)", "DATASETS.UNLABELED", "('miniworld_val@n4:unlabeled',)",
         "SSL.START", "0", "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(out)],
    )  # fmt: skip
    DualStreamTrainer(cfg).train()
    (out / "config.yaml").write_text(cfg.dump())
    return out


@pytest.fixture
def photos(tmp_path):
    """Five copies of the labelled images, and one image that is like none."""
    folder = tmp_path / "photos"
    (folder / "day").mkdir(parents=True)
    dicts = dataset_dicts("miniworld_val@n4")
    for index in range(5):
        shutil.copy(dicts[index % 4]["file_name"], folder / f"{index}.png")
    strange = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(strange).save(folder / "day" / "strange.png")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_the_image_that_is_like_no_other_comes_first_with_its_labels_and_a_page(run, photos, tmp_path, capsys):
    out = tmp_path / "next"
    command = ["suggest", str(run), "--images", str(photos), "--out", str(out), "--count", "2", "--format", "labelme"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"suggested": 2, "scored": 6, "skipped": 0, "out": str(out)}
    rows = rows_of(out / "suggestions.csv")
    assert [r["rank"] for r in rows] == ["1", "2"]
    assert rows[0]["image"] == "day/strange.png"
    first = rows[0]
    assert float(first["score"]) == pytest.approx(
        np.prod([float(first[k]) for k in ("uncertainty", "distance", "rarity")]), rel=1e-2
    )
    assert all(
        0 <= float(first[k]) <= 1 for k in ("entropy", "two views", "teacher and student", "learned and zero-shot")
    )
    page = (out / "suggestions.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http" not in page
    assert 'src="data:' in page
    assert "<script" not in page
    assert len(read_labels(Request(out / "prelabels" / "labelme", photos)).images) == 2
    # more suggestions begin with the same ones
    assert main([*command[:-4], "--count", "4", "--format", "labelme"]) == 0
    assert [r["image"] for r in rows_of(out / "suggestions.csv")][:2] == [r["image"] for r in rows]


def test_an_interrupted_call_goes_on_and_computes_no_image_twice(run, photos, tmp_path, monkeypatch):
    out, seen, whole = tmp_path / "next", [], unlabeled.score_image

    def look(signals, key):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(json.loads(key)[0])
        return whole(signals, key)

    command = ["suggest", str(run), "--images", str(photos), "--out", str(out), "--count", "3"]
    monkeypatch.setattr(unlabeled, "score_image", look)
    assert main(command) != 0
    journal = next(out.glob("suggested-*.jsonl"))
    with journal.open("a") as stream:  # what a kill in the middle of a line leaves
        stream.write('{"key": "[\\"/cut')
    monkeypatch.setattr(
        unlabeled, "score_image", lambda signals, key: seen.append(json.loads(key)[0]) or whole(signals, key)
    )
    assert main(command) == 0
    assert sorted(seen) == sorted(str(p.resolve()) for p in photos.rglob("*.png"))
    first = (out / "suggestions.csv").read_text()
    assert main(command) == 0
    assert len(seen) == 6
    assert (out / "suggestions.csv").read_text() == first
    shutil.copy(photos / "1.png", photos / "2.png")  # a file that has changed, and a new one
    shutil.copy(photos / "0.png", photos / "new.png")
    assert main([*command, "--overwrite"]) == 0
    assert sorted(Path(p).name for p in seen[6:]) == ["2.png", "new.png"]


def test_labelled_images_are_left_out_and_damaged_ones_named(run, tmp_path, caplog, capsys):
    source = Path(dataset_dicts("miniworld_val@n4")[0]["file_name"])
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "labelled.png").symlink_to(source)
    command = ["suggest", str(run), "--images", str(folder), "--out", str(tmp_path / "out"), "--by", "uncertainty"]
    assert main(command) == 2
    assert "all 1 images below" in capsys.readouterr().err
    shutil.copy(source, folder / "free.png")
    (folder / "broken.png").write_bytes(source.read_bytes()[:200])
    assert main(command) == 0
    assert "1 of 2 images are skipped" in caplog.text
    assert "broken.png" in caplog.text
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped"] == 1


def test_chance_is_the_same_twice_and_not_the_order_of_the_folder(run, photos, tmp_path):
    command = [
        "suggest",
        str(run),
        "--images",
        str(photos),
        "--count",
        "6",
        "--by",
        "random",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    first = [r["image"] for r in rows_of(tmp_path / "out" / "suggestions.csv")]
    assert main(command) == 0
    assert [r["image"] for r in rows_of(tmp_path / "out" / "suggestions.csv")] == first != sorted(first)


def test_labelled_segments_are_ranked_once_each_and_the_page_shows_the_first(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "doubts"
    command = ["suggest", str(run), "--labeled", "--count", "3", "--out", str(out)]
    assert main(command) == 0
    rows = rows_of(out / "doubted.csv")
    count = sum(not s["iscrowd"] for d in dataset_dicts("miniworld_val@n4") for s in d["segments_info"])
    assert 0.9 * count <= len(rows) <= count
    margins = [float(r["margin"]) for r in rows]
    assert margins == sorted(margins)
    assert all(r["label"] != r["model"] and r["trained_on"] == "yes" for r in rows)
    assert (out / "doubted.html").read_text().count("data:image/jpeg;base64,") == 3
    monkeypatch.setattr(doubted, "judge_image", lambda *_: pytest.fail("computed again"))
    assert main(command) == 0
    assert rows_of(out / "doubted.csv") == rows


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--labeled", "--by", "random"], "--labeled takes no --images"),
        (["--images", "nowhere"], "there is no image or folder nowhere"),
        (["--format", "none"], "the format 'none' is unknown"),
        (["--weights", "none.pth"], "no weight file none.pth"),
        (["--count", "0"], "--count"),
    ],
)
def test_wrong_options_are_one_line(run, words, reason, tmp_path, capsys):
    assert main(["suggest", str(run), "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert reason in error
    assert "Traceback" not in error
