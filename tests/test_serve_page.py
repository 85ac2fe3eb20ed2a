"""`dearli serve` as a user has it: the command in a process of its own, and its page in a real browser."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.engine.trainer import DualStreamTrainer
from tests.conftest import MINI_OVERRIDES, REPO

DROP = """async ([name, content]) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), given = new DataTransfer();
    given.items.add(new File([bytes], name));
    document.querySelector("#drop").dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: given}));
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps with a text classifier; low thresholds give the first segments."""
    from dearli_d2.config import get_config

    folder = tmp_path_factory.mktemp("run")
    few = (
        "SOLVER.MAX_ITER",
        "2",
        "TEST.OBJECT_THRESHOLD",
        "0.0",
        "TEST.OVERLAP_THRESHOLD",
        "0.0",
        "OUTPUT_DIR",
        str(folder),
    )
    DualStreamTrainer(get_config(REPO / "configs/miniworld/m2f_lang.yaml", [*MINI_OVERRIDES, *few])).train()
    return folder


@pytest.fixture(scope="module")
def photo() -> Path:
    return Path(dataset_dicts("miniworld_val")[0]["file_name"])


@pytest.fixture(scope="module")
def url(browser, run):
    """The address that the command prints. Ctrl-C ends it, quietly."""
    command = [sys.executable, "-m", "dearli_d2", "serve", str(run), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(
            r"open (http://127\.0\.0\.1:\d+/) in a browser of this machine; Ctrl-C ends it$", line.strip()
        )
        assert found, line + process.communicate(timeout=30)[1]
        yield found[1]
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
        assert (process.returncode, out, errors) == (0, "", "")
    finally:
        process.kill()


def names(page) -> list[str]:
    return page.locator("#list .name").all_inner_texts()


def test_a_picture_is_chosen_and_words_are_typed(page, url, photo, tmp_path):
    page.goto(url)
    page.locator("#words").fill("sky")
    assert page.locator("#go").is_disabled()
    page.locator("#words").fill("")
    page.set_input_files("#file", photo)
    page.wait_for_selector("#list li")
    assert len(names(page)) == int(page.inner_text("#count").split()[0])
    assert page.evaluate("document.querySelector('#shown').naturalWidth") == 256

    typed = "grass, <img src=x onerror=alert(1)>, sky|blue sky"
    page.fill("#words", typed)
    page.click("#go")
    page.wait_for_selector("#go:enabled")
    found = {re.sub(r" \d+$", "", name) for name in names(page)}
    assert found
    assert found <= {"grass", "<img src=x onerror=alert(1)>", "sky"}
    assert page.locator("#list img").count() == 0

    for kind in ("panoptic", "semantic", "overlay", "confidence"):
        with page.expect_download() as download:
            page.click(f"[data-kind={kind}]")
        assert download.value.suggested_filename == f"{photo.stem}_{kind}.png"
        download.value.save_as(tmp_path / f"{kind}.png")
    semantic = np.asarray(Image.open(tmp_path / "semantic.png"))
    assert semantic.shape == np.asarray(Image.open(photo)).shape[:2]
    assert semantic.max() < 3
    assert len(np.unique(np.asarray(Image.open(tmp_path / "panoptic.png")).reshape(-1, 3), axis=0)) >= len(names(page))


def test_a_picture_is_dropped_and_segments_are_pointed_at(page, url, photo):
    page.goto(url)
    page.wait_for_selector("#kinds button", state="attached")
    page.evaluate(DROP, ["dropped.jpg", base64.b64encode(photo.read_bytes()).decode()])
    page.wait_for_selector("#list li")
    assert page.inner_text("#facts").startswith("dropped.jpg · 128 × 128 · mean confidence ")
    page.locator("#list li").first.hover()
    assert page.locator("#list li.on").count() == 1
    dark = "([...document.querySelector('#light').getContext('2d').getImageData(0, 0, 256, 256).data].filter(x => x)).length"
    whole = page.evaluate(dark)
    share = page.locator("#list li").first.locator(".number").last.inner_text()
    assert 100 * (1 - whole / 256**2) == pytest.approx(int(re.search(r"\d+", share)[0]), abs=1)

    # where the map has a segment, the pointer names it
    box, listed = page.locator("#light").bounding_box(), names(page)
    for place, name in enumerate(listed, 1):
        pixel = page.evaluate(f"map.indexOf({place})")
        line, column = divmod(pixel, 256)
        page.mouse.move(box["x"] + (column + 0.5) / 256 * box["width"], box["y"] + (line + 0.5) / 256 * box["height"])
        assert page.inner_text("#tip").partition(" · ")[0] == name
        assert page.locator("#list li.on .name").all_inner_texts() == [name]
    page.click("[data-view=confidence]")
    assert page.get_attribute("#shown", "src").startswith("data:image/png;base64,")
    assert page.get_attribute("[data-view=confidence]", "aria-pressed") == "true"
    assert page.is_visible("#scale")


def test_errors_are_shown_as_they_are(page, url, photo, tmp_path):
    page.goto(url)
    page.wait_for_selector("#kinds button", state="attached")
    (tmp_path / "notes.jpg").write_text("no picture")
    page.set_input_files("#file", tmp_path / "notes.jpg")
    page.wait_for_selector("#message.wrong")
    assert page.inner_text("#message") == "notes.jpg cannot be read as an image: it is of no kind that is known"
    page.fill("#words", "cat, cat")
    page.set_input_files("#file", photo)
    page.wait_for_selector("#message.wrong:has-text('two classes')")
    assert page.inner_text("#message") == "two classes have the name 'cat' in 'cat, cat'"
    page.fill("#words", "cat")
    page.click("#go")
    page.wait_for_selector("#message.soft:has-text('Done')")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("model.maxBytes = 1024")
    page.set_input_files("#file", {"name": "big.jpg", "mimeType": "image/jpeg", "buffer": b"\0" * 2**21})
    page.wait_for_selector("#message.wrong")
    assert page.inner_text("#message").startswith("big.jpg has 2 MB; this page takes up to")
    assert not asked


def test_the_page_fits_a_phone(page, url, photo):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(url)
    page.set_input_files("#file", photo)
    page.wait_for_selector("#list li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_what_is_no_run_or_no_port_ends_at_once(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is no folder of a training run: it has no config.yaml\n"
    assert main(["serve", str(tmp_path), "--port", "70000"]) == 2
    assert "70000" in capsys.readouterr().err
