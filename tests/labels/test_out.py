"""Predictions in the formats of labelling tools: what is read back is what was predicted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.panoptic_png import read_panoptic, segment_ids
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError
from dearli_d2.labels.convert import flat_shapes, write_labels
from dearli_d2.labels.formats import formats
from dearli_d2.labels.geometry import decode, encode
from dearli_d2.labels.recognition import read_labels
from dearli_d2.labels.structures import LabelClass, LabeledImage, LabelSet, Request, Shape
from tests.conftest import MINI_OVERRIDES, REPO
from tests.labels.conftest import SIZE, name_of

EXACT = [name for name, format in formats().items() if format.writer and name in ("coco-instances", "coco-panoptic")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of three steps with a teacher."""
    out = tmp_path_factory.mktemp("run")
    cfg = get_config(
        str(REPO / "configs/miniworld/ssl.yaml"),
        [*MINI_OVERRIDES, "DATASETS.TRAIN", "('miniworld_val@n4',)", "DATASETS.UNLABELED", "('miniworld_val@n4:unlabeled',)",
         "SSL.START", "0", "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(out)],
    )  # fmt: skip
    DualStreamTrainer(cfg).train()
    (out / "config.yaml").write_text(cfg.dump())
    return out


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "day").mkdir(parents=True)
    for d, name in zip(dataset_dicts("miniworld_val"), ("a.png", "day/b.png", "day/c.png"), strict=False):
        Image.open(d["file_name"]).save(folder / name)
    return folder


def test_predictions_in_a_format_hold_the_predicted_segments_and_their_confidence(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(photos), "--config-file", str(run / "config.yaml"), "--weights", str(run / "model_final.pth"),
               "--out", str(out), "--files", "confidence", *(w for name in EXACT for w in ("--format", name))]  # fmt: skip
    assert main(command) == 0
    assert main(command) == 0  # the same command may be repeated
    assert not list(out.rglob("*_overlay.png"))
    content = json.loads((out / "predictions.json").read_text())
    for name in EXACT:
        labels = read_labels(Request(out / name, photos))
        assert labels.format == name
        by_name = {image.file.relative_to(photos).as_posix(): image for image in labels.images}
        assert set(by_name) == {"a.png", "day/b.png", "day/c.png"}
        for entry, annotation in zip(content["images"], content["annotations"], strict=True):
            ids = segment_ids(read_panoptic(str(out / annotation["file_name"])))
            shapes = by_name[entry["file_name"]].shapes()
            assert len(shapes) == len(annotation["segments_info"])
            for shape, info in zip(shapes, annotation["segments_info"], strict=True):
                np.testing.assert_array_equal(decode(shape.rle), ids == info["id"])
                assert shape.name == info["category_name"]
                assert shape.score == pytest.approx(info["score"], abs=1e-4)
    confidence = np.asarray(Image.open(out / "day" / "b_confidence.png"))
    assert confidence.shape == np.asarray(Image.open(photos / "day" / "b.png")).shape[:2]
    assert len(np.unique(confidence)) > 10


def test_a_run_labels_its_unlabelled_images(run, tmp_path, capsys):
    out = tmp_path / "labels"
    few = ["DATASETS.UNLABELED", "('miniworld_val@n96:unlabeled',)"]
    assert main(["pseudo-label", str(run), "--out", str(out), "--format", "coco-instances", *few]) == 0
    images = {d["file_name"] for d in dataset_dicts("miniworld_val@n96:unlabeled")}
    labels = read_labels(Request(out / "coco-instances", Path(next(iter(images))).parent))
    assert {str(image.file) for image in labels.images} == images
    assert len(list(out.rglob("*_confidence.png"))) == len(images)
    status = main(["pseudo-label", str(run), "--out", str(out), "--format", "labelmee"])
    assert status == 2
    assert "coco-instances" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_refused_with_its_checkpoints(run, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    assert main(["pseudo-label", str(tmp_path)]) == 2
    assert "model_0000001.pth" in capsys.readouterr().err
    assert main(["pseudo-label", str(tmp_path / "nothing")]) == 2


def overlapping(root):
    """A large car over a road, and a small car in front of it that the file names first."""
    masks = {name: np.zeros(SIZE, bool) for name in ("small", "large", "road")}
    masks["small"][10:14, 10:14] = masks["large"][5:30, 5:30] = masks["road"][20:, :] = True
    shapes = [Shape("car", encode(masks["small"])), Shape("road", encode(masks["road"])), Shape("car", encode(masks["large"]))]  # fmt: skip
    image = LabeledImage(root / "images" / name_of(0), SIZE, lambda: shapes)
    classes = [LabelClass("road", 1, False), LabelClass("car", 2, True)]
    return LabelSet(root, "made", classes, [image], True, ""), masks


def test_overlaps_are_cut_small_objects_on_large_ones_and_objects_on_stuff(root):
    labels, masks = overlapping(root)
    found = {(s.name, int(decode(s.rle).sum())): decode(s.rle) for s in flat_shapes(labels.images[0], labels)}
    wanted = [
        ("car", masks["small"]), ("car", masks["large"] & ~masks["small"]), ("road", masks["road"] & ~masks["large"]),
    ]  # fmt: skip
    assert len(found) == 3
    for name, mask in wanted:
        np.testing.assert_array_equal(found[name, int(mask.sum())], mask)


def test_a_written_folder_is_whole_or_absent_and_never_replaced_unasked(root, monkeypatch):
    labels, _ = overlapping(root)
    out = root / "out"
    make = formats()["coco-instances"].writer

    def fail(self):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(make, "finish", fail)
        with pytest.raises(OSError, match="disk full"):
            write_labels(labels, "coco-instances", out, root / "images")
    assert not out.exists()
    write_labels(labels, "coco-instances", out, root / "images")
    before = (out / "instances.json").read_bytes()
    with pytest.raises(ConfigError, match="--overwrite"):
        write_labels(labels, "coco-instances", out, root / "images")
    assert (out / "instances.json").read_bytes() == before


def test_convert_says_what_it_wrote(root, capsys):
    labels, _ = overlapping(root)
    write_labels(labels, "coco-instances", root / "one", root / "images")
    command = ["data", "convert", str(root / "one"), "--images", str(root / "images"), "--to", "coco-panoptic", "--out"]
    assert main([*command, str(root / "two")]) == 0
    assert "1 images with 2 classes as coco-panoptic" in capsys.readouterr().out
    shapes = read_labels(Request(root / "two", root)).images[0].shapes()
    assert sorted(s.name for s in shapes) == ["car", "car", "road"]
    assert main(["data", "formats"]) == 0
    assert "coco-instances" in capsys.readouterr().out
