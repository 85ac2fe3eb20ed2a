"""Prediction of files: outputs, free text, damaged images."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dearli_d2
from dearli_d2 import predict
from dearli_d2.cli import main
from dearli_d2.data import sizes
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.panoptic_png import read_panoptic, segment_ids
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, DatasetError, WeightsError
from dearli_d2.predict import predict_files
from dearli_d2.prediction_folder import PredictionFolder, find_inputs
from dearli_d2.video import VideoWriter
from tests.conftest import REPO

LANG = str(REPO / "configs/miniworld/m2f_lang.yaml")
LINEAR = str(REPO / "configs/miniworld/m2f.yaml")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoints of a few steps, with a text and with a linear classifier."""
    from dearli_d2.config import get_config
    from tests.conftest import MINI_OVERRIDES

    folder, result = tmp_path_factory.mktemp("weights"), {}
    for name, config in (("lang", LANG), ("linear", LINEAR)):
        cfg = get_config(config, [*MINI_OVERRIDES, "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(folder / name)])
        DualStreamTrainer(cfg).train()
        result[name] = str(folder / name / "model_final.pth")
    return result


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i, d in enumerate(dataset_dicts("miniworld_val")[:2]):
        Image.open(d["file_name"]).resize((150 + 10 * i, 100)).save(folder / f"scene{i}.png")
    Image.open(folder / "scene0.png").save(folder / "more" / "scene0.jpg")
    return folder


def test_a_large_photograph_is_read_out_small_and_enlarged(weights, images, monkeypatch):
    image = np.asarray(Image.open(images / "scene0.png"))
    predictor = dearli_d2.Predictor(LANG, weights["lang"])
    whole = predictor(image)
    asked = []
    find = predictor.model.pending_maps
    monkeypatch.setattr(predictor.model, "pending_maps", lambda batch, *how: asked.extend(batch) or find(batch, *how))
    monkeypatch.setattr(sizes, "READ_OUT_PIXELS", image.shape[0] * image.shape[1] // 4)
    small = predictor(image)
    assert [(sample["height"], sample["width"]) for sample in asked] == [(50, 75)]
    assert small.panoptic.shape == small.semantic.shape == image.shape[:2]
    assert (small.semantic == whole.semantic).mean() > 0.9
    assert {s["id"] for s in small.segments} >= set(np.unique(small.panoptic)) - {0}


def test_tiles_batches_and_frames_from_the_command_line(weights, images, tmp_path, capsys):
    model = ["--config-file", LANG, "--weights", weights["lang"]]

    def files(name, *options):
        assert main(["predict", str(images), *model, "--out", str(tmp_path / name), *options]) == 0
        found = sorted(p for p in (tmp_path / name).rglob("*_*") if p.is_file())
        return {p.relative_to(tmp_path / name).as_posix(): np.asarray(Image.open(p)) for p in found}

    plain = files("plain")
    for name, array in files("held", "--tile", "160").items():  # a tile holds each image
        assert np.array_equal(array, plain[name])
    tiled = files("tiled", "--tile", "64", "--overlap", "16", "--batch", "3", "--amp", "bf16", "--files", "confidence")
    assert tiled["scene1_confidence.png"].shape == tiled["scene1_panoptic.png"].shape[:2] == (100, 160)
    assert json.loads((tmp_path / "tiled" / "predictions.json").read_text())["info"]["complete"]
    assert main(["predict", str(images), *model, "--out", str(tmp_path / "tiled"), "--files", "confidence"]) == 2
    assert "made with other --amp and --tile" in capsys.readouterr().err
    batched = files("batched", "--batch", "4")
    assert np.mean([np.mean(batched[name] == plain[name]) for name in plain]) > 0.99
    for options, message in ((["--tile", "64", "--overlap", "40"], "0 to 32"), (["--overlap", "8"], "needs --tile"), (["--shard", "2/2"], "one of 0..1"), (["--amp", "fp16"], "needs a GPU")):  # fmt: skip
        assert main(["predict", str(images), *model, "--out", str(tmp_path / "no"), *options]) == 2
        assert message in capsys.readouterr().err
    with VideoWriter(tmp_path / "in.mp4", 5) as writer:
        for _ in range(3):
            writer.add(plain["scene0_overlay.png"])
    for out, names in (("out.mp4", ["out.mp4"]), ("frames", [f"frames/{n:06}_panoptic.png" for n in (1, 2, 3)])):
        assert main(["video", str(tmp_path / "in.mp4"), *model, "--out", str(tmp_path / out)]) == 0
        assert all((tmp_path / name).is_file() for name in names)
    lines = (tmp_path / "frames" / "frames.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("torch_threads", [1, 2])
def test_labels_of_files_are_read_out_beside_a_network_of_one_thread(
    torch_threads, weights, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: torch_threads)
    predictor, threads = dearli_d2.Predictor(LANG, weights["lang"]), []
    read_out = predictor.model._label_map

    def watched(*how):
        threads.append(threading.current_thread())
        assert not torch.is_grad_enabled()
        return read_out(*how)

    monkeypatch.setattr(predictor.model, "_label_map", watched)
    found = find_inputs([images])
    assert predict_files(predictor, PredictionFolder(tmp_path / "out", found, {})).complete
    assert len(threads) == len(found.paths)
    assert (threading.main_thread() in threads) == (torch_threads > 1)
    for path, name in zip(found.paths, found.names, strict=True):
        ids = segment_ids(read_panoptic(str(tmp_path / "out" / f"{name}_panoptic.png")))
        assert np.array_equal(ids, predictor(path).panoptic)


def test_folder_with_a_damaged_image(weights, images, tmp_path, capsys):
    (images / "broken.jpg").write_bytes((images / "more" / "scene0.jpg").read_bytes()[:700])
    (images / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    status = main(["predict", str(images), "--config-file", LANG, "--weights", weights["lang"], "--out", str(out)])
    assert status == 0
    content = json.loads((out / "predictions.json").read_text())
    assert [Path(s["image"]).name for s in content["skipped"]] == ["broken.jpg"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["predicted"] == 3
    assert sorted(a["file_name"] for a in content["annotations"]) == [
        "more/scene0_panoptic.png", "scene0_panoptic.png", "scene1_panoptic.png",
    ]  # fmt: skip
    known = {c["id"] for c in content["categories"]}
    for entry, annotation in zip(content["images"], content["annotations"], strict=True):
        assert entry["id"] == annotation["image_id"]
        ids = segment_ids(read_panoptic(str(out / annotation["file_name"])))
        assert (
            ids.shape
            == (entry["height"], entry["width"])
            == np.asarray(Image.open(images / entry["file_name"])).shape[:2]
        )
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}
        semantic = np.asarray(Image.open(out / annotation["file_name"].replace("panoptic", "semantic")))
        assert semantic.shape == ids.shape
        assert set(np.unique(semantic)) <= known
        assert Image.open(out / annotation["file_name"].replace("panoptic", "overlay")).size[0] > ids.shape[1]


def test_the_same_command_may_be_repeated_and_another_may_not_replace_it(weights, images, tmp_path, capsys):
    command = [
        "predict",
        str(images),
        "--config-file",
        LANG,
        "--weights",
        weights["lang"],
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == main([*command, "MODEL.DEVICE", "cpu"]) == 0
    before = (tmp_path / "out" / "predictions.json").read_bytes()
    for more, other in ((["--text", "cat"], "classes"), (["INPUT.MIN_SIZE_TEST", "64"], "settings")):
        assert main([*command, *more]) == 2
        assert f"holds predictions made with other {other}; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "out" / "predictions.json").read_bytes() == before
    assert main([*command, "--text", "cat", "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["categories"][0]["name"] == "cat"


def test_a_list_of_images_of_any_kind_is_predicted_one_by_one(weights, images):
    predictor = dearli_d2.Predictor(LANG, weights["lang"])
    files = [images / "scene0.png", images / "scene1.png"]
    kinds = [str(files[0]), Image.open(files[1]), np.asarray(Image.open(files[0]))]
    found = predictor(kinds)
    assert [p.panoptic.shape for p in found] == [(100, 150), (100, 160), (100, 150)]
    for prediction, file in zip(found, [files[0], files[1], files[0]], strict=True):
        assert np.array_equal(prediction.panoptic, predictor(file).panoptic)
        assert np.array_equal(prediction.semantic, predictor(file).semantic)
    assert predictor([]) == []
    for captions in ("grass", ["grass"]):
        with pytest.raises(DatasetError, match="a list of 2 images needs a list of as many captions"):
            predictor(files, captions)


def test_text_swaps_the_vocabulary(weights, images):
    whole = dearli_d2.Predictor(LANG, weights["lang"])
    few = dearli_d2.Predictor(LANG, weights["lang"], class_names="grass, sky|blue sky, striped red")
    image = np.asarray(Image.open(images / "scene0.png"))
    assert whole(image).taxonomy.main_names[0] == "striped red"
    prediction = few(image)
    assert prediction.taxonomy.main_names == ["grass", "sky", "striped red"]
    assert prediction.semantic.max() <= 2
    assert prediction.panoptic.shape == image.shape[:2]


def test_checkpoint_brings_its_classes(weights, monkeypatch):
    """Without the training data on the machine the class names come from the file."""
    from dearli_d2 import modeling
    from dearli_d2.errors import DatasetError

    def refuse(name):
        raise DatasetError("not here")

    monkeypatch.setattr(modeling, "taxonomy_of", refuse)
    predictor = dearli_d2.Predictor(LANG, weights["lang"])
    assert predictor.model.taxonomy.main_names[-1] == "sand"


def test_errors_name_the_fix(weights, images, tmp_path, capsys):
    with pytest.raises(ConfigError, match="only a text classifier"):
        dearli_d2.Predictor(LINEAR, weights["linear"], class_names="cat, dog")
    with pytest.raises(WeightsError, match="does not fit this model"):
        dearli_d2.Predictor(LANG, weights["linear"])
    with pytest.raises(ConfigError, match="needs weights"):
        dearli_d2.Predictor(LANG)
    arguments = ["--config-file", LANG, "--weights", weights["lang"]]
    assert main(["predict", str(tmp_path / "none"), *arguments, "--out", str(tmp_path / "o")]) == 2
    assert "there is no image or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), *arguments, "--out", str(tmp_path / "o")]) == 2
    assert "no image (" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["predict", str(images), *arguments, "--out", str(tmp_path / "file" / "o")]) == 2
    assert "error: Not a directory" in capsys.readouterr().err


def test_all_images_damaged_is_a_failure(weights, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert (
        main(
            [
                "predict",
                str(tmp_path / "a.png"),
                "--config-file",
                LANG,
                "--weights",
                weights["lang"],
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 1
    )


def test_prediction_is_the_same_twice_and_in_eval_mode(weights, images):
    predictor = dearli_d2.Predictor(LANG, weights["lang"])
    image = np.asarray(Image.open(images / "scene1.png"))
    a, b = predictor(image), predictor(image)
    assert np.array_equal(a.panoptic, b.panoptic)
    assert not predictor.model.training
    with torch.enable_grad():
        assert not torch.is_tensor(predictor(image).semantic)


def test_a_semantic_model_predicts_one_segment_a_class(mini_config, tmp_path):
    options = ("SOLVER.MAX_ITER", "1", "SSL.START", "1", "SSL.PICTURE_PERIOD", "0", "SSL.MONITOR_PERIOD", "0")
    cfg = mini_config(*options, file="hvl.yaml")
    DualStreamTrainer(cfg).train()
    predictor = predict.Predictor(cfg, f"{cfg.OUTPUT_DIR}/model_final.pth")
    prediction = predictor(np.zeros((50, 70, 3), np.uint8))
    assert prediction.panoptic.shape == prediction.semantic.shape == (50, 70)
    assert np.array_equal(prediction.panoptic - 1, prediction.semantic)
    assert sorted(s["category_id"] for s in prediction.segments) == np.unique(prediction.semantic).tolist()


def test_a_model_that_reads_captions_gets_them_from_a_file(mini_config, images, tmp_path, capsys):
    cfg = mini_config("SSL.START", "9", "SOLVER.MAX_ITER", "2", "SSL.MONITOR_PERIOD", "0", file="semidavil.yaml")
    trainer = DualStreamTrainer(cfg)
    torch.nn.init.normal_(trainer.student.guidance.project.weight)
    trainer.train()
    config, weights = str(REPO / "configs/miniworld/semidavil.yaml"), f"{cfg.OUTPUT_DIR}/model_final.pth"
    captions = tmp_path / "captions.jsonl"
    entries = [("scene0.png", "grass"), (str(images / "scene1.png"), "striped red and sky"), ("scene0.jpg", "grass")]
    captions.write_text("".join(json.dumps({"file": f, "caption": c}) + "\n" for f, c in entries))
    command = ["predict", str(images), "--config-file", config, "--weights", weights, "--out", str(tmp_path / "out")]
    assert main([*command, "--captions", str(captions)]) == 0
    image = np.asarray(Image.open(images / "scene1.png"))
    predictor = dearli_d2.Predictor(cfg, weights)
    expected = predictor(image, "striped red and sky").semantic
    ids = np.array(predictor.model.taxonomy.dataset_ids)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "scene1_semantic.png")), ids[expected])
    assert not np.array_equal(predictor(image, "grass").semantic, expected)
    capsys.readouterr()
    command[-1] = str(tmp_path / "without")
    assert main(command) == 2
    assert "has no caption" in capsys.readouterr().err
    captions.write_text(json.dumps({"file": "scene0.png", "caption": "grass"}) + "\n")
    assert main([*command, "--captions", str(captions)]) == 2
    assert "2 of 3 images have no caption" in capsys.readouterr().err


def test_own_classes_in_another_order_than_the_weights_are_an_error(weights, repo):
    from dearli_d2.data.catalog import taxonomy_of

    known = taxonomy_of("miniworld_train")
    kinds = ["thing" if c in known.thing_ids else "stuff" for c in range(len(known))]
    lines = [f"{i} {kind} {', '.join(n)}" for i, kind, n in zip(known.dataset_ids, kinds, known.names, strict=True)]
    own = ["DATASETS.CUSTOM.ROOT", "mine", "DATASETS.CUSTOM.CLASSES"]
    dearli_d2.Predictor(dearli_d2.get_config(LANG, [*own, str(lines)]), weights["lang"])
    words = [line.split(" ", 2) for line in lines]
    words[0][2], words[3][2] = words[3][2], words[0][2]
    swapped = dearli_d2.get_config(LANG, [*own, str([" ".join(w) for w in words])])
    with pytest.raises(DatasetError, match="DATASETS.CUSTOM.CLASSES has other categories .* class 0 was 'striped red'"):
        dearli_d2.Predictor(swapped, weights["lang"])
