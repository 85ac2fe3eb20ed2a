"""Weights into models: the published names, reports, safe reading."""

from __future__ import annotations

import json
import pickle
import re

import click
import numpy as np
import pytest
import torch

from dearli_d2 import checkpoint
from dearli_d2.cli import main
from dearli_d2.cli.base import PictureFile
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.engine.checkpoints import RunCheckpoints
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.errors import WeightsError
from dearli_d2.modeling import build_model
from dearli_d2.weights import read_file, read_state_dict, state_dict_of, write_file


def test_a_wrong_name_and_a_wrong_shape_fail_verification(mini_config, repo, tmp_path, capsys):
    model = build_model(mini_config())
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    path = tmp_path / "names.json"
    arguments = [
        "checkpoint",
        "verify",
        "--config-file",
        str(repo / "configs/miniworld/m2f_lang.yaml"),
        "--names",
        str(path),
    ]
    path.write_text(json.dumps(shapes))
    assert main(arguments) == 0
    shapes["void_embedding.weight"] = [1, 63]
    shapes["extra.part.weight"] = [2]
    del shapes["sem_seg_head.predictor.logit_scale"]
    path.write_text(json.dumps(shapes))
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "1 missing, 1 unexpected, 1 of wrong shape" in out
    assert "void_embedding.weight is (1, 63) in the file, (1, 64) in the model" in out
    path.write_text("{")
    assert main(arguments) == 2


def test_verification_accepts_names_that_are_translated_or_left_out(mini_config, repo, tmp_path, capsys):
    """Published files say `static_query` and carry constants such as `pixel_mean`."""
    shapes = {name: list(value.shape) for name, value in build_model(mini_config()).state_dict().items()}
    query = "sem_seg_head.predictor.query_feat.weight"
    shapes[query.replace("query_feat", "static_query")] = shapes.pop(query)
    shapes |= {"pixel_mean": [3, 1, 1], "criterion.empty_weight": [17]}
    names = tmp_path / "names.json"
    names.write_text(json.dumps(shapes))
    weights = tmp_path / "published.pth"
    torch.save({"model": {name: torch.zeros(shape) for name, shape in shapes.items()}}, weights)
    for source in (("--names", str(names)), ("--weights", str(weights))):
        assert (
            main(["checkpoint", "verify", "--config-file", str(repo / "configs/miniworld/m2f_lang.yaml"), *source]) == 0
        )
        assert "0 missing, 0 unexpected, 0 of wrong shape" in capsys.readouterr().out


def test_a_method_translates_the_names_of_its_published_checkpoints(mini_config, tmp_path, monkeypatch):
    model = build_model(mini_config(), load_backbone=False)
    theirs = {f"their.{name}": value for name, value in model.state_dict().items()}
    torch.save(theirs, tmp_path / "theirs.pth")
    with pytest.raises(WeightsError, match="does not fit this model: 0 matched"):
        checkpoint.load_weights(model, tmp_path / "theirs.pth")
    monkeypatch.setattr(
        type(model), "own_names", lambda self, state: {n.removeprefix("their."): value for n, value in state.items()}
    )
    assert checkpoint.load_weights(model, tmp_path / "theirs.pth").complete
    report = EMATeacher(model).load_weights(tmp_path / "theirs.pth")
    assert "sem_seg_head.predictor.query_feat.weight" in report.matched
    assert not report.unexpected


def test_a_file_of_the_backbone_alone_loads_into_the_backbone(mini_config, tmp_path):
    torch.manual_seed(1)
    model = build_model(mini_config(), load_backbone=False)
    torch.save({k: v + 1 for k, v in model.backbone.state_dict().items()}, tmp_path / "backbone.pth")
    before = model.backbone.clip_model.text_projection.clone()
    report = checkpoint.load_weights(model, tmp_path / "backbone.pth", strict=False)
    assert torch.equal(model.backbone.clip_model.text_projection, before + 1)
    assert all(name.startswith(("sem_seg_head.", "void_embedding.")) for name in report.missing)


def test_pickles_of_arrays_are_read_and_code_is_refused(tmp_path):
    good, bad = tmp_path / "good.pkl", tmp_path / "bad.pkl"
    good.write_bytes(pickle.dumps({"model": {"a.weight": np.ones((2, 3), np.float32)}}))
    assert torch.equal(read_state_dict(good)["a.weight"], torch.ones(2, 3))

    class Attack:
        def __reduce__(self):
            return (print, ("code ran",))

    bad.write_bytes(pickle.dumps({"model": Attack()}))
    with pytest.raises(WeightsError, match="not allowed in a weight file"):
        read_file(bad)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.pkl"])
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=f"{name} cannot be read as weights"):
        read_file(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "it is a pointer of Git LFS"),
        (b"<html>404</html>", r"\w+"),
        (b"", r"\w+"),
    ],
)
def test_the_reason_is_one_line_without_advice_to_trust_the_file(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"not a weight file\): ({words})") as caught:
        read_file(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_what_another_program_calls_config_or_taxonomy_is_no_end(mini_config, caplog):
    model = build_model(mini_config(), load_backbone=False)
    for config in ("hello", "a: 1", "a: [1", 3, "MODEL: {PIXEL_MEAN: x, PIXEL_STD: []}"):
        assert checkpoint.load_content(model, {"model": model.state_dict(), "config": config}, "w.pth").complete
    assert caplog.text.count("w.pth holds a config that is none of this project") == 5
    for taxonomy in ("x", None, {}, {"names": 5}, {"names": [["a"]], "thing_ids": [], "dataset_ids": [], "colors": []}):
        with pytest.raises(WeightsError, match="w.pth: its entry 'taxonomy' is no list of classes"):
            Taxonomy.of_checkpoint({"taxonomy": taxonomy}, "w.pth")
    with pytest.raises(WeightsError, match="holds no tensor"):
        state_dict_of({"model": {"a": np.array(["text"])}}, "w.pth")


def test_unknown_kind_and_missing_file(tmp_path):
    (tmp_path / "w.txt").write_text("")
    with pytest.raises(WeightsError, match="unknown kind"):
        read_file(tmp_path / "w.txt")
    with pytest.raises(WeightsError, match="no weight file"):
        read_file(tmp_path / "none.pth")


def test_weights_of_another_model_give_one_report(mini_config, tmp_path):
    torch.save({"model": build_model(mini_config()).state_dict()}, tmp_path / "lang.pth")
    other = build_model(mini_config(file="m2f.yaml"))
    with pytest.raises(WeightsError) as caught:
        checkpoint.load_weights(other, tmp_path / "lang.pth")
    message = str(caught.value)
    assert "missing in the file: sem_seg_head.predictor.class_embed" in message
    assert "void_embedding" in message
    report = checkpoint.load_weights(other, tmp_path / "lang.pth", strict=False)
    assert not report.complete
    assert any(n.startswith("sem_seg_head.pixel_decoder") for n in report.matched)


def test_killed_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    run = RunCheckpoints(tmp_path, keep=2)
    run.save("model_0000002", {"iteration": 2})

    def die(state, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        run.save("model_0000004", {"iteration": 4})
    assert run.load_last() == {"iteration": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000002.pth"]


def test_old_periodic_checkpoints_are_removed_and_others_kept(tmp_path):
    run = RunCheckpoints(tmp_path, keep=2)
    run.save_apart("model_best", {"iteration": 1})
    for i in (1, 2, 3, 4):
        run.save(f"model_{i:07d}", {"iteration": i})
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "model_0000003.pth",
        "model_0000004.pth",
        "model_best.pth",
    ]
    (tmp_path / "model_0000004.pth").unlink()
    with pytest.raises(WeightsError, match="names model_0000004.pth, which is not there"):
        run.last()


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_note_of_the_last_evaluation_is_named(tmp_path, content):
    (tmp_path / "evaluated.json").write_text(content)
    with pytest.raises(WeightsError, match=r"evaluated.json is damaged: .*; delete it"):
        RunCheckpoints(tmp_path, keep=1).evaluated()


@pytest.mark.parametrize("name", ["folder", "a.nix"])
def test_pictures_have_a_name_that_says_their_format(name):
    with pytest.raises(click.BadParameter, match="is no name of a picture; name it .png"):
        PictureFile().convert(name, None, None)


def test_export_refuses_names_that_could_not_be_read_again(tmp_path):
    path = tmp_path / "model.pth"
    write_file(path, {"model": {"a": torch.zeros(2)}, "optimizer": {"b": 1}})
    for name in ("x.safetensors", "x.pkl", "x"):
        with pytest.raises(WeightsError, match="name it .pth, .pt, .bin"):
            checkpoint.export(str(path), tmp_path / name, "student")
    with pytest.raises(WeightsError, match="is the checkpoint itself"):
        checkpoint.export(str(path), tmp_path / "." / "model.pth", "student")
    assert checkpoint.export(str(path), tmp_path / "x.bin", "student") == 1
    assert list(read_file(tmp_path / "x.bin")) == ["model"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pth", "x.bin"]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_options_that_count_take_numbers_from_one_on(value, capsys):
    command = ["masks", "generate", "--images", ".", "--out", "o", "--generator", "classical", "--batch-size", value]
    assert main(command) == 2
    assert re.search(f"--batch-size': '?{value}'? is not ", capsys.readouterr().err)
