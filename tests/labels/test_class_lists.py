"""Masks without names of classes get a list to start with; a class list of the user's is the one that a look and training use."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.custom import TRAIN, VAL, register_custom
from dearli_d2.data.inspection import inspect_custom
from dearli_d2.errors import DatasetError, DearliError
from dearli_d2.labels.look import look
from dearli_d2.labels.structures import Request
from tests.conftest import REPO
from tests.labels.conftest import SIZE
from tests.labels.test_bad_labels import coco
from tests.labels.test_formats import config
from tests.labels.test_look import square
from tests.labels.test_mask_formats import values_of, write_masks

KEY = re.compile(r"DATASETS\.CUSTOM\.CLASSES \"(\[.*?\])\"( DATASETS\.CUSTOM\.LABELS masks)?")


def objects(index: int) -> np.ndarray:
    """0 nearly everywhere, 3 and 7 on a tenth, 255 = ignore."""
    values = np.zeros(SIZE, np.uint8)
    values[:10, :16], values[20:30, index : index + 16], values[:, 62:] = 3, 7, 255
    return values


def binary(index: int) -> np.ndarray:
    return np.where(objects(index) == 3, 255, 0).astype(np.uint8)


CASES = {
    "index masks of objects": (objects, "0 (86.", ["0 stuff background", "3 thing class 3", "7 thing class 7"]),
    "index masks of regions": (lambda i: values_of(i) % 255, "1 (8", ["0 stuff background", "1 stuff class 1", "2 stuff class 2"]),
    "binary masks": (binary, "255 (5.2", ["0 stuff background", "1 thing object"]),
    "binary masks in colour": (lambda i: np.repeat(binary(i)[..., None], 3, 2), "255 (5.2", ["0 stuff background", "1 thing object"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_masks_without_a_class_list_are_looked_at_with_one_that_training_reads_as_it_is(name, root, capsys):
    values, share, lines = CASES[name]
    path = write_masks(root, folder="masks", values=values)
    (root / "images" / "im5.jpg").unlink()
    assert main(["data", "look", str(path), "--images", str(root)]) == 0
    text = capsys.readouterr().out
    (given,) = KEY.findall(text)
    assert json.loads(given[0].replace("'", '"')) == lines
    assert share in text
    labels = ["DATASETS.CUSTOM.LABELS", "masks"]
    with pytest.raises(DearliError, match="have no names of classes") as error:
        config(root, *labels, "DATASETS.CUSTOM.CLASSES", "[]")
    assert KEY.findall(str(error.value)) == [given]
    cfg = config(root, *labels, "DATASETS.CUSTOM.CLASSES", given[0])
    register_custom(cfg.DATASETS.CUSTOM)
    assert len(dataset_dicts(TRAIN) + dataset_dicts(VAL)) == 5
    assert lines[-1].split(maxsplit=2)[-1] in inspect_custom(cfg.DATASETS.CUSTOM)


@pytest.mark.parametrize("values", [objects, binary])
def test_masks_beside_images_without_a_class_list_get_the_same_line(values, root):
    write_masks(root, folder="masks", values=values)
    (root / "images" / "im5.jpg").unlink()
    keys = ["DATASETS.CUSTOM.ROOT", str(root), "MODEL.DEVICE", "cpu", "DATASETS.CUSTOM.UNLABELED", "none"]
    small = REPO / "configs" / "custom" / "small.yaml"
    with pytest.raises(DearliError, match="CLASSES is empty") as error:
        get_config(small, keys)
    ((lines, binary_key),) = KEY.findall(str(error.value))
    assert bool(binary_key) == (values is binary)
    cfg = get_config(small, [*keys, "DATASETS.CUSTOM.CLASSES", lines, *binary_key.split()])
    register_custom(cfg.DATASETS.CUSTOM)
    assert len(dataset_dicts(TRAIN) + dataset_dicts(VAL)) == 5


def test_values_that_are_too_many_for_classes_are_no_proposal(root):
    noise = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE)
    write_masks(root, folder="masks", values=lambda i: noise)
    with pytest.raises(DatasetError, match=r"hold 256 values, which are too many for classes: 0, 1"):
        look(Request(root / "masks", root), "index-png")


def test_a_look_finds_what_training_refuses_in_any_mask(root, capsys):
    """The region counts stop after a while, so the faulty mask is the last one of many."""
    path = write_masks(
        root, folder="masks", values=lambda i: np.where(np.eye(*SIZE) * (i == 4), 9, values_of(i)).astype(np.uint8)
    )
    (root / "classes.txt").write_text("1 stuff road\n2 thing car\n")
    found = look(Request(path, root, classes=("1 stuff road", "2 thing car")), seconds=0)
    assert any(re.search(r"im4.png holds the value 9, which is no id", problem) for problem in found.refused)
    assert main(["data", "look", str(path), "--images", str(root)]) == 2
    text = capsys.readouterr().out
    assert "Training refuses these labels:\n- " in text
    assert '"2 thing car"' in text


def test_a_look_uses_the_class_list_with_its_synonyms(tmp_path, capsys):
    for index in range(3):
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / f"p{index}.jpg")
    content = coco(
        *(square(i, 1 + 20 * (c - 1), 15, id=3 * i + c, category_id=c) for i in range(3) for c in (1, 2)),
        images=[{"id": i, "file_name": f"p{i}.jpg"} for i in range(3)],
        categories=[{"id": 1, "name": "cars"}, {"id": 2, "name": "car"}],
    )
    (tmp_path / "labels.json").write_text(json.dumps(content))
    (tmp_path / "classes.txt").write_text("5 thing vehicle, car, cars\n")
    assert main(["data", "look", str(tmp_path / "labels.json")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"vehicle +thing +3 +6", text)
    assert '"5 thing vehicle, car, cars"' in text
    assert "nearly the same" not in text
    (tmp_path / "classes.txt").write_text("5 thing vehicle, car\n")
    assert main(["data", "look", str(tmp_path / "labels.json")]) == 2
    assert "DATASETS.CUSTOM.CLASSES lacks 1 of 2 classes" in capsys.readouterr().out


def test_an_export_s_list_of_names_is_no_class_list(root):
    """Label Studio's YOLO export has a classes.txt of names alone in the folder that is the root."""
    (root / "labels").mkdir()
    for index in range(5):
        (root / "labels" / f"im{index}.txt").write_text("1 0.1 0.1 0.4 0.1 0.4 0.4\n")
    (root / "labels" / "im3.txt").rename(root / "labels" / "im5.txt")
    (root / "classes.txt").write_text("tree\ncar\n")
    cfg = config(root, "DATASETS.CUSTOM.LABELS", ".", "DATASETS.CUSTOM.CLASSES", "[]")
    register_custom(cfg.DATASETS.CUSTOM)
    assert cfg.MODEL.NUM_CLASSES == 2


def empty_images(root) -> None:
    """Five images, of which two have labels without any region."""
    images = [{"id": i, "file_name": f"im{i}.jpg"} for i in range(5)]
    content = coco(*(square(i, 5, 15, id=i, category_id=1) for i in range(3)), images=images)
    (root / "images" / "day" / "im3.jpg").rename(root / "images" / "im3.jpg")
    (root / "labels.json").write_text(json.dumps(content))


def test_images_without_any_region_are_kept_and_told_with_the_key_each_time(root, caplog):
    empty_images(root)
    keys = ["DATASETS.CUSTOM.LABELS", "labels.json", "DATASETS.CUSTOM.CLASSES", "[]"]
    note = r"2 of 5 images have labels without any region: \S*im3.jpg, \S*im4.jpg. .*DATASETS.CUSTOM.BACKGROUND"
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        register_custom(config(root, *keys).DATASETS.CUSTOM)
        assert re.search(note, caplog.text)
    dicts = dataset_dicts(TRAIN) + dataset_dicts(VAL)
    assert sorted(len(d["segments_info"]) for d in dicts) == [0, 0, 1, 1, 1]
    assert any(re.search(note, remark) for remark in look(Request(root / "labels.json", root)).remarks)
    caplog.clear()
    cfg = config(root, *keys, "DATASETS.CUSTOM.BACKGROUND", "rest")
    register_custom(cfg.DATASETS.CUSTOM)
    assert "without any region" not in caplog.text
    assert min(len(d["segments_info"]) for d in dataset_dicts(TRAIN)) == 1
