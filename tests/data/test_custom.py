"""Own data: what a new user would do, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.data import miniworld
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.data.custom import TRAIN, UNLABELED, VAL, register_custom
from dearli_d2.data.custom_classes import parse_classes
from dearli_d2.data.custom_example import write_example
from dearli_d2.data.inspection import inspect_custom, write_contact_sheet
from dearli_d2.data.panoptic_png import ids_to_rgb, read_panoptic, segment_ids, segment_info
from dearli_d2.data.preparation import save_png
from dearli_d2.errors import ConfigError, DatasetError, DearliError
from dearli_d2.visualization import annotation_sheet
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
    monkeypatch.setattr("dearli_d2.data.custom_masks.convert_all", lambda *_: pytest.fail("converted again"))
    register_custom(custom)
    assert [d["image_id"] for d in dataset_dicts(VAL)] == first
    monkeypatch.undo()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "images" / "new.jpg")
    Image.fromarray(index_mask()).save(root / "masks" / "new.png")
    register_custom(custom)
    assert set(first) - {"new"} <= {d["image_id"] for d in dataset_dicts(VAL)} | {"new"}
    assert "new" in {d["image_id"] for d in dataset_dicts(TRAIN) + dataset_dicts(VAL)}


def test_a_panoptic_json_is_read_as_it_is(root):
    keys = panoptic_folder(root)
    cfg = config(root, *keys, classes=[])
    assert cfg.MODEL.NUM_CLASSES == 2
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
    assert main(["train", "--config-file", str(REPO / "configs/custom/small.yaml"), *overrides]) == 0
    log = (out / "log.txt").read_text()
    assert "custom_train: 8 images, 128 x 128" in log
    assert "custom_unlabeled: 6 images" in log
    assert "% of pixels" in log
    assert Image.open(out / "data.png").width > 640
    assert (out / "model_final.pth").is_file()
    assert (out / "evaluation" / "custom_val" / "results.json").is_file()
    # the saved config finds the data again
    assert main(["eval", "--config-file", str(out / "config.yaml"), "--weights", str(out / "model_final.pth")]) == 0


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["0 stuff a", "1 thing"], "'1 thing' should read"),
        (["0 object a"], "should read 'ID thing NAME"),
        (["0 stuff a", "0 thing b"], "id 0 stands twice"),
        (["0 stuff a", "1 thing a, b"], "name a stands twice"),
        (["255 stuff a"], "means 'ignore'"),
        ([0, 1], "0 should read"),
        ([{0: "stuff a"}], "should read 'ID thing NAME, SYNONYM' or 'ID stuff NAME', in quotes"),
        (["0 stuff ,"], "'0 stuff ,' should read"),
        (["0 stuff Road", "1 thing road"], "name road stands twice"),
        (["0 stuff road", "70000 thing car"], "id 70000 is beyond a PNG's 16 bits"),
        ([f"{i + 256} thing c{i}" for i in range(256)], "256 classes; index masks can have 255"),
    ],
)
def test_malformed_class_lists(classes, message):
    with pytest.raises(ConfigError, match=message):
        parse_classes(classes)


def save(root: Path, name: str, mask: np.ndarray, **options) -> None:
    Image.fromarray(mask).save(root / "masks" / f"{name}.png", **options)


def every_mask(root: Path, change) -> None:
    for index in range(10):
        path = root / "masks" / f"im{index}.{'PNG' if index == 5 else 'png'}"
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path, format="PNG")


def stranger(root):
    mask = index_mask()
    mask[0, 0] = 99
    save(root, "im3", mask)


def turned(root):
    """Labels that fit the stored pixels of an image that is seen turned."""
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.open(root / "images" / "im3.jpg").save(root / "images" / "im3.jpg", exif=tags)


def rename_masks(root, pattern):
    for path in list((root / "masks").iterdir()):
        path.rename(path.with_name(pattern.format(path.stem)))


def as_jpeg(root):
    for path in list((root / "masks").glob("im*")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()


def yolo(root):
    shutil.rmtree(root / "masks")
    (root / "labels").mkdir()
    (root / "labels" / "im0.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")


def labelme(root):
    shutil.rmtree(root / "masks")
    (root / "images" / "im0.json").write_text('{"version": "5.0", "shapes": [], "imagePath": "im0.jpg"}')


def in_subfolder(root):
    (root / "masks" / "train").mkdir()
    for path in list((root / "masks").glob("*.[pP]*")):
        path.rename(path.parent / "train" / path.name)


BROKEN = {
    "mask missing": (lambda r: (r / "masks/im3.png").unlink(), r"1 of 10 images in .*images have no mask .*im3; move images without masks to .*unlabeled"),
    "image missing": (lambda r: (r / "images/im3.jpg").unlink(), r"1 masks in .*masks have no image"),
    "image of another kind": (lambda r: (r / "images/im3.jpg").rename(r / "images/im3.gif"), r"no image in .*im3; .*im3.gif is there, but files of this suffix are not read"),
    "stranger": (stranger, r"im3.png holds the value 99, which is no id in DATASETS.CUSTOM.CLASSES"),
    "colour": (lambda r: save(r, "im3", np.zeros((48, 64, 3), np.uint8)), r"im3.png is a colour image \(RGB\)"),
    "size": (lambda r: save(r, "im3", index_mask()[:, :40]), r"1 of 10 masks have another size .*im3.png is 40 x 48, its image is 64 x 48 pixels"),
    "turned image": (turned, r"im3.png is 64 x 48, its image is 48 x 64 pixels as its EXIF tag turns it; .*remove the tag"),
    "damaged": (lambda r: (r / "masks/im3.png").write_bytes(b"no png"), r"im3.png cannot be read as an index mask"),
    "no masks": (lambda r: shutil.rmtree(r / "masks"), r"no folder .*masks of index masks"),
    "no images": (lambda r: shutil.rmtree(r / "images"), r"no folder .*images of labelled images"),
    "binary": (lambda r: every_mask(r, lambda m: np.where(m > 0, 255, 0).astype(np.uint8)), r"all 10 masks hold 0 and 255 only"),
    "masks called _mask": (lambda r: rename_masks(r, "{}_mask.png"), r"im0_mask.png seems to be the mask of im0: give masks the names .*DATASETS.CUSTOM.LABELS masks"),
    "masks called .jpg.png": (lambda r: rename_masks(r, "{}.jpg.png"), r"im0.jpg.png seems to be the mask of im0"),
    "masks in another subfolder": (in_subfolder, r"train/im0.png seems to be the mask of im0: masks must lie in the same subfolders"),
    "JPEG masks": (as_jpeg, r"im0.jpg is there, but masks must be PNG files: JPEG compression changes values"),
    "YOLO": (yolo, r"im0.txt is a YOLO label file: .*data.yaml .*DATASETS.CUSTOM.LABELS"),
    "Labelme": (labelme, r"images is of the format labelme: set DATASETS.CUSTOM.LABELS images"),
    "two suffixes": (lambda r: Image.new("RGB", (64, 48)).save(r / "images/im3.webp"), r"differ in the suffix only: im3"),
    "two masks of a name": (lambda r: shutil.copy(r / "masks/im3.png", r / "masks/im3.PNG"), r"masks: 1 masks share a name with another: im3"),
    "raw photograph": (lambda r: (r / "images/im3.jpg").rename(r / "images/im3.NEF"), r"im3.NEF is a raw photograph"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_broken_folders_are_named(root, how):
    breakage, message = BROKEN[how]
    (root / "masks" / "._im3.png").write_bytes(b"what macOS writes beside a file")
    breakage(root)
    with pytest.raises(DatasetError, match=message):
        register_custom(config(root).DATASETS.CUSTOM)


def test_names_written_as_on_macos_and_elsewhere_are_the_same(root):
    (root / "images/im3.jpg").rename(root / "images/caf\u00e9.jpg")
    (root / "masks/im3.png").rename(root / "masks/cafe\u0301.png")
    assert "custom_train: 8 images" in look(root)


def look(root, *overrides, classes=CLASSES):
    custom = config(root, *overrides, classes=classes).DATASETS.CUSTOM
    register_custom(custom)
    return inspect_custom(custom)


def test_a_class_that_no_image_shows_stops_the_run_unless_it_is_allowed(root):
    classes = [*CLASSES, "9 thing kite"]
    with pytest.raises(DatasetError, match=r"no labelled image shows kite \(id 9\): .*ALLOW_ABSENT_CLASSES True"):
        look(root, classes=classes)
    assert "no labelled image shows kite" in look(root, "DATASETS.CUSTOM.ALLOW_ABSENT_CLASSES", "True", classes=classes)


def test_masks_that_are_nearly_all_ignored_stop_the_run_unless_they_are_meant(root, caplog):
    def sparse(mask):
        kept = np.full_like(mask, 255)
        kept[8, :50], kept[25, 45:50], kept[32, 10:20] = mask[8, :50], mask[25, 45:50], mask[32, 10:20]
        return kept

    save(root, "im2", np.full((48, 64), 255, np.uint8))
    assert "of 1 of 10 labelled images less than 5% of the pixels have a label" in look(root)
    assert "im2.jpg" in caplog.text
    every_mask(root, sparse)
    options = ["DATASETS.CUSTOM.MIN_THING_AREA", "1"]
    with pytest.raises(DatasetError, match=r"of 10 of 10 labelled images less than 5% .*DATASETS.CUSTOM.MIN_LABELED 0"):
        look(root, *options)
    assert "ball" in look(root, *options, "DATASETS.CUSTOM.MIN_LABELED", "0")


def test_a_tag_that_mirrors_a_labelled_image_is_named(root, caplog):
    tags = Image.Exif()
    tags[0x0112] = 3
    Image.open(root / "images" / "im3.jpg").save(root / "images" / "im3.jpg", exif=tags)
    assert "an EXIF tag turns or mirrors 1 of 10 labelled images" in look(root)
    assert "im3.jpg" in caplog.text


def test_another_value_can_mean_ignore_and_binary_masks_be_classes(root):
    every_mask(root, lambda m: np.where(m == 3, 255, 0).astype(np.uint8))
    classes = ["0 stuff ground", "255 thing box"]
    with pytest.raises(ConfigError, match=r"255 means 'ignore' .*IGNORE_VALUE to another value, or to -1"):
        config(root, classes=classes)
    look(root, "DATASETS.CUSTOM.IGNORE_VALUE", "-1", classes=classes)
    taxonomy = taxonomy_of(TRAIN)
    assert taxonomy.dataset_ids == (0, 255)  # contiguous index to the user's pixel value
    d = dataset_dicts(TRAIN)[0]
    assert {s["category_id"] for s in d["segments_info"]} == {0, 1}
    look(root, "DATASETS.CUSTOM.IGNORE_VALUE", "0", classes=["255 thing box"])
    assert not (np.asarray(Image.open(dataset_dicts(TRAIN)[0]["sem_seg_file_name"])) == 0)[0, 0]


def test_labelled_images_in_subfolders_are_used(root):
    for part, suffix in (("images", "jpg"), ("masks", "png")):
        (root / part / "day 1.5").mkdir()
        for index in (1, 2, 3):
            (root / part / f"im{index}.{suffix}").rename(root / part / "day 1.5" / f"im{index}.{suffix}")
        shutil.copy(root / part / f"im4.{suffix}", root / part / "day 1.5")  # the same name in two folders
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "images" / "day 1.5" / "im4.jpg")
    assert "custom_train: 9 images" in look(root)
    names = {d["image_id"] for n in (TRAIN, VAL) for d in dataset_dicts(n)}
    assert {"day 1.5/im1", "day 1.5/im4", "im4"} <= names
    assert "custom_train: 7 images" in look(root, "DATASETS.CUSTOM.VAL", "day 1.5")


def test_all_labels_can_train_and_a_validation_list_or_folder_can_be_given(root):
    cfg = config(root, "DATASETS.CUSTOM.VAL_FRACTION", "0")
    assert cfg.DATASETS.TEST == ()  # nothing to evaluate on
    register_custom(cfg.DATASETS.CUSTOM)
    assert len(dataset_dicts(TRAIN)) == 10
    assert "custom_train: 10 images" in inspect_custom(cfg.DATASETS.CUSTOM)
    with pytest.raises(DatasetError, match=r"custom_val: no labelled image is held back, since .*VAL_FRACTION is 0"):
        dataset_dicts(VAL)
    (root / "val.txt").write_bytes(b"\xef\xbb\xbfim2.jpg\r\nimages/im7.jpg\r\n")
    look(root, "DATASETS.CUSTOM.VAL", "val.txt")
    assert sorted(d["image_id"] for d in dataset_dicts(VAL)) == ["im2", "im7"]
    for part in ("images", "masks"):
        (root / part / "held out").mkdir()
        for index in (1, 2):
            path = next((root / part).glob(f"im{index}.*"))
            path.rename(path.parent / "held out" / path.name)
    look(root, "DATASETS.CUSTOM.VAL", "held out")
    assert sorted(d["image_id"] for d in dataset_dicts(VAL)) == ["held out/im1", "held out/im2"]
    for value, words in (
        ("none.txt", "no list file"),
        ("none", "no labelled image below"),
        ("all.txt", "all 10 labelled images are for validation"),
        ("other.txt", "1 of 1 images of .*other.txt are not in the data set: nobody"),
    ):
        (root / "all.txt").write_text("".join(f"im{i}\n" for i in range(10)))
        (root / "other.txt").write_text("nobody\n")
        with pytest.raises(DatasetError, match=words):
            look(root, "DATASETS.CUSTOM.VAL", value)


@pytest.mark.parametrize(("part", "count"), [("0.25", 2), ("n3~1", 3)])
def test_own_labels_can_be_divided_by_a_partition(root, part, count):
    """docs/custom_data.md: a part is labelled, the rest joins the unlabelled images, validation stays."""
    names = "('custom_train@PARTITION',)", "('custom_train@PARTITION:unlabeled', 'custom_unlabeled')"
    cfg = config(root, "DATASETS.TRAIN", names[0], "DATASETS.UNLABELED", names[1], "DATASETS.PARTITION", part)
    register_custom(cfg.DATASETS.CUSTOM)
    train, (rest, others) = dataset_dicts(cfg.DATASETS.TRAIN[0]), map(dataset_dicts, cfg.DATASETS.UNLABELED)
    assert (len(train), len(rest), len(others), len(dataset_dicts(VAL))) == (count, 8 - count, 3, 2)
    assert not {d["file_name"] for d in train} & {d["file_name"] for d in rest}
    with pytest.raises(
        ConfigError, match=r"PARTITION is '1_8'; custom_train has no published partition; also allowed: a fraction"
    ):
        config(root, "DATASETS.TRAIN", names[0], "DATASETS.PARTITION", "1_8")


def test_classes_come_from_a_file_too(root, tmp_path):
    assert config(root).MODEL.NUM_CLASSES == 3
    with pytest.raises(DearliError, match=r"CLASSES is empty: list your classes there or in ROOT/classes.txt"):
        config(root, classes=[])
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbf# id kind name\r\n" + "\r\n".join(CLASSES).encode())
    for overrides in (
        [],
        ["DATASETS.CUSTOM.CLASSES", "classes.txt"],
        ["DATASETS.CUSTOM.CLASSES", str(root / "classes.txt")],
        ["DATASETS.CUSTOM.CLASSES", "['classes.txt']"],
    ):
        path = REPO / "configs" / "custom" / "small.yaml"
        cfg = get_config(path, ["MODEL.DEVICE", "cpu", "DATASETS.CUSTOM.ROOT", str(root), *overrides])
        assert cfg.DATASETS.CUSTOM.CLASSES == CLASSES  # a saved config needs no file
    with pytest.raises(ConfigError, match=r"CLASSES: no file names.txt"):
        get_config(path, ["DATASETS.CUSTOM.ROOT", str(root), "DATASETS.CUSTOM.CLASSES", "names.txt"])
    (root / "classes.txt").write_bytes("0 stuff Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="is no text in UTF-8"):
        config(root, classes=[])


@pytest.mark.parametrize(
    ("folder", "key"), [("images/run", "IMAGES"), ("unlabeled", "UNLABELED"), ("masks/../masks/a", "MASKS")]
)
def test_a_run_may_not_write_its_pictures_among_the_images(root, folder, key):
    with pytest.raises(ConfigError, match=rf"OUTPUT_DIR .* lies in the folder of DATASETS.CUSTOM.{key}"):
        config(root, "OUTPUT_DIR", str(root / folder))
    config(root, "OUTPUT_DIR", str(root / "output"))


@pytest.mark.parametrize("other", ["images", ".", "masks", "images/../images", "link"])
def test_unlabelled_images_lie_apart_from_labels(root, other):
    (root / "link").symlink_to(root / "images")
    with pytest.raises(
        DatasetError, match=r"DATASETS.CUSTOM.UNLABELED .* and DATASETS.CUSTOM.(IMAGES|MASKS) .* overlap"
    ):
        register_custom(config(root, "DATASETS.CUSTOM.UNLABELED", other).DATASETS.CUSTOM)


def test_masks_that_change_in_place_or_lie_elsewhere_are_converted_anew(root):
    custom = config(root).DATASETS.CUSTOM
    register_custom(custom)
    first = Path(dataset_dicts(TRAIN)[0]["pan_seg_file_name"]).parent
    path = root / "masks" / "im3.png"
    times = path.stat()
    mask = np.array(Image.open(path))
    mask[40:46, 40:46] = 7
    content = path.read_bytes()
    Image.fromarray(mask).save(path)
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    register_custom(custom)
    assert Path(dataset_dicts(TRAIN)[0]["pan_seg_file_name"]).parent != first
    path.write_bytes(content)
    shutil.copytree(root / "masks", root / "others")
    Image.fromarray(mask).save(root / "others" / "im3.png")
    os.utime(root / "others" / "im3.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    register_custom(config(root, "DATASETS.CUSTOM.MASKS", "others").DATASETS.CUSTOM)
    third = Path(dataset_dicts(TRAIN)[0]["pan_seg_file_name"]).parent
    assert third != first
    register_custom(custom)
    assert Path(dataset_dicts(TRAIN)[0]["pan_seg_file_name"]).parent == first


def panoptic_folder(root, change=lambda content: None):
    """The ten images with COCO-panoptic labels of one region and one object."""
    (root / "pan").mkdir(exist_ok=True)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 11, "name": "all", "isthing": 0}, {"id": 12, "name": "one", "isthing": 1}],
    }
    for index in range(10):
        ids = np.full((48, 64), 300)
        ids[: 5 + index, :20] = 7
        save_png(root / "pan" / f"im{index}.png", ids_to_rgb(ids))
        content["images"].append({"id": index, "file_name": f"im{index}.jpg", "height": 48, "width": 64})
        segments = [segment_info(300, 11, ids == 300), segment_info(7, 12, ids == 7)]
        content["annotations"].append({"image_id": index, "file_name": f"im{index}.png", "segments_info": segments})
    change(content)
    (root / "labels.json").write_text(json.dumps(content))
    return ("DATASETS.CUSTOM.PANOPTIC_JSON", "labels.json", "DATASETS.CUSTOM.MASKS", "pan")


def test_label_files_that_were_exchanged_have_other_areas(root):
    keys = panoptic_folder(root)
    assert "one" in look(root, *keys, classes=[])
    a, b = root / "pan" / "im2.png", root / "pan" / "im9.png"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"label files have other areas than the JSON file says \(labels exchanged\?"
    ):
        look(root, *keys, classes=[])


def test_images_that_the_json_leaves_out_are_named(root, caplog):
    def change(content):
        content["annotations"].pop(3)
        content["images"].pop(5)
        content["annotations"].pop(4)

    look(root, *panoptic_folder(root, change), classes=[])
    assert re.search(r"1 files have no annotation and are not used: im3.jpg", caplog.text)
    assert re.search(r"1 files are not in .*labels.json and are not used: im5.jpg", caplog.text)
    assert len(dataset_dicts(TRAIN)) + len(dataset_dicts(VAL)) == 8


def test_sizes_that_the_json_lacks_are_those_of_the_images(root):
    def change(content):
        for image in content["images"]:
            image.pop("height")

    assert "64 x 48 to 64 x 48" in look(root, *panoptic_folder(root, change), classes=[])


def test_the_sheet_keeps_proportions_and_names_files(root, tmp_path):
    look(root)
    write_contact_sheet(tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    rows = 6
    assert sheet.shape[0] == 18 + rows * (18 + 240)  # titles; 320 x 240 a panel, as 64 x 48, below a line with the name
    assert all((sheet[top : top + 18, :100] < 128).any() for top in (0, 18))
    thin = [{**dataset_dicts(TRAIN)[0], "segments_info": []}]
    Image.new("RGB", (2, 2000)).save(tmp_path / "thin.png")
    thin[0].update(file_name=str(tmp_path / "thin.png"), pan_seg_file_name=str(tmp_path / "thin.png"))
    assert annotation_sheet(thin, taxonomy_of(TRAIN)).height == 18 + 18 + 320


def test_missing_unlabelled_folder_names_the_key(root):
    shutil.rmtree(root / "unlabeled")
    register_custom(config(root).DATASETS.CUSTOM)
    with pytest.raises(DatasetError, match="no image folder .*unlabeled; put unlabelled images there"):
        dataset_dicts(UNLABELED)


def test_template_without_a_root_says_so():
    with pytest.raises(ConfigError, match="DATASETS.CUSTOM.ROOT is missing"):
        get_config(REPO / "configs" / "custom" / "template.yaml", ["MODEL.DEVICE", "cpu"])
