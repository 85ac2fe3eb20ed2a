"""The preparation scripts on made-up downloads: right files, checks, resume."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli.base import run
from dearli_d2.config import get_config
from dearli_d2.data import streets
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.data.panoptic_png import read_panoptic, segment_ids
from dearli_d2.data.preparation import convert_all, read_label_ids
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.data.validation import validate_dataset
from dearli_d2.data.zero_shot import unseen_classes
from dearli_d2.errors import DatasetError
from dearli_d2.evaluation.semantic import read_semantic
from tests.conftest import REPO
from tests.data import downloads


def script(name):
    spec = importlib.util.spec_from_file_location(name, REPO / "datasets" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    module.main = partial(run, module.main)
    return module


@pytest.fixture
def ade(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return downloads.ade20k(tmp_path)


def test_ade20k_becomes_a_valid_panoptic_data_set(ade):
    module = script("prepare_ade20k")
    assert len(set(module.THING_CLASSES)) == 100
    assert module.main(["--workers", "1"]) == 0
    assert str(validate_dataset("ade20k_panoptic_train", 150)).startswith("ade20k_panoptic_train: 2 images, 3 of 150")
    taxonomy = taxonomy_of("ade20k_panoptic_val")
    assert len(taxonomy.thing_ids) == 100
    assert taxonomy.names[7] == ("bed",)
    assert taxonomy.names[8] == ("window", "windowpane")
    assert 7 in taxonomy.thing_ids
    assert 0 not in taxonomy.thing_ids
    d = dataset_dicts("ade20k_panoptic_val")[0]
    ids = segment_ids(read_panoptic(d["pan_seg_file_name"]))
    assert sorted(s["category_id"] for s in d["segments_info"]) == [0, 3, 7, 7]
    assert ids[0, 0] == 0
    assert ids[11, 15] == 0  # a thing pixel of no instance
    semantic = read_semantic(d)
    assert (semantic[0, 0], semantic[1, 1], semantic[9, 3], semantic[11, 15]) == (255, 0, 7, 7)
    assert not list(ade.glob("*.journal.jsonl"))


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (
            lambda r: (r / "annotations_instance/training/ADE_2.png").unlink(),
            "1 of 2 images have no label in .*annotations_instance.*ADE_2",
        ),
        (lambda r: (r / "objectInfo150.txt").unlink(), "no file .*objectInfo150.txt; download"),
        (lambda r: (r / "objectInfo150.txt").write_text("1\ta\n"), "lists 1 classes, not 150"),
        (
            lambda r: (r / "objectInfo150.txt").write_text(
                (r / "objectInfo150.txt").read_text().replace("\tsofa,", "\tsnail,")
            ),
            "objectInfo150.txt: class 24 is 'snail, another name', not 'sofa'",
        ),
        (
            lambda r: Image.new("RGB", (3, 3)).save(r / "annotations_instance/training/ADE_1.png"),
            "ADE_1: annotations are",
        ),
        (lambda r: (r / "annotations/training/ADE_1.png").write_bytes(b"x"), "ADE_1.png cannot be read as an image"),
        (
            lambda r: Image.new("L", (16, 12), 151).save(r / "annotations/training/ADE_1.png"),
            r"ADE_1: class 151 is not in 1..150",
        ),
        (
            lambda r: Image.new("RGB", (16, 12), (101, 1, 0)).save(r / "annotations_instance/training/ADE_1.png"),
            r"ADE_1: instance class 101 is not in 1..100",
        ),
    ],
)
def test_ade20k_problems_are_named(ade, breakage, words, capsys):
    breakage(ade)
    assert script("prepare_ade20k").main(["--workers", "1"]) == 2
    import re

    assert re.search(words, capsys.readouterr().err)


def test_conversion_resumes_and_drops_a_line_that_was_cut_off(tmp_path):
    journal, calls = tmp_path / "j.jsonl", []

    def convert(key):
        calls.append(key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"n": key * 2}

    with pytest.raises(KeyboardInterrupt):
        convert_all(["a", "b", "c", "d"], convert, journal, 1, "x")
    with journal.open("a") as log:
        log.write('{"key": "c", "resu')
    assert convert_all(["a", "b", "c", "d"], convert, journal, 1, "x") == [{"n": k * 2} for k in "abcd"]
    assert calls == ["a", "b", "c", "c", "d"]
    assert len(journal.read_text().splitlines()) == 4


@pytest.fixture
def coco(shared, tmp_path, monkeypatch):
    """The two sample images as if they were the official val2017 download."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root, sample = tmp_path / "coco", shared / "coco_panoptic_sample" / "sample_data"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    for image in (sample / "input_images").iterdir():
        (root / "val2017" / image.name).write_bytes(image.read_bytes())
    content = json.loads((sample / "panoptic_examples.json").read_text())
    content["categories"] = json.loads((shared / "coco_panoptic_sample" / "panoptic_coco_categories.json").read_text())
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    with zipfile.ZipFile(root / "annotations/panoptic_val2017.zip", "w") as archive:
        for png in (sample / "panoptic_examples").iterdir():
            archive.write(png, f"panoptic_val2017/{png.name}")
    return root


def test_coco_sample_goes_from_download_to_training_and_evaluation(coco, tmp_path, repo):
    from dearli_d2.cli import main

    assert script("prepare_coco").main(["--splits", "val"]) == 0
    assert str(validate_dataset("coco_panoptic_val", 133)).startswith("coco_panoptic_val: 2 images")
    overrides = [
        "MODEL.DEVICE", "cpu", "MODEL.NUM_CLASSES", "133", "DATASETS.TRAIN", "('coco_panoptic_val',)",
        "DATASETS.TEST", "('coco_panoptic_val',)", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2",
        "OUTPUT_DIR", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(["train", "--config-file", str(repo / "configs/miniworld/m2f.yaml"), *overrides]) == 0
    results = json.loads((tmp_path / "run/evaluation/coco_panoptic_val/results.json").read_text())["results"]
    assert len(results["panoptic"]["per_class"]) == 133
    assert 0 <= results["semantic"]["mIoU"] <= 100


def test_evaluator_equals_panopticapi_on_the_coco_sample(coco, tmp_path):
    """Predictions made from the truth: shifted by some pixels, every third segment of another class."""
    import torch
    from panopticapi.evaluation import pq_compute

    from dearli_d2.data.panoptic_png import ids_to_rgb
    from dearli_d2.data.preparation import save_png
    from dearli_d2.evaluation import PanopticEvaluator

    assert script("prepare_coco").main(["--splits", "val"]) == 0
    taxonomy = taxonomy_of("coco_panoptic_val")
    evaluator, annotations = PanopticEvaluator(taxonomy), []
    for d in dataset_dicts("coco_panoptic_val"):
        ids = np.roll(segment_ids(read_panoptic(d["pan_seg_file_name"])), 6, axis=1)
        local = np.zeros_like(ids)
        segments = []
        for i, s in enumerate(s for s in d["segments_info"] if (ids == s["id"]).any()):
            local[ids == s["id"]] = i + 1
            segments.append({"id": i + 1, "category_id": (s["category_id"] + (i % 3 == 2)) % 133})
        evaluator.process([d], [{"panoptic_seg": (torch.from_numpy(local), segments)}])
        save_png(tmp_path / "predicted" / f"{d['image_id']}.png", ids_to_rgb(local))
        infos = [{**s, "category_id": taxonomy.dataset_ids[s["category_id"]]} for s in segments]
        annotations.append({"image_id": d["image_id"], "file_name": f"{d['image_id']}.png", "segments_info": infos})
    (tmp_path / "predicted.json").write_text(json.dumps({"annotations": annotations}))
    theirs = pq_compute(
        str(coco / "annotations/panoptic_val2017.json"), str(tmp_path / "predicted.json"),
        str(coco / "panoptic_val2017"), str(tmp_path / "predicted"),
    )  # fmt: skip
    ours = evaluator.evaluate()["panoptic"]
    assert ours["PQ"] == pytest.approx(100 * theirs["All"]["pq"], abs=1e-9)
    assert ours["PQ_th"] == pytest.approx(100 * theirs["Things"]["pq"], abs=1e-9)
    assert 10 < ours["PQ"] < 90


def test_coco_resumes_and_names_problems(coco, capsys):
    module = script("prepare_coco")
    assert module.main(["--splits", "val"]) == 0
    labels = sorted((coco / "panoptic_val2017").iterdir())
    stamp = labels[1].stat().st_mtime_ns
    labels[0].write_bytes(b"half")
    assert module.main(["--splits", "val"]) == 0
    assert labels[1].stat().st_mtime_ns == stamp  # not written again
    assert labels[0].stat().st_size > 100
    next((coco / "val2017").iterdir()).unlink()
    assert module.main(["--splits", "val"]) == 2
    assert "1 of 2 images are missing" in capsys.readouterr().err
    assert module.main(["--splits", "train"]) == 2
    assert "panoptic_train2017.json; download" in capsys.readouterr().err


@pytest.fixture
def made_up_coco(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return downloads.coco_unpacked(tmp_path)


def test_labels_of_a_palette_image_are_its_indices(tmp_path):
    picture = Image.fromarray(np.array([[0, 7, 255]], np.uint8), mode="P")
    picture.putpalette([i for c in range(256) for i in (c, 255 - c, 7)])
    picture.save(tmp_path / "p.png")
    assert read_label_ids(tmp_path / "p.png").tolist() == [[0, 7, 255]]
    (tmp_path / "p.png").write_bytes((tmp_path / "p.png").read_bytes()[:60])
    with pytest.raises(DatasetError, match=r"p.png cannot be read as an image"):
        read_label_ids(tmp_path / "p.png")


def panoptic_ids(name):
    return segment_ids(read_panoptic(name))


def test_coco_objects_follow_the_published_protocol(made_up_coco, capsys):
    """Background first, of stuff and void, called "background" only; semantic truth from the masks of their own."""
    module = script("prepare_coco_objects")
    assert module.main(["--workers", "1"]) == 0
    assert "mIoU against" in capsys.readouterr().out
    assert "2 images, 2 of 81" in str(validate_dataset("coco_objects_train", 81))
    assert "2 images, 2 of 81" in str(validate_dataset("coco_objects_val", 81))
    taxonomy = taxonomy_of("coco_objects_val")
    assert taxonomy.thing_ids == frozenset(range(1, 81))
    assert taxonomy.names[0] == ("background",)
    assert (taxonomy.dataset_ids[:2], taxonomy.dataset_ids[80]) == ((0, 1), 90)
    before = panoptic_ids(str(made_up_coco / "panoptic_val2017" / "0.png"))
    for split in ("train", "val"):
        d = dataset_dicts(f"coco_objects_{split}")[0]
        assert sorted(s["category_id"] for s in d["segments_info"]) == [0, 80]
        ids = panoptic_ids(d["pan_seg_file_name"])
        assert np.array_equal(ids == 7, before == 7)  # the thing as it was
        assert np.unique(ids[before != 7]).tolist() == [70000]  # stuff and void as one, with the id of the first stuff
        assert {s["id"]: s["area"] for s in d["segments_info"]} == {7: 15, 70000: 105}
    semantic = read_semantic(dataset_dicts("coco_objects_val")[0])
    assert np.array_equal(semantic, np.asarray(Image.open(made_up_coco / "masks" / "0.png")))
    assert not list(made_up_coco.glob(".objects*"))


def test_coco_objects_without_stuff_or_without_void(made_up_coco):
    module = script("prepare_coco_objects")
    ids, segments = module.with_background(
        np.array([[0, 1, 2]]), [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 3}]
    )
    assert ids.tolist() == [[3, 1, 2]]  # the first free id
    assert (segments[-1]["id"], segments[-1]["category_id"], segments[-1]["area"]) == (3, 0, 1)
    ids, segments = module.with_background(
        np.array([[1, 1, 2]]), [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 3}]
    )
    assert ids.tolist() == [[1, 1, 2]]
    assert [s["id"] for s in segments] == [1, 2]


def test_coco_objects_can_take_the_semantic_truth_from_the_panoptic_labels(made_up_coco):
    for mask in (made_up_coco / "masks").iterdir():
        mask.unlink()
    module = script("prepare_coco_objects")
    assert module.main(["--workers", "1", "--splits", "val", "--semantic", "panoptic"]) == 0
    semantic = read_semantic(dataset_dicts("coco_objects_val")[0])
    before = panoptic_ids(str(made_up_coco / "panoptic_val2017" / "0.png"))
    assert np.array_equal(semantic, np.where(before == 7, 80, 0))


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (
            lambda r: (r / "panoptic_val2017/1.png").unlink(),
            "1 of 2 images have no label in .*panoptic_val2017: 1. run dearli prepare coco first",
        ),
        (
            lambda r: (r / "masks/1.png").unlink(),
            "1 of 2 images have no mask in .*masks: 1. .*download the COCO masks",
        ),
        (lambda r: Image.new("L", (12, 10), 81).save(r / "masks/0.png"), "masks/0.png: class 81 is not in 0..80"),
        (lambda r: Image.new("L", (10, 12)).save(r / "masks/0.png"), "masks/0.png has .12, 10. pixels"),
        (lambda r: edit_names(r, "../precious/1.png"), r"1 file names lead out of their folder: '../precious/1.png'"),
        (lambda r: edit_names(r, "/precious/1.png"), r"1 file names lead out of their folder: '/precious/1.png'"),
        (lambda r: edit_names(r, 7), r"panoptic_val2017.json: 1 annotations have no file name: \d+$"),
    ],
)
def test_coco_objects_problems_are_named(made_up_coco, breakage, words, capsys):
    (made_up_coco / "precious").mkdir()
    (made_up_coco / "precious" / "1.png").write_bytes((made_up_coco / "panoptic_val2017" / "1.png").read_bytes())
    kept = (made_up_coco / "precious" / "1.png").read_bytes()
    breakage(made_up_coco)
    assert script("prepare_coco_objects").main(["--workers", "1", "--splits", "val"]) == 2
    import re

    assert re.search(words, capsys.readouterr().err)
    assert (made_up_coco / "precious" / "1.png").read_bytes() == kept


def edit_names(root, name):
    """The second label file of the JSON file gets another name."""
    path = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["file_name"] = name
    path.write_text(json.dumps(content))


def test_unpacking_coco_never_leaves_the_folder(made_up_coco, capsys):
    edit_names(made_up_coco, "../precious.png")
    with zipfile.ZipFile(made_up_coco / "annotations/panoptic_val2017.zip", "w") as archive:
        archive.writestr("panoptic_val2017/0.png", b"a")
        archive.writestr("../precious.png", b"b")
    assert script("prepare_coco").main(["--splits", "val"]) == 2
    assert "lead out of their folder: '../precious.png'" in capsys.readouterr().err
    assert not (made_up_coco / "precious.png").exists()


def test_a_published_ade20k_file_has_the_clean_names(ade):
    """As Mask2Former's script writes it: several names in one, of its own choice."""
    from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

    assert script("prepare_ade20k").main(["--workers", "1"]) == 0
    ours = taxonomy_of("ade20k_panoptic_val").names
    path = ade / "ade20k_panoptic_val.json"
    content = json.loads(path.read_text())
    for category, name in zip(content["categories"], ADE20K_SEM_SEG_CATEGORIES, strict=True):
        category.pop("synonyms")
        category["name"] = name
    assert any("," in c["name"] for c in content["categories"])
    path.write_text(json.dumps(content))
    os.utime(path, (1, 1))
    assert taxonomy_of("ade20k_panoptic_val").names == ours


@pytest.fixture
def voc(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return downloads.pascal_voc(tmp_path)


def test_pascal_voc_joins_sbd_without_the_validation_images(voc, capsys):
    assert script("prepare_pascal_voc").main(["--workers", "1"]) == 0
    assert str(validate_dataset("pascal_voc_train", 21)).startswith("pascal_voc_train: 2 images, 3 of 21")
    train = {d["image_id"]: read_semantic(d) for d in dataset_dicts("pascal_voc_train")}
    assert sorted(train) == ["a", "b"]
    assert (train["b"] == 15).all()
    assert np.unique(train["a"]).tolist() == [0, 20, 255]  # VOC's label, not SBD's
    assert train["a"][4, 0] == 255
    assert [d["image_id"] for d in dataset_dicts("pascal_voc_val")] == ["v"]
    assert taxonomy_of("pascal_voc_val").names[1] == ("aeroplane", "airplane", "plane")
    (voc / "JPEGImages" / "b.jpg").unlink()
    assert script("prepare_pascal_voc").main(["--workers", "1"]) == 2
    Image.new("RGB", (8, 6)).save(voc / "JPEGImages" / "b.jpg")
    (voc.parents[1] / "benchmark_RELEASE" / "dataset" / "cls" / "b.mat").write_bytes(b"MATLAB")
    assert script("prepare_pascal_voc").main(["--workers", "1"]) == 2
    assert "b.mat is no label file of SBD" in capsys.readouterr().err
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n../../precious\n")
    assert script("prepare_pascal_voc").main(["--workers", "1"]) == 2
    assert "train.txt: 1 file names lead out of their folder: '../../precious'" in capsys.readouterr().err


@pytest.fixture
def cityscapes(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return downloads.cityscapes(tmp_path)


def test_cityscapes_has_the_19_classes_and_reads_the_published_lists(cityscapes, tmp_path):
    module = script("prepare_cityscapes")
    assert module.main(["--workers", "1"]) == 0
    assert str(validate_dataset("cityscapes_train", 19)).startswith("cityscapes_train: 1 images, 3 of 19")
    semantic = read_semantic(dataset_dicts("cityscapes_val")[0])
    assert [int(semantic[row, 0]) for row in range(4)] == [18, 255, 13, 0]
    lists = tmp_path / "partitions" / "cityscapes" / "1_8"
    lists.mkdir(parents=True)
    line = "leftImg8bit/train/jena/jena_1_leftImg8bit.png gtFine/train/jena/jena_1_gtFine_labelTrainIds.png"
    (lists / "labeled.txt").write_text(line + "\n")
    assert len(dataset_dicts("cityscapes_train@1_8")) == 1
    path = cityscapes / "gtFine" / "train" / "jena" / "jena_1_gtFine_labelIds.png"
    Image.fromarray(np.full((6, 12), 40, np.uint8)).save(path)
    with pytest.raises(DatasetError, match="jena_1_gtFine_labelIds.png: label id 40 is not in the table"):
        module.convert(cityscapes, "train", "jena/jena_1")


def test_pascal_voc_objects_leave_the_background_unannotated(voc):
    assert script("prepare_pascal_voc").main(["--workers", "1"]) == 0
    assert len(taxonomy_of("pascal_voc_objects_train")) == 20
    train = {d["image_id"]: read_semantic(d) for d in dataset_dicts("pascal_voc_objects_train")}
    assert np.unique(train["a"]).tolist() == [19, 255]
    assert (train["b"] == 14).all()


def test_coco_stuff_has_the_published_order_and_reads_its_label_maps(tmp_path, monkeypatch):
    module = script("prepare_coco_stuff")
    cfg = get_config(REPO / "configs/coco_stuff_zero_shot/split_matching_r101.yaml")
    taxonomy = Taxonomy.from_categories(module.CATEGORIES)
    assert list(unseen_classes(cfg.DATASETS.UNSEEN_CLASSES, taxonomy)) == [
        19,
        23,
        28,
        29,
        36,
        51,
        76,
        88,
        94,
        112,
        133,
        136,
        137,
        157,
        160,
    ]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "coco"
    for folder in ("val2017", "stuffthingmaps/val2017", "annotations"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (8, 4)).save(root / "val2017" / "000000000001.jpg")
    label = np.full((4, 8), 255, np.uint8)
    label[0], label[1], label[2] = 0, 181, 89  # person, wood, toothbrush (COCO id 90)
    Image.fromarray(label).save(root / "stuffthingmaps" / "val2017" / "000000000001.png")
    assert module.main(["--workers", "1", "--splits", "val"]) == 0
    semantic = read_semantic(dataset_dicts("coco_stuff_val")[0])
    assert [int(v) for v in semantic[:, 0]] == [0, 170, 79, 255]
    taxonomy = taxonomy_of("coco_stuff_val")
    assert taxonomy.names[160] == ("concrete wall",)
    assert (len(taxonomy), taxonomy.dataset_ids[170], len(taxonomy.thing_ids)) == (171, 182, 80)
    label[3] = 11  # id 12 is no class
    Image.fromarray(label).save(root / "stuffthingmaps" / "val2017" / "000000000001.png")
    assert module.main(["--workers", "1", "--splits", "val"]) == 2


# published: SYNTHIA-RAND-CITYSCAPES and Cityscapes label ids with their names
CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
SYNTHIA_IDS = {
    "sky": 1, "building": 2, "road": 3, "sidewalk": 4, "fence": 5, "vegetation": 6, "pole": 7, "car": 8,
    "traffic sign": 9, "person": 10, "bicycle": 11, "motorcycle": 12, "traffic light": 15, "terrain": 16, "rider": 17,
    "truck": 18, "bus": 19, "train": 20, "wall": 21,
}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "ids", "highest"),
    [(streets.label_table(), CITYSCAPES_IDS, 34), (streets.synthia_table(), SYNTHIA_IDS, 22)],
)
def test_every_published_label_id_has_the_right_class(table, ids, highest):
    names = [category["name"] for category in streets.CATEGORIES]
    for name, label in ids.items():
        assert names[table[label]] == name
    assert {i for i in range(256) if table[i] == 255} == set(range(highest + 1)) - set(ids.values())
    assert (table[highest + 1 :] == streets.UNKNOWN).all()


@pytest.fixture
def gta5(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return downloads.gta5(tmp_path)


def test_gta5_has_the_classes_of_cityscapes_and_names_pairs_that_do_not_fit(gta5, capsys):
    module = script("prepare_gta5")
    assert module.main(["--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 images are left out: 00002 (image 12 x 6, label 10 x 6 pixels)" in shown
    assert "person 1" in shown
    dicts = dataset_dicts("gta5_train")
    assert [read_semantic(dicts[0])[row, 0] for row in range(3)] == [11, 255, 0]
    assert str(validate_dataset("gta5_train", 19)).startswith("gta5_train: 1 images, 2 of 19")
    Image.fromarray(np.full((6, 12), 77, np.uint8)).save(gta5 / "labels" / "00001.png")
    assert module.main(["--workers", "1"]) == 2
    assert "00001.png: label id 77 is not in the table" in capsys.readouterr().err
    Image.new("RGB", (12, 6)).save(gta5 / "labels" / "00001.png")
    assert module.main(["--workers", "1"]) == 2
    assert "00001.png is no image of label ids" in capsys.readouterr().err
    (gta5 / "labels" / "00001.png").unlink()
    assert module.main(["--workers", "1"]) == 2
    assert "1 of 2 images have no label" in capsys.readouterr().err


def test_synthia_reads_16_bit_labels_and_shares_16_classes_with_cityscapes(cityscapes, tmp_path, capsys):
    path = downloads.synthia(tmp_path) / "GT" / "LABELS" / "0000000.png"
    module = script("prepare_synthia")
    assert module.main(["--workers", "1"]) == 0
    assert script("prepare_cityscapes").main(["--workers", "1"]) == 0
    taxonomy = taxonomy_of("synthia_train")
    assert taxonomy.names == taxonomy_of("cityscapes_16_train").names
    assert len(taxonomy) == 16
    assert not {"terrain", "truck", "train"} & set(taxonomy.main_names)
    semantic = read_semantic(dataset_dicts("synthia_train")[0])
    assert semantic[1:3, 0].tolist() == [255, 255]
    assert [taxonomy.main_names[semantic[row, 0]] for row in (0, 3)] == ["person", "road"]
    cv2.imwrite(str(path), np.full((6, 12, 3), 23, np.uint16))
    assert module.main(["--workers", "1"]) == 2
    assert "0000000.png: label id 23 is not in the table" in capsys.readouterr().err


def test_synthia_labels_are_decoded_as_png_only(tmp_path):
    """A JPEG under the name of a PNG is refused before OpenCV sees it."""
    path = tmp_path / "0000000.png"
    Image.new("RGB", (12, 6)).save(path, format="JPEG")
    with pytest.raises(DatasetError, match=r"0000000\.png is no PNG file"):
        script("prepare_synthia").read_labels(path)


def test_workers_end_with_a_preparation_that_is_killed(tmp_path):
    """Their end shows in the pipe: it ends when the last process that holds it has gone."""
    script = (
        "import time; from pathlib import Path; from dearli_d2.data.preparation import convert_all\n"
        "def slow(key): print(key, flush=True); time.sleep(60); return {}\n"
        f"convert_all([str(i) for i in range(16)], slow, Path({str(tmp_path / 'journal.jsonl')!r}), 2, 'slow')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPO
    )
    assert process.stdout.readline()  # a worker is at work
    process.kill()
    process.communicate(timeout=20)
