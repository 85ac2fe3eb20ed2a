"""`dearli serve` over HTTP: answers, limits, who may ask, and errors as the one line they are."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import sys
import threading
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.images import read_image
from dearli_d2.data.panoptic_png import segment_ids
from dearli_d2.data.sizes import resize_labels
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError
from dearli_d2.predict import output_picture
from dearli_d2.run_model import RunModel
from dearli_d2.serve import desk as desk_module
from dearli_d2.serve.desk import MAX_BYTES, Desk
from dearli_d2.serve.server import Server
from tests.conftest import MINI_OVERRIDES, REPO

WORDS = "grass, sky|blue sky, <b>red</b>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Runs of two steps, with a text classifier and of a per-pixel model; low thresholds give the first segments."""
    from dearli_d2.config import get_config

    folders = {}
    for name, file in (("words", "m2f_lang.yaml"), ("fixed", "unimatch_v2.yaml")):
        folders[name] = tmp_path_factory.mktemp(name)
        few = "SOLVER.MAX_ITER", "2", "TEST.OBJECT_THRESHOLD", "0.0", "OUTPUT_DIR", str(folders[name])
        labels = "DATASETS.UNLABELED", "()", "TEST.WEIGHTS", "student"
        DualStreamTrainer(get_config(REPO / "configs/miniworld" / file, [*MINI_OVERRIDES, *few, *labels])).train()
    return folders


@pytest.fixture(scope="module")
def servers(runs):
    """A server of each run, in a thread."""
    started = {}
    for name, run in runs.items():
        started[name] = Server(0)
        desk = Desk(RunModel(run).predictor(), name)
        threading.Thread(target=started[name].run, args=(desk,), daemon=True).start()
    yield started
    for server in started.values():
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def photo() -> bytes:
    return Path(dataset_dicts("miniworld_val")[0]["file_name"]).read_bytes()


def ask(server: Server, path: str, content: bytes | None = None, **headers: str):
    """(status, headers, body) of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if content is None else "POST", path, content, named)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def error_of(server: Server, path: str, content: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and the one line of an answer that is an error."""
    status, _, body = ask(server, path, content, **headers)
    message = json.loads(body)["error"]
    assert "\n" not in message
    return status, message


def predict(server: Server, content: bytes, **asked: str) -> dict:
    status, _, body = ask(server, f"/predict?{urlencode({'name': 'photo.png', **asked})}", content)
    assert status == 200, body
    return json.loads(body)


# ---------------------------------------------------------------------------------------------- what it answers


def test_page_loads_nothing_from_elsewhere(servers):
    status, headers, body = ask(servers["words"], "/")
    page = body.decode()
    policy = headers["Content-Security-Policy"]
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert status == 200
    assert page.count(f'nonce="{nonce}"') == 2
    assert "//" not in "".join(line for line in page.splitlines() if "src" in line or "href" in line).replace("//)", "")
    assert policy.startswith("default-src 'none'")
    assert ask(servers["words"], "/")[1]["Content-Security-Policy"] != policy
    assert "innerHTML" not in page


def test_facts_say_whether_words_are_possible(servers):
    facts = {name: json.loads(ask(server, "/model")[2]) for name, server in servers.items()}
    assert [facts[name]["takesWords"] for name in ("words", "fixed")] == [True, False]
    assert facts["words"]["title"] == "words"
    assert len(facts["words"]["classes"]) == 16
    assert not facts["words"]["readsCaptions"]


@pytest.mark.parametrize("run", ["words", "fixed"])
def test_answer_is_the_prediction(servers, photo, run, tmp_path):
    server = servers[run]
    found = predict(server, photo)
    (tmp_path / "photo.png").write_bytes(photo)
    image = read_image(tmp_path / "photo.png")
    expected = server.desk.predictor(image)
    assert (found["height"], found["width"]) == image.shape[:2]
    size = found["map"]["height"], found["map"]["width"]
    values = np.frombuffer(base64.b64decode(found["map"]["values"]), "<u2").reshape(size)
    of_ids = {s["id"]: s for s in expected.segments}
    ids = [i for i in np.unique(expected.panoptic).tolist() if i]
    assert len(found["segments"]) == len(ids) > 0
    areas = [(expected.panoptic == i).sum() for i in ids]
    panoptic = resize_labels(expected.panoptic, size)
    for place, area_order in enumerate(np.argsort(-np.array(areas), kind="stable").tolist(), 1):
        segment, shown = of_ids[ids[area_order]], found["segments"][place - 1]
        assert shown["score"] == pytest.approx(segment["score"])
        assert shown["area"] == areas[area_order] / expected.panoptic.size
    for place, shown in enumerate(found["segments"], 1):
        (i,) = np.unique(panoptic[values == place]).tolist()
        assert expected.taxonomy.main_names[of_ids[i]["category_id"]] == shown["name"]
    assert np.array_equal(values == 0, panoptic == 0)
    for uri in found["pictures"].values():
        shown = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert shown.size == size[::-1]
    for kind in ("panoptic", "semantic", "overlay", "confidence"):
        status, headers, body = ask(server, f"/file?key={found['key']}&kind={kind}")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        file = np.asarray(Image.open(io.BytesIO(body)))
        assert np.array_equal(file, np.asarray(output_picture(kind, image, expected)))
        if kind == "panoptic":
            assert np.array_equal(segment_ids(file), expected.panoptic)


def test_words_hold_for_one_picture(servers, photo):
    before = predict(servers["words"], photo)
    other = predict(servers["words"], photo, words=WORDS)
    assert {s["name"] for s in other["segments"]} <= {"grass", "sky", "<b>red</b>"}
    assert all(s["thing"] for s in other["segments"])
    after = predict(servers["words"], photo, words=" ")
    assert after["segments"] == before["segments"]


def test_a_file_is_that_of_the_last_picture_or_of_none(servers, photo):
    first = predict(servers["words"], photo)["key"]
    predict(servers["words"], photo)
    assert error_of(servers["words"], f"/file?key={first}&kind=panoptic") == (
        410,
        "another picture has been segmented since; segment this one again",
    )
    assert error_of(servers["words"], "/file?key=%C3%A4&kind=panoptic")[0] == 410
    status, message = error_of(servers["words"], "/file?key=x&kind=../../etc/passwd")
    assert (status, message.partition(";")[0]) == (400, "there is no file '../../etc/passwd'")


# ---------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Host": "evil.example"}, "this page is for this machine alone"),
        ({"Host": "127.0.0.1.evil.example:7860"}, "this page is for this machine alone"),
        ({"Host": ""}, "this page is for this machine alone"),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, "another web page may not use this one"),
        ({"Origin": "https://evil.example"}, "another web page may not use this one"),
        ({"Origin": "null"}, "another web page may not use this one"),
    ],
)
def test_others_may_not_ask(servers, photo, headers, message):
    for path, content in (("/", None), ("/model", None), ("/predict?name=a.png", photo)):
        status, found = error_of(servers["words"], path, content, **headers)
        assert status == 403
        assert found.startswith(message)


def test_a_tunnel_may_have_another_port(servers):
    for host in ("localhost:8000", "127.0.0.1:8000", "localhost"):
        assert ask(servers["words"], "/model", Host=host, Origin=f"http://{host}")[0] == 200


def test_the_server_listens_on_the_loopback_alone(servers):
    assert servers["words"].socket.getsockname()[0] == "127.0.0.1"


def test_paths_are_no_files(servers):
    for path in ("/../setup.py", "/etc/passwd", "/static/../../x", "//etc/passwd", "/%2e%2e/setup.py"):
        assert error_of(servers["words"], path) == (404, "there is no such page")
    assert error_of(servers["words"], "/model", b"x") == (404, "there is no such page")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(servers):
    with socket.create_connection(("127.0.0.1", servers["words"].server_port), timeout=20) as line:
        line.sendall(f"POST /predict HTTP/1.0\r\nHost: localhost\r\nContent-Length: {10 * MAX_BYTES}\r\n\r\n".encode())
        answer = line.makefile("rb").read().decode()
    assert answer.split()[1] == "413"
    assert "the file has 640 MB; this page takes up to 64" in answer


@pytest.mark.parametrize(
    "length", ["", "Content-Length: -1\r\n", "Content-Length: ten\r\n", "Transfer-Encoding: chunked\r\n"]
)
def test_a_body_without_a_length_is_refused(servers, length):
    with socket.create_connection(("127.0.0.1", servers["words"].server_port), timeout=20) as line:
        line.sendall(f"POST /predict HTTP/1.0\r\nHost: localhost\r\n{length}\r\n".encode())
        assert line.makefile("rb").read().split()[1] == b"411"


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(servers, photo, monkeypatch):
    monkeypatch.setattr(desk_module, "MAX_PIXELS", 10**6)
    stream = io.BytesIO()
    Image.new("L", (2000, 1500)).save(stream, "PNG")
    status, message = error_of(servers["words"], "/predict?name=big.png", stream.getvalue())
    assert status == 400
    assert message == "big.png has 3 megapixels; this page takes up to 1. Make it smaller, or use dearli predict"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"no picture", "notes.txt cannot be read as an image: it is of no kind that is known"),
        ("", b"", "the picture cannot be read as an image: it is of no kind that is known"),
        ("/etc/passwd", b"", "passwd cannot be read as an image: it is of no kind that is known"),
        ("a.nef", b"II*", "a.nef is a raw photograph; convert it to JPEG or PNG"),
        ("a.heic", b"\0\0\0\x18ftypheic", "a.heic is a HEIC image"),
    ],
)
def test_what_is_no_picture_is_one_line(servers, name, content, message):
    status, found = error_of(servers["words"], f"/predict?{urlencode({'name': name})}", content)
    assert status == 400
    assert found.startswith(message) or (name == "a.heic" and found.startswith("a.heic cannot be read"))


def test_a_damaged_picture_is_one_line(servers, photo):
    status, message = error_of(servers["words"], "/predict?name=a.png", photo[: len(photo) // 2])
    assert status == 400
    assert message.startswith("a.png cannot be read as an image: ")
    assert "BytesIO" not in message


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("words", ",|,", "no class name in ',|,'; write for example 'cat, dog, grass'"),
        ("words", "cat, Cat", "two classes have the name 'cat' in 'cat, Cat'"),
        (
            "fixed",
            "cat, dog",
            "this model has a linear classifier of fixed classes; only a text classifier can take others",
        ),
    ],
)
def test_wrong_words_are_one_line_and_do_no_harm(servers, photo, run, words, message):
    before = predict(servers[run], photo)
    assert error_of(servers[run], f"/predict?{urlencode({'name': 'a.png', 'words': words})}", photo) == (400, message)
    assert predict(servers[run], photo)["segments"] == before["segments"]


def test_one_picture_at_a_time(servers, photo):
    desk = servers["words"].desk
    with desk._lock:
        assert error_of(servers["words"], "/predict?name=a.png", photo) == (
            503,
            "the model is at work on another picture; try again when that is done",
        )
    assert predict(servers["words"], photo)["segments"]


def test_an_error_of_the_program_is_one_line_and_the_next_picture_works(servers, photo, monkeypatch):
    desk = servers["words"].desk
    for error, message in (
        (ValueError("odd"), "error of the program: ValueError: odd"),
        (MemoryError(), "out of memory; use a smaller picture, or --device cpu"),
    ):

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(desk, "predictor", fail)
            patch.setattr(fail, "name_classes", lambda words: None, raising=False)
            assert error_of(servers["words"], "/predict?name=a.png", photo) == (500, message)
    assert predict(servers["words"], photo)["segments"]


def test_a_port_that_is_taken_is_an_error(servers):
    with pytest.raises(
        ConfigError, match=r"port \d+ cannot be used: Address already in use; choose another with --port"
    ):
        Server(servers["words"].server_port)


def test_nothing_asks_another_machine(runs, photo):
    """From the run's folder to the prediction: every name and every connection is that of the loopback."""
    asked, watched = [], True

    def watch(event: str, arguments: tuple) -> None:
        if watched and event in (
            "socket.connect",
            "socket.getaddrinfo",
            "socket.gethostbyaddr",
            "socket.gethostbyname",
        ):
            asked.append(str(arguments))

    sys.addaudithook(watch)  # it stays for the rest of the process
    try:
        with Server(0) as server:
            desk = Desk(RunModel(runs["words"]).predictor(), "run")
            threading.Thread(target=server.run, args=(desk,), daemon=True).start()
            predict(server, photo, words="sky, grass")
            server.shutdown()
    finally:
        watched = False
    assert asked
    assert all("127.0.0.1" in arguments for arguments in asked)
