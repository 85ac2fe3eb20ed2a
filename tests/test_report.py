"""`dearli report`: what the page says about run folders, that it needs nothing else, and that it opens in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError
from dearli_d2.report import album, write_report
from dearli_d2.report.album import Album
from dearli_d2.report.groups import Spread
from dearli_d2.report.log import read_log
from dearli_d2.report.page import _strongest
from dearli_d2.runs import run_folder

SCRIPT = '<script>document.title = "taken over"</script>'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data):
        self.text += data


def make_run(folder: Path, seed: int = 0, score: float = 50.0, lr: float = 0.1) -> Path:
    """A run as training leaves it, with names that are HTML."""
    evaluation = folder / "evaluation" / "val"
    (evaluation / "pictures").mkdir(parents=True)
    (folder / "batches").mkdir()
    (folder / "config.yaml").write_text(
        f"SEED: {seed}\nOUTPUT_DIR: {folder}\nSOLVER: {{MAX_ITER: 40, BASE_LR: {lr}}}\nTEST: {{BEST_METRIC: semantic/mIoU}}\n"
        "DATASETS: {TRAIN: [mine], UNLABELED: [rest], TEST: [val]}\nOLD: {KEY: 1}\n"
    )
    rows = [{"iteration": i, "total_loss": 9.0 - i / 10, "loss_ce_0": 1.0, "loss_ce": 2.0, "lr": lr} for i in (19, 39)]
    rows[0]["semantic/mIoU"], rows[1]["semantic/mIoU"] = score + 5, score
    (folder / "metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "log.txt").write_text(
        "[12/31 23:59:00] dearli_d2.runs INFO: environment:\ntorch                2.14.1\n"
        "[12/31 23:59:01] dearli_d2.runs INFO: command: dearli train --config-file configs/a.yaml SEED 1\n"
        "[12/31 23:59:10] dearli_d2.engine.checks INFO: mine: 12 images, 2 of 3 classes\n"
        f"[01/01 00:00:10] dearli_d2.x WARNING: beware of {SCRIPT}\n"
    )
    names = ["sky", SCRIPT, "$road_{1}$"]
    scores = {
        "mIoU": score,
        "per_class": {name: {"IoU": value} for name, value in zip(names, (score, 20.0, None), strict=True)},
        "confusion": [[90, 10, 0], [30, 70, 0], [0, 0, 0]],
    }
    (evaluation / "results.json").write_text(
        json.dumps({"dataset": "val", "iteration": 40, "results": {"semantic": scores}})
    )
    images = [
        {"image": f"/data/{n}<b>.jpg", "semantic/mIoU": 10.0 * n, "picture": f"pictures/{n}.png"} for n in range(1, 5)
    ]
    (evaluation / "per_image.json").write_text(json.dumps(images))
    for path in [
        *(evaluation / "pictures" / f"{n}.png" for n in range(1, 5)),
        folder / "batches/0000000_unlabeled.png",
    ]:
        Image.new("RGB", (40, 20), "red").save(path)
    return folder


@pytest.fixture
def report(tmp_path):
    """report(*folders): the page about them."""

    def make(*folders: Path) -> Page:
        write_report(folders, tmp_path / "report.html")
        return Page(tmp_path / "report.html")

    return make


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path, report):
    page = report(make_run(tmp_path / "a"), make_run(tmp_path / "b", lr=0.2))
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "xlink:href", "data", "action") if a.get(k)]
    assert len(addresses) > 10
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert set(re.findall(r"url\((.)", (tmp_path / "report.html").read_text())) <= {"#"}
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_of_classes_files_and_runs_are_text_never_html(tmp_path, report):
    page = report(make_run(tmp_path / "a <script>x()<" / "run"), make_run(tmp_path / "<b onclick=x()>" / "run"))
    assert [tag for tag, _ in page.tags].count("script") == 1  # our own
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(SCRIPT) > 3  # class table, confusions, axis of the heat map, warning
    assert "1<b>.jpg, semantic/mIoU 10.0" in page.text
    assert "$road_{1}$" in page.text


def test_the_head_says_what_was_trained_on_what_and_where(tmp_path, report):
    page = report(make_run(tmp_path / "a"))
    for expected in (
        "steps 40 of 40, not finished, last line of the log: 01/01 00:00:10", "duration 0:01:10", "torch 2.14.1",
        "dearli train --config-file configs/a.yaml SEED 1", "mine labelled 12 2 of 3 classes", "rest unlabelled unknown",
        "semantic/mIoU 50.00 55.00 (step 20)", "SOLVER.MAX_ITER", "OLD.KEY no key of this version 1",
    ):  # fmt: skip
        assert expected in re.sub(r"(?<=\S) +", " ", page.text), expected
    assert "loss_ce_0" not in page.text
    assert "1 losses of earlier layers" in page.text


def test_runs_that_differ_in_the_seed_alone_are_one_line_with_mean_and_deviation(tmp_path, report):
    page = report(
        make_run(tmp_path / "a_0", 0, 50), make_run(tmp_path / "a_1", 1, 54), make_run(tmp_path / "b", 0, 60, lr=0.2)
    )
    assert "a (2 seeds)" in page.text
    assert "semantic/mIoU 52.00 ± 2.83 57.00 ± 2.83 (step 20) 60.00 +8.00 65.00 (step 20)" in page.text
    assert "SOLVER.BASE_LR 0.0001 0.1 0.2" in page.text
    assert "SEED 0 0, 1 0" in page.text
    assert Spread.of([1.0, float("nan")]).text() == "1.0"


def test_classes_without_a_value_have_a_dash_and_classes_with_pixels_an_accuracy(tmp_path, report):
    text = report(make_run(tmp_path / "a")).text
    assert "sky 50.0 90.0" in text
    assert "$road_{1}$ – –" in text
    assert f"30 % of “{SCRIPT}” was found as “sky” (30 pixels)." in text


def test_strongest_confusions_leave_out_classes_of_few_pixels_and_right_pixels():
    matrix = np.array([[50000.0, 2000, 0], [400, 600, 0], [1, 0, 9]])
    assert _strongest(matrix, "abc") == [
        "40 % of “b” was found as “a” (400 pixels).",
        "4 % of “a” was found as “b” (2,000 pixels).",
    ]


def test_damaged_lines_and_missing_files_are_notes(tmp_path, report, capsys):
    run = make_run(tmp_path / "a")
    with (run / "metrics.json").open("a") as stream:
        stream.write('{"iteration": 59, "total_lo\n[1]\n{"iteration": 79, "total_loss": NaN}\n')
    (run / "log.txt").unlink()
    (run / "evaluation/val/per_image.json").write_text("{")
    (run / "evaluation/val/pictures/1.png").write_text("no picture")
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    error = capsys.readouterr().err
    for note in (
        "2 of 5 lines are damaged and left out: line 3, 4",
        "log.txt is missing",
        "per_image.json cannot be read",
    ):
        assert note in error
        assert note in Page(tmp_path / "r.html").text
    assert "1.png cannot be shown" in Page(tmp_path / "r.html").text


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.json", "log.txt", "evaluation"])
def test_one_part_of_a_run_is_enough_for_a_page_with_all_sections(tmp_path, report, kept):
    whole, part = make_run(tmp_path / "whole"), tmp_path / "part"
    part.mkdir()
    (shutil.copytree if (whole / kept).is_dir() else shutil.copy)(whole / kept, part / kept)
    page = report(part)
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == [
        "runs",
        "scores",
        "data",
        "curves",
        "classes",
        "confusions",
        "examples",
        "batches",
        "settings",
        "warnings",
    ]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing, .*none: no folder of a training run"):
        write_report([tmp_path / "nothing", tmp_path / "none", make_run(tmp_path / "a")], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_pictures_lead_out_of_no_run_and_stay_within_the_budget(tmp_path, monkeypatch, report):
    run = make_run(tmp_path / "a")
    secret = tmp_path / "secret.png"
    shutil.copy(run / "batches/0000000_unlabeled.png", secret)
    rows = [{"image": "x.jpg", "semantic/mIoU": 1.0, "picture": path} for path in (str(secret), "../../../secret.png")]
    (run / "evaluation/val/per_image.json").write_text(json.dumps(rows))
    assert "x.jpg" not in report(run).text
    monkeypatch.setattr(album, "_BUDGET", 1500)
    pictures = [Album(1)]
    shown = [pictures[0].embed(secret, "a") for _ in range(5)]
    assert 0 < sum(len(picture.url) for picture in shown) <= 1500
    assert "left out" in shown[-1].caption


def test_time_of_a_run_is_that_of_its_processes_without_the_breaks(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(
        "[02/28 10:00:00] dearli_d2.runs INFO: environment:\n[02/28 10:00:30] a INFO: b\nnoise\n"
        "[02/29 10:00:00] dearli_d2.runs INFO: environment:\n[02/29 10:01:00] d2.utils.events INFO:  iter: 9  max_mem: 512M\n"
        "error: process 1 of this machine was ended by SIGKILL\n"
    )
    found = read_log(log)
    assert (found.seconds, found.sessions, found.memory) == (90, 2, {9: 512.0})
    assert found.warnings == {("ERROR", "process 1 of this machine was ended by SIGKILL"): 1}


def test_a_real_run_lacks_nothing(ssl_config, report):
    cfg = ssl_config(
        "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "('miniworld_val@0.04',)", "TEST.PICTURES", "2", "SSL.PICTURE_PERIOD", "1",
        "SSL.MONITOR_PERIOD", "1", "SSL.MONITOR_IMAGES", "2",
    )  # fmt: skip
    with run_folder(cfg, resume=False):
        DualStreamTrainer(cfg).train()
    page = report(Path(cfg.OUTPUT_DIR))
    assert not [a for _, a in page.tags if a.get("class") in ("none", "note")] or "The log has no warning." in page.text
    assert sum(tag == "img" for tag, _ in page.tags) >= 5
    for expected in (
        "2 of 2, finished",
        "pseudo_label/PQ",
        "Worst images",
        "Unlabelled images",
        "miniworld_val@0.04 evaluation",
    ):
        assert expected in page.text, expected


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_page_and_a_click_sorts_the_classes(tmp_path):
    page = tmp_path / "report.html"
    write_report([make_run(tmp_path / "a")], page)
    assert "<title>a – dearli report</title>" in _in_browser(page)
    # the test's own script clicks, which the policy of the page forbids
    click = """<script>
    const heads = [...document.querySelectorAll(".sortable th")], first = () => document.querySelector(".sortable tbody td").dataset.value;
    const seen = [first()];
    for (const column of [1, 1, 0]) { heads[column].querySelector("button").click(); seen.push(first()); }
    document.body.textContent = JSON.stringify(seen);
    </script>"""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text()).replace("</body>", f"{click}</body>")
    page.write_text(text)
    shown = _in_browser(page)
    seen = json.loads(
        re.search(r"<body>(.*)</body>", shown, re.DOTALL)[1].strip().replace("&lt;", "<").replace("&gt;", ">")
    )
    assert seen == ["sky", "sky", "$road_{1}$", SCRIPT]  # by IoU down and up, by name


def _in_browser(page: Path) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    result = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout
