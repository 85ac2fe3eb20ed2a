"""Downloads are whole or absent, and a machine without internet is told so within two seconds."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import open_clip
import pytest
import timm
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from safetensors.torch import save_file

from dearli_d2 import download as module
from dearli_d2 import weight_list
from dearli_d2.cli import dearli
from dearli_d2.download import download, only_cache_if_offline, why_unreachable
from dearli_d2.errors import WeightsError
from dearli_d2.methods.eomt.vit import build_vit
from dearli_d2.modeling.backbone.clip_model import build_clip
from dearli_d2.modeling.backbone.open_clip import build_frozen_clip
from dearli_d2.modeling.backbone.timm import TimmBackbone
from dearli_d2.modeling.clip.tokenizer import tokenizer_of
from dearli_d2.weight_list import PublishedWeights
from tests.conftest import REPO

CONTENT = bytes(range(256)) * 12000  # three chunks
SUMS = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "md5": hashlib.md5(CONTENT).hexdigest()[:6]}


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT under every path. `server.breaks` connections end in the middle; it keeps the ranges that were asked for."""

    def do_HEAD(self):
        self.send_response(self.server.status)
        self.hub_headers()
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def hub_headers(self):
        self.send_header("ETag", f'"{SUMS["sha256"]}"')
        self.send_header("X-Repo-Commit", "b" * 40)

    def do_GET(self):
        given = self.headers.get("Range")
        self.server.ranges.append(given)
        start = int(given.removeprefix("bytes=").partition("-")[0]) if given and self.server.resumes else 0
        self.send_response(206 if start else 200)
        self.hub_headers()
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT) // 2 if self.server.breaks > 0 else len(CONTENT)
        self.server.breaks -= 1
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.ranges, server.breaks, server.resumes = 200, [], 0, True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    for name, folder in (("DEARLI_WEIGHTS", "own"), ("DEARLI_CACHE", "cache"), ("TORCH_HOME", "torch")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


# ---------------------------------------------------------------------------------------------- files


def test_a_broken_download_is_continued(server, tmp_path):
    target, server.breaks = tmp_path / "w.pth", 1
    with pytest.raises(WeightsError, match="ended after 1536000 of 3072000 bytes"):
        download(f"{server.url}/w.pth", target, len(CONTENT), SUMS)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth.part"]
    download(f"{server.url}/w.pth", target, len(CONTENT), SUMS)
    assert server.ranges == [None, "bytes=1536000-"]
    assert target.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize("known", [True, False], ids=["server cannot resume", "no checksum is published"])
def test_what_cannot_be_continued_starts_again(server, tmp_path, known):
    target, server.breaks, server.resumes = tmp_path / "w.pth", 1, not known
    checksums = SUMS if known else {}
    with pytest.raises(WeightsError):
        download(f"{server.url}/w.pth", target, checksums=checksums)
    download(f"{server.url}/w.pth", target, checksums=checksums)
    assert target.read_bytes() == CONTENT
    assert server.ranges[1] == ("bytes=1536000-" if known else None)


@pytest.mark.parametrize(
    ("size", "checksums", "fault"),
    [
        (0, {"sha256": "0" * 64}, "its SHA256 begins with"),
        (0, {"md5": "000000"}, "its MD5 begins with"),
        (17, {}, "it has 3072000 bytes instead of 17"),
    ],
)
def test_another_file_is_refused_and_nothing_of_it_stays(server, tmp_path, size, checksums, fault):
    with pytest.raises(WeightsError, match=fault):
        download(f"{server.url}/w.pth", tmp_path / "w.pth", size, checksums)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_no_file_and_goes_on(server, tmp_path, monkeypatch):
    read, target = module._read, tmp_path / "w.pth"

    def interrupted(answer, url):
        if target.with_name("w.pth.part").stat().st_size:
            raise KeyboardInterrupt
        return read(answer, url)

    monkeypatch.setattr(module, "_read", interrupted)
    monkeypatch.setattr(module, "_CHUNK", 1 << 20)
    with pytest.raises(KeyboardInterrupt):
        download(f"{server.url}/w.pth", target, len(CONTENT), SUMS)
    assert not target.exists()
    monkeypatch.setattr(module, "_read", read)
    download(f"{server.url}/w.pth", target, len(CONTENT), SUMS)
    assert target.read_bytes() == CONTENT


def test_a_full_disk_leaves_nothing_and_names_the_file(server, tmp_path, monkeypatch):
    def full(url, part):
        part.write_bytes(CONTENT[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_receive", full)
    with pytest.raises(OSError, match="No space") as found:
        download(f"{server.url}/w.pth", tmp_path / "w.pth", len(CONTENT), SUMS)
    assert found.value.filename == str(tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- hosts


@contextmanager
def silent_port():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def quick():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://192.0.2.1", "https://no-such-host.invalid"])
def test_a_host_that_cannot_be_reached_is_known_within_two_seconds(host):
    with quick():
        assert why_unreachable(f"{host}/file")


def test_a_host_that_is_silent_is_known_within_two_seconds():
    with silent_port() as url, quick():
        assert why_unreachable(url) in ("no answer within 1.5 s", "timed out")


def test_a_name_that_nobody_looks_up_is_known_within_two_seconds(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(5) or [])
    with quick():
        assert why_unreachable("http://weights.invalid") == "no answer within 1.5 s"


def test_every_answer_but_that_of_a_dead_server_will_do(server):
    for server.status, reached in ((200, True), (302, True), (401, True), (404, True), (503, False)):
        assert (why_unreachable(server.url) == "") == reached


def test_proxies_of_the_environment_are_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    assert why_unreachable("http://weights.invalid/file") == ""
    monkeypatch.setenv("no_proxy", "weights.invalid")
    assert why_unreachable("http://weights.invalid/file")


def test_offline_mode_of_the_hub_is_honoured(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    assert why_unreachable(f"{server.url}/owner/model") == "HF_HUB_OFFLINE is set"


# ---------------------------------------------------------------------------------------------- doors


@pytest.fixture
def no_hub(monkeypatch):
    """The hub accepts connections and never answers."""
    with silent_port() as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        yield


@pytest.mark.parametrize(
    ("build", "keys"),
    [
        (lambda: TimmBackbone("resnet50.tv_in1k", "pretrained"), "MODEL.BACKBONE.TAG to tv_in1k"),
        (lambda: build_vit("vit_small_patch14_dinov2", "pretrained", 518, 14), "MODEL.BACKBONE.TAG to lvd142m"),
        (lambda: build_clip("ViT-B-16", "openai"), "MODEL.BACKBONE.TAG to openai"),
        (
            lambda: build_frozen_clip("ViT-B-16", "openai"),
            "MODEL.TEXT.WEIGHTS to the file and MODEL.TEXT.TAG to openai",
        ),
    ],
    ids=["timm", "eomt", "open_clip", "text encoder"],
)
def test_a_backbone_without_its_weights_says_what_to_do(no_hub, build, keys):
    with quick(), pytest.raises(WeightsError, match=f"cannot be reached.*dearli weights get .*{keys}") as found:
        build()
    assert "licence" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_model_of_the_hub_is_read_from_the_cache_where_the_hub_is_silent(no_hub, tmp_path):
    with (
        quick(),
        pytest.raises(WeightsError, match="owner/model is not in the cache"),
        only_cache_if_offline("owner/model"),
    ):
        pass
    (tmp_path / "hub" / "models--owner--model").mkdir(parents=True)
    with quick(), only_cache_if_offline("owner/model"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_a_tokenizer_of_the_hub_is_not_waited_for_either(no_hub, tmp_path, name):
    repository = open_clip.get_model_config(name)["text_cfg"]["hf_tokenizer_name"]
    with quick(), pytest.raises(WeightsError, match=f"{repository} is not in the cache"):
        tokenizer_of(name)
    (tmp_path / "hub" / f"models--{repository.replace('/', '--')}").mkdir(parents=True)  # begun, and never finished
    with pytest.raises(WeightsError, match=f"{repository}, the tokenizer of {name}, cannot be read"):
        tokenizer_of(name)


def in_hub_cache(tmp_path, repository, file):
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    path = folder / "snapshots" / ("a" * 40) / file
    path.parent.mkdir(parents=True)
    return path


def test_a_cached_file_of_timm_needs_no_network(no_hub, tmp_path):
    network = timm.create_model("resnet10t")
    path = in_hub_cache(tmp_path, "timm/resnet10t.c3_in1k", "model.safetensors")
    save_file(network.state_dict(), path)
    backbone = TimmBackbone("resnet10t", "pretrained")
    own = network.state_dict()
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_a_cached_file_of_open_clip_needs_no_network(no_hub, tmp_path, monkeypatch):
    name = "miniworld-convnext"
    entry = dict(open_clip.get_pretrained_cfg("ViT-B-16", "openai"), hf_hub="owner/clip/", url="", quick_gelu=False)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"made_up": entry})
    shipped = build_clip(name, "shipped").state_dict()
    save_file(shipped, in_hub_cache(tmp_path, "owner/clip", "open_clip_model.safetensors"))
    built = build_clip(name, "made_up").state_dict()
    assert all(torch.equal(value, shipped[key]) for key, value in built.items())


def shell(*words: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", **environment}
    command = [sys.executable, "-m", "dearli_d2", *words]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=90)


def test_training_without_network_ends_with_one_line():
    backbone = ("NAME", "TimmBackbone", "ARCH", "resnet50.tv_in1k", "WEIGHTS", "pretrained")
    keys = [word if i % 2 else f"MODEL.BACKBONE.{word}" for i, word in enumerate(backbone)]
    config = ("--config-file", "configs/miniworld/m2f.yaml", "MODEL.DEVICE", "cpu")
    with silent_port() as url:
        output = os.environ["DEARLI_CACHE"]
        result = shell("train", *config, *keys, "OUTPUT_DIR", f"{output}/run", HF_ENDPOINT=url, HF_HOME=output)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "timm/resnet50.tv_in1k (model.safetensors" in lines[0]


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def made_up(server, monkeypatch):
    weights = PublishedWeights("made/up", "a test", url=f"{server.url}/w.pth", files=("w.pth",), checksums=SUMS)
    by_hand = PublishedWeights("made/by_hand", "a test", by_hand="https://example.org/folder")
    monkeypatch.setattr(weight_list, "published", lambda: {w.name: w for w in (weights, by_hand)})
    return weights


def run(*words):
    return CliRunner().invoke(dearli, ["weights", *words], standalone_mode=False)


def test_get_downloads_path_finds_and_a_changed_file_is_refused(made_up, tmp_path):
    assert run("path", "made/up").return_value == 1
    path = tmp_path / "cache" / "weights" / "made" / "up" / "w.pth"
    assert run("get", "made/up").stdout == f"{path}\n"
    assert run("path", "made/up").stdout == f"{path}\n"
    assert " yes " in run("list", "made/up").stdout
    path.write_bytes(b"changed")
    result = run("get", "made/up")
    assert result.return_value == 2
    assert "its SHA256 begins with" in result.stderr


def test_get_of_a_file_that_has_no_link_says_where_it_is(made_up):
    result = run("get", "made/by_hand")
    assert result.return_value == 2
    assert "download it by hand from https://example.org/folder" in result.stderr


def test_get_of_a_hub_file_is_found_by_its_packages(server, tmp_path):
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    result = shell("weights", "get", "timm/resnet50.tv_in1k", **environment)
    assert result.returncode == 0, result.stderr
    path = Path(result.stdout.splitlines()[-1])
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "home" / "hub" / "models--timm--resnet50.tv_in1k")
    again = shell("weights", "path", "timm/resnet50.tv_in1k", HF_HOME=str(tmp_path / "home"))
    assert again.stdout == f"{path}\n"


def test_list_and_show_need_no_torch():
    code = "import sys\nfrom dearli_d2.cli import main\nmain(['weights', 'list'])\nmain(['weights', 'show', 'sam/vit_h'])\n"
    code += "assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "licence   Apache-2.0" in result.stdout
