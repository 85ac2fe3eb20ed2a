"""Own data: what a new user would do, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.data import miniworld
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.data.custom import TRAIN, UNLABELED, VAL, parse_classes, register_custom, write_example
from dearli_d2.data.inspection import inspect_custom
from dearli_d2.data.mappers import read_panoptic, segment_ids
from dearli_d2.errors import ConfigError, DatasetError
from tests.conftest import MINI_OVERRIDES, REPO

CLASSES = ["0 stuff ground, soil", "3 thing box, crate", "7 thing ball"]


@pytest.fixture
def root(tmp_path) -> Path:
    """Ten labelled images with two boxes that touch nothing, one ball, ground and an ignored strip; three unlabelled."""
    root = tmp_path / "data"
    for name in ("images", "masks", "unlabeled/deep"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(13):
        pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / ("images" if index < 10 else "unlabeled/deep") / f"im{index}.jpg")
        if index < 10:
            Image.fromarray(index_mask()).save(root / "masks" / f"im{index}.{'PNG' if index == 5 else 'png'}")
    return root


def index_mask() -> np.ndarray:
    mask = np.zeros((48, 64), np.uint8)
    mask[4:14, 4:14] = 3
    mask[20:34, 40:60] = 3
    mask[30:44, 10:22] = 7
    mask[46, 50] = 7  # a speck, too small for a thing
    mask[:, 62:] = 255
    return mask


def config(root: Path, *overrides: str, classes=CLASSES, file: str = "small.yaml"):
    return get_config(
        REPO / "configs" / "custom" / file,
        [
            "MODEL.DEVICE",
            "cpu",
            "DATASETS.CUSTOM.ROOT",
            str(root),
            "DATASETS.CUSTOM.CLASSES",
            str(list(classes)),
            *overrides,
        ],
    )


def test_index_masks_become_instances_and_regions(root):
    cfg = config(root)
    assert cfg.MODEL.NUM_CLASSES == 3
    register_custom(cfg.DATASETS.CUSTOM)
    train, val, unlabeled = (dataset_dicts(n) for n in (TRAIN, VAL, UNLABELED))
    assert (len(train), len(val), len(unlabeled)) == (8, 2, 3)
    assert {d["image_id"] for d in train}.isdisjoint(d["image_id"] for d in val)
    assert "pan_seg_file_name" not in unlabeled[0]
    taxonomy = taxonomy_of(TRAIN)
    assert taxonomy.names == (("ground", "soil"), ("box", "crate"), ("ball",))
    assert taxonomy.thing_ids == {1, 2}
    ids = segment_ids(read_panoptic(train[0]["pan_seg_file_name"]))
    labels = {s["id"]: s["category_id"] for s in train[0]["segments_info"]}
    assert sorted(labels.values()) == [0, 1, 1, 2]
    assert labels[ids[8, 8]] == labels[ids[25, 50]] == 1
    assert ids[8, 8] != ids[25, 50]  # two boxes
    assert labels[ids[0, 0]] == 0
    assert ids[0, 63] == 0  # ignored
    assert ids[46, 50] == 0  # the speck
    semantic = np.asarray(Image.open(train[0]["sem_seg_file_name"]))
    assert semantic[46, 50] == 2  # still a ball for the semantic score
    assert semantic[0, 63] == 255


def test_the_split_is_stable_and_conversion_happens_once(root, monkeypatch):
    custom = config(root).DATASETS.CUSTOM
    register_custom(custom)
    first = [d["image_id"] for d in dataset_dicts(VAL)]
    monkeypatch.setattr("dearli_d2.data.custom.convert_all", lambda *_: pytest.fail("converted again"))
    register_custom(custom)
    assert [d["image_id"] for d in dataset_dicts(VAL)] == first
    monkeypatch.undo()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "images" / "new.jpg")
    Image.fromarray(index_mask()).save(root / "masks" / "new.png")
    register_custom(custom)
    assert set(first) - {"new"} <= {d["image_id"] for d in dataset_dicts(VAL)} | {"new"}
    assert "new" in {d["image_id"] for d in dataset_dicts(TRAIN) + dataset_dicts(VAL)}


def test_a_panoptic_json_is_read_as_it_is(root):
    from dearli_d2.data.preparation import ids_to_rgb, save_png, segment_info

    (root / "pan").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 11, "name": "all", "isthing": 0}]}
    for index in range(10):
        ids = np.full((48, 64), 300)
        save_png(root / "pan" / f"im{index}.png", ids_to_rgb(ids))
        content["images"].append({"id": index, "file_name": f"im{index}.jpg", "height": 48, "width": 64})
        segments = [segment_info(300, 11, ids == 300)]
        content["annotations"].append({"image_id": index, "file_name": f"im{index}.png", "segments_info": segments})
    (root / "labels.json").write_text(json.dumps(content))
    keys = ("DATASETS.CUSTOM.PANOPTIC_JSON", "labels.json", "DATASETS.CUSTOM.MASKS", "pan")
    cfg = config(root, *keys, classes=[])
    assert cfg.MODEL.NUM_CLASSES == 1
    register_custom(cfg.DATASETS.CUSTOM)
    assert (len(dataset_dicts(TRAIN)), len(dataset_dicts(VAL))) == (8, 2)
    assert "all" in inspect_custom(cfg.DATASETS.CUSTOM)
    with pytest.raises(ConfigError, match="exclude each other"):
        config(root, *keys)


def test_the_example_generates_only_the_scenes_it_writes_as_the_data_set_has_them(tmp_path, monkeypatch):
    day = miniworld.root()
    monkeypatch.setattr(miniworld, "root", lambda *a, **k: pytest.fail("generated the whole data set"))
    write_example(tmp_path, labeled=2, unlabeled=1)
    for stem, folder in (("000000", "images"), ("000001", "images"), ("000002", "unlabeled")):
        assert (tmp_path / folder / f"{stem}.jpg").read_bytes() == (day / "images/train" / f"{stem}.jpg").read_bytes()
    for path in sorted((tmp_path / "masks").iterdir()):
        assert (np.asarray(Image.open(path)) == np.asarray(Image.open(day / "semantic/train" / path.name))).all()
    assert [len(list((tmp_path / n).iterdir())) for n in ("images", "masks", "unlabeled")] == [2, 2, 1]


def test_training_on_own_data_from_the_command_line(tmp_path, capfd):
    write_example(tmp_path / "mine", labeled=10, unlabeled=6)
    lines = (tmp_path / "mine" / "classes.txt").read_text().splitlines()
    out = tmp_path / "run"
    overrides = [*MINI_OVERRIDES, "DATASETS.TEST", "('custom_val',)", "DATASETS.CUSTOM.ROOT", str(tmp_path / "mine"),
                 "DATASETS.CUSTOM.CLASSES", str(lines), "OUTPUT_DIR", str(out), "SSL.IMS_PER_BATCH", "2", "SSL.START", "0",
                 "SOLVER.MAX_ITER", "2"]  # fmt: skip
    assert main(["--config-file", str(REPO / "configs/custom/small.yaml"), *overrides]) == 0
    log = (out / "log.txt").read_text()
    assert "custom_train: 8 images, 128 x 128" in log
    assert "custom_unlabeled: 6 images" in log
    assert "% of pixels" in log
    assert Image.open(out / "data.png").width > 640
    assert (out / "model_final.pth").is_file()
    assert (out / "evaluation" / "custom_val" / "results.json").is_file()
    # the saved config finds the data again
    assert (
        main(["--config-file", str(out / "config.yaml"), "--eval-only", "MODEL.WEIGHTS", str(out / "model_final.pth")])
        == 0
    )


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["0 stuff a", "1 thing"], "'1 thing' should read"),
        (["0 object a"], "should read 'ID thing NAME"),
        (["0 stuff a", "0 thing b"], "id 0 stands twice"),
        (["0 stuff a", "1 thing a, b"], "name a stands twice"),
        (["255 stuff a"], "means 'ignore'"),
        ([f"{i + 256} thing c{i}" for i in range(256)], "256 classes; index masks can have 255"),
    ],
)
def test_malformed_class_lists(classes, message):
    with pytest.raises(ConfigError, match=message):
        parse_classes(classes)


def broken(root: Path, how: str) -> None:
    (root / "masks" / "._im3.png").write_bytes(b"what macOS writes beside a file")
    if how == "mask missing":
        (root / "masks" / "im3.png").unlink()
    if how == "image missing":
        (root / "images" / "im3.jpg").unlink()
    if how == "stranger":
        mask = index_mask()
        mask[0, 0] = 99
        Image.fromarray(mask).save(root / "masks" / "im3.png")
    if how == "colour":
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "masks" / "im3.png")
    if how == "size":
        Image.fromarray(index_mask()[:, :40]).save(root / "masks" / "im3.png")
    if how == "damaged":
        (root / "masks" / "im3.png").write_bytes(b"no png")
    if how == "no masks":
        shutil.rmtree(root / "masks")
    if how == "no images":
        shutil.rmtree(root / "images")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("mask missing", r"1 of 10 images in .*images have no mask .*im3; move images without masks to .*unlabeled"),
        ("image missing", r"1 masks in .*masks have no image"),
        ("stranger", r"im3.png holds the value 99, which is no id in DATASETS.CUSTOM.CLASSES"),
        ("colour", r"im3.png is a colour image \(RGB\)"),
        ("size", r"im3.png is 40 x 48, its image is 64 x 48 pixels"),
        ("damaged", r"im3.png cannot be read as an index mask"),
        ("no masks", r"no folder .*masks of index masks"),
        ("no images", r"no folder .*images of labelled images"),
    ],
)
def test_broken_folders_are_named(root, how, message):
    broken(root, how)
    with pytest.raises(DatasetError, match=message):
        register_custom(config(root).DATASETS.CUSTOM)


def test_missing_unlabelled_folder_names_the_key(root):
    shutil.rmtree(root / "unlabeled")
    register_custom(config(root).DATASETS.CUSTOM)
    with pytest.raises(DatasetError, match="no image folder .*unlabeled; put unlabelled images there"):
        dataset_dicts(UNLABELED)


def test_template_without_a_root_says_so():
    with pytest.raises(ConfigError, match="DATASETS.CUSTOM.ROOT is missing"):
        get_config(REPO / "configs" / "custom" / "template.yaml", ["MODEL.DEVICE", "cpu"])
