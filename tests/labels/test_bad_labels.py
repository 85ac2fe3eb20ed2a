"""Faulty label files are one line that names file and entry and counts the offenders; quirks of tools are no fault."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.custom import TEST, TRAIN, UNLABELED, VAL, register_custom
from dearli_d2.errors import DatasetError
from dearli_d2.labels.geometry import decode
from dearli_d2.labels.recognition import read_labels, recognize
from dearli_d2.labels.structures import Request
from dearli_d2.prediction_folder import find_inputs
from dearli_d2.suggest.unlabeled import held_back_images, without_labeled
from tests.labels.test_formats import config, read_all

SQUARE = [5, 5, 20, 5, 20, 20, 5, 20]
AREA = 15 * 15
FULL = {"size": [48, 64], "counts": [0, 48 * 64]}


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)


def annotation(**fields) -> dict:
    return {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0, **fields}


def coco(*annotations: dict, **fields) -> dict:
    images = [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}]
    entries = list(annotations) or [annotation()]
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "car"}], **fields}


def written(folder: Path, content: object, name: str = "labels.json") -> Request:
    photo(folder / "images" / "a.jpg")
    (folder / name).write_text(json.dumps(content))
    return Request(folder / name, folder)


def refused(request: Request, words: str, name: str = "") -> str:
    with pytest.raises(DatasetError, match=words) as error:
        read_all(request, name)
    text = str(error.value)
    assert "\n" not in text
    assert str(request.path) in text
    text.encode()
    return text


# ---------------------------------------------------------------------------------------------- COCO

LEGAL = {
    "ids as decimal numbers": coco(annotation(image_id=1.0, category_id="1"), images=[{"id": "1", "file_name": "a.jpg"}]),
    "category id 0": coco(annotation(category_id=0), categories=[{"id": 0, "name": "car"}]),
    "run lengths in a list": coco(annotation(segmentation=[{"size": [48, 64], "counts": [0, 3, 48 * 64 - 3]}])),
    "a polygon without a list of its own": coco(annotation(segmentation=SQUARE)),
    "a polygon of two points beside a good one": coco(annotation(segmentation=[[1, 1, 2, 2], SQUARE])),
    "the project's name as a category": coco(
        categories=[{"id": 0, "name": "car", "supercategory": "none"}, {"id": 1, "name": "car", "supercategory": "car"}]
    ),
    "the path of another machine": coco(images=[{"id": 1, "file_name": "C:\\data\\a.jpg"}]),
    "a whole path": coco(images=[{"id": 1, "file_name": "/home/me/a.jpg"}]),
    "a path that leads out": coco(images=[{"id": 1, "file_name": "../../a.jpg"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL)
def test_quirks_of_tools_are_read(name, tmp_path):
    labels = read_labels(written(tmp_path, LEGAL[name]))
    assert [c.name for c in labels.classes] == ["car"]
    (shape,) = labels.images[0].shapes()
    assert decode(shape.rle).sum() == (3 if "run lengths" in name else AREA)


BAD = {
    "a category id that is a superscript": (coco(categories=[{"id": "²", "name": "car"}]), "1 categories whose id"),
    "a category id beyond all bounds": (coco(categories=[{"id": 10**400, "name": "car"}]), "1 categories whose id"),
    "unknown image": (coco(annotation(image_id=2), annotation(image_id=3)), "2 annotations of an image"),
    "unknown category": (coco(annotation(category_id=[]), annotation()), "1 annotations of a category"),
    "size that is no list": (coco(annotation(segmentation={"size": 5, "counts": [3]})), "1 run lengths"),
    "size that is missing": (coco(annotation(segmentation={"counts": [3]})), "1 run lengths"),
    "run lengths without end": (coco(annotation(segmentation={"size": [48, 64], "counts": [0, 10**30]})), "1 run lengths"),
    "negative run lengths": (coco(annotation(segmentation={"size": [48, 64], "counts": [-5, 48 * 64 + 5]})), "1 run lengths"),
    "run lengths of no text": (coco(annotation(segmentation={"size": [48, 64], "counts": "\ud800é"})), "1 run lengths"),
    "a number beyond all bounds": (coco(annotation(segmentation=[[10**400, *SQUARE[1:]]])), "no list of pairs"),
    "NaN": (coco(annotation(segmentation=[[float("nan"), *SQUARE[1:]]])), "no list of pairs"),
    "an odd number of numbers": (coco(annotation(segmentation=[[*SQUARE, 1]])), "no list of pairs"),
    "a polygon outside": (coco(annotation(segmentation=[[1, 1, 900, 1, 5, 5]])), "1 polygons that leave the image.*annotation 7"),
    "a text": (coco(annotation(segmentation="abc")), "neither polygons nor run lengths"),
    "a missing image": (coco(images=[{"id": 1, "file_name": n} for n in ("x.jpg",)]), "1 images that are not found"),
    "a name with a zero byte": (coco(images=[{"id": 1, "file_name": "a\0.jpg"}]), "1 images that are not found"),
    "a name without end": (coco(images=[{"id": 1, "file_name": "a" * 5000}]), "1 images that are not found"),
    "a name that is no text": (coco(images=[{"id": 1, "file_name": "\ud800\n.jpg"}]), "1 images that are not found"),
    "two entries of one image": (
        coco(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "images/a.jpg"}]), "image 2, as labels.json, image 1",
    ),
    "two images of one id": (coco(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 1.0, "file_name": "b.jpg"}]), "ids stand twice"),
    "a size that is turned": (coco(images=[{"id": 1, "file_name": "a.jpg", "height": 64.0, "width": 48}]), "EXIF"),
    "a size of another image": (coco(images=[{"id": 1, "file_name": "a.jpg", "height": 50, "width": 64}]), "another size"),
    "two categories of one name": (coco(categories=[{"id": i, "name": "car"} for i in (1, 2)]), "names stand twice: car"),
    "no list of images": (coco(images={"a": 1}), "no list of objects 'images'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_faulty_coco_file_is_one_line(name, tmp_path):
    content, words = BAD[name]
    refused(written(tmp_path, content), words, "coco-instances")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"images": ' + b"[" * 100_000, "nested too deep|no JSON file"),
        (json.dumps(coco()).encode("utf-16"), "UTF-8"),
        (b"", "no JSON file"),
        (b"[1]", "holds a list"),
        (json.dumps(coco()).encode()[:150], "no JSON file"),
    ],
)
def test_a_file_that_is_no_whole_json_is_one_line(data, words, tmp_path):
    request = written(tmp_path, {})
    request.path.write_bytes(data)
    refused(request, words, "coco-instances")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    request = written(tmp_path, {})
    request.path.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco()).encode())
    assert len(read_labels(request).images) == 1


def test_a_crowd_stays_a_crowd_and_a_box_is_left_out_with_a_note(tmp_path):
    labels = read_labels(written(tmp_path, coco(annotation(iscrowd=1, segmentation=FULL), annotation(segmentation=[], bbox=[1, 1, 5, 5]))))  # fmt: skip
    (shape,) = labels.images[0].shapes()
    assert shape.crowd
    assert any("1 annotations have a box and no segmentation" in note for note in labels.notes)


def split_folders(root: Path, kind: str) -> None:
    """Train, valid and test as Roboflow exports them."""
    for split, name in (("train", "t"), ("valid", "v"), ("test", "e")):
        if kind == "coco":
            photo(root / split / f"{name}.jpg")
            content = coco(images=[{"id": 1, "file_name": f"{name}.jpg"}])
            (root / split / "_annotations.coco.json").write_text(json.dumps(content))
        else:
            photo(root / split / "images" / f"{name}.jpg")
            (root / split / "labels").mkdir()
            (root / split / "labels" / f"{name}.txt").write_text("0 0.1 0.1 0.4 0.1 0.4 0.4\n")
    if kind == "yolo":
        (root / "data.yaml").write_text(
            "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\nnames: ['car']\n"
        )


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_the_splits_of_an_export_are_used(kind, tmp_path):
    root = tmp_path / "mine"
    split_folders(root, kind)
    assert len(recognize(root)) == 1
    labels = read_labels(Request(root, root))
    assert {i.file.name: i.split for i in labels.images} == {"t.jpg": "train", "v.jpg": "val", "e.jpg": "test"}
    cfg = config(root, "DATASETS.CUSTOM.LABELS", ".", "DATASETS.CUSTOM.CLASSES", "[]", "DATASETS.CUSTOM.UNLABELED", ".")
    register_custom(cfg.DATASETS.CUSTOM)
    assert [Path(d["file_name"]).name for d in dataset_dicts(TRAIN)] == ["t.jpg"]
    assert [Path(d["file_name"]).name for d in dataset_dicts(VAL)] == ["v.jpg"]
    assert [Path(d["file_name"]).name for d in dataset_dicts(TEST)] == ["e.jpg"]
    assert dataset_dicts(TEST)[0]["segments_info"]


@pytest.mark.parametrize("folder", ["val", "images/val"])
def test_a_subfolder_of_the_images_or_of_the_root_is_held_back(folder, tmp_path):
    images = [
        {"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(("a.jpg", "val/b.jpg"), 1)
    ]
    for image in images:
        photo(tmp_path / "images" / image["file_name"])
    content = coco(*(annotation(id=i, image_id=i) for i in (1, 2)))
    (tmp_path / "labels.json").write_text(json.dumps({**content, "images": images}))
    keys = ("DATASETS.CUSTOM.LABELS", "labels.json", "DATASETS.CUSTOM.CLASSES", "[]")
    register_custom(config(tmp_path, *keys, "DATASETS.CUSTOM.VAL", folder).DATASETS.CUSTOM)
    assert [Path(d["file_name"]).name for d in dataset_dicts(TRAIN)] == ["a.jpg"]
    assert [Path(d["file_name"]).name for d in dataset_dicts(VAL)] == ["b.jpg"]
    held_back = held_back_images(config(tmp_path, *keys, "DATASETS.CUSTOM.VAL", folder))
    photo(tmp_path / "images" / "free.jpg")
    not_suggested = [*dataset_dicts(TRAIN), *held_back]
    assert [p.name for p in without_labeled(find_inputs([tmp_path]), not_suggested).paths] == ["free.jpg"]
    none = config(tmp_path, *keys, "DATASETS.CUSTOM.VAL", "test").DATASETS.CUSTOM
    with pytest.raises(DatasetError, match=f"below {tmp_path}/test; it names a subfolder of {tmp_path} "):
        register_custom(none)


def test_labels_without_a_test_split_say_so(tmp_path):
    split_folders(tmp_path, "coco")
    shutil.rmtree(tmp_path / "test")
    register_custom(config(tmp_path, "DATASETS.CUSTOM.LABELS", ".", "DATASETS.CUSTOM.CLASSES", "[]", "DATASETS.CUSTOM.UNLABELED", ".").DATASETS.CUSTOM)  # fmt: skip
    with pytest.raises(
        DatasetError, match="custom_test: no image of DATASETS.CUSTOM.LABELS is in a split that is called test"
    ):
        dataset_dicts(TEST)


def test_a_folder_without_an_unlabelled_image_says_how_to_train_without(tmp_path):
    split_folders(tmp_path, "coco")
    register_custom(config(tmp_path, "DATASETS.CUSTOM.LABELS", ".", "DATASETS.CUSTOM.UNLABELED", ".").DATASETS.CUSTOM)
    with pytest.raises(DatasetError, match=r"no image in \S+ but 3 that have labels; .* by DATASETS.UNLABELED '\(\)'"):
        dataset_dicts(UNLABELED)


def test_files_of_coco_s_splits_are_read_together(tmp_path):
    for split in ("train2017", "val2017"):
        photo(tmp_path / split / f"{split}.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = coco(images=[{"id": 1, "file_name": f"{split}.jpg"}])
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (tmp_path / "annotations" / f"captions_{split}.json").write_text("{}")
    labels = read_labels(Request(tmp_path, tmp_path))
    assert {i.file.name: i.split for i in labels.images} == {"train2017.jpg": "train", "val2017.jpg": "val"}


# ---------------------------------------------------------------------------------------------- Labelme and YOLO


def png(size: tuple[int, int]) -> str:
    stream = io.BytesIO()
    Image.new("1", size).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def labelme(**shape) -> dict:
    shape = {"label": "car", "points": [[5, 5], [20, 5], [20, 20]], "shape_type": "polygon", **shape}
    return {"imagePath": "a.jpg", "imageHeight": 48, "imageWidth": 64, "shapes": [shape]}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"points": [[5, 5], [20, float("nan")], [20, 20]]}, "no pairs of numbers"),
        ({"points": [[5, 5], [20, 10**400], [20, 20]]}, "no pairs of numbers"),
        ({"points": [[5, "x"], [20, 5]], "shape_type": "circle"}, "no pairs of numbers"),
        ({"points": [[1e7, 5], [20, 5]], "shape_type": "circle"}, "outside of the image|much larger"),
        ({"points": [[5, 5], [9000, 5]], "shape_type": "circle"}, "much larger"),
        ({"points": [[5, 5]], "shape_type": "rectangle"}, "not two points"),
        ({"points": [[500, 5], [600, 9]], "shape_type": "rectangle"}, "outside of the image"),
        ({"points": [[5, 5], [20, 20]], "shape_type": "mask", "mask": "abc"}, "no PNG picture"),
        ({"points": [[5, 5], [20, 20]], "shape_type": "mask", "mask": png((20000, 20000))}, "no PNG picture"),
        ({"points": [[-5, 5], [20, 20]], "shape_type": "mask", "mask": png((9, 9))}, "leave the image"),
        ({"points": [[5, 5], [20, 20]], "shape_type": "mask", "mask": png((90, 9))}, "leave the image"),
        ({"label": 5}, "without a label"),
        ({"shape_type": "blob"}, "'blob', which is unknown"),
    ],
)
def test_a_faulty_labelme_shape_is_counted_and_named(shape, words, tmp_path):
    assert ": shape 1 of labels.json" in refused(written(tmp_path, labelme(**shape)), words)


def test_a_second_label_file_of_an_image_is_named(tmp_path):
    written(tmp_path / "labels", labelme(), "a.json")
    request = written(tmp_path / "labels", labelme(), "b.json")
    refused(Request(request.path.parent, tmp_path), "1 labels are of an image that others label too.*b.json, as a.json")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("5 0.1 0.1 0.4 0.1 0.4 0.4", "class number beyond the 1 names"),
        ("-1 0.1 0.1 0.4 0.1 0.4 0.4", "class number beyond"),
        ("1.0 0.1 0.1 0.4 0.1 0.4 0.4", "no class number"),
        ("0 0.1 nan 0.4 0.1 0.4 0.4", "outside of 0 to 1"),
        ("0 10 10 400 10 400 400", "outside of 0 to 1"),
        ("0 1e999 0.1 0.4 0.1 0.4 0.4", "outside of 0 to 1"),
        ("0 0.1 0.1 0.4", "no list of pairs|fewer than three"),
        ("0 0.1 0.1 0.4 0.1 0.4 0.4 0.5", "no list of pairs"),
        ("car 0.1 0.1", "no class number"),
    ],
)
def test_a_faulty_line_of_yolo_is_counted_and_named(line, words, tmp_path):
    split_folders(tmp_path, "yolo")
    for split, name in (("train", "t"), ("valid", "v")):
        (tmp_path / split / "labels" / f"{name}.txt").write_text(f"\n{line}\n")
    assert "line 2 of t.txt" in refused(Request(tmp_path, tmp_path), f": 2 .*({words})")


def test_an_image_of_two_splits_is_refused(tmp_path):
    split_folders(tmp_path, "yolo")
    (tmp_path / "data.yaml").write_text("train: train/images\nval: train/images\nnames: ['car']\n")
    refused(Request(tmp_path, tmp_path), "1 images are in two of train, val and test")
    (tmp_path / "data.yaml").write_text("train: nowhere\nnames: ['car']\n")
    refused(Request(tmp_path, tmp_path), "train: nowhere")


def test_a_label_file_without_an_image_is_named_also_where_others_have_one(tmp_path):
    split_folders(tmp_path, "yolo")
    shutil.copy(tmp_path / "train" / "labels" / "t.txt", tmp_path / "train" / "labels" / "gone.txt")
    (tmp_path / "train" / "labels" / "README.txt").write_text("made by hand")
    refused(Request(tmp_path, tmp_path), r"1 label files have no image in \S+train/images: gone.txt")


def test_names_of_classes_that_differ_in_capital_letters_are_one_class(tmp_path):
    shapes = [{**labelme()["shapes"][0], "label": name} for name in ("car", "Car")]
    for name in ("a", "b"):
        photo(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.json").write_text(json.dumps({"imagePath": f"{name}.jpg", "shapes": shapes}))
    cfg = config(
        tmp_path, "DATASETS.CUSTOM.LABELS", ".", "DATASETS.CUSTOM.CLASSES", "[]", "DATASETS.CUSTOM.UNLABELED", "."
    )
    assert cfg.MODEL.NUM_CLASSES == 1
    register_custom(cfg.DATASETS.CUSTOM)
    assert all(len(d["segments_info"]) == 1 for d in dataset_dicts(TRAIN))  # the second lies on the first


def test_a_folder_of_thousands_of_foreign_files_is_refused_in_a_second(tmp_path):
    for number in range(3000):
        (tmp_path / f"{number}.{('txt', 'dat', 'json')[number % 3]}").write_text("1 2 3")
    start = time.process_time()
    assert recognize(tmp_path) == {}
    assert time.process_time() - start < 1
    with pytest.raises(DatasetError, match="no known format of labels"):
        read_labels(Request(tmp_path, tmp_path))


def test_masks_of_cityscapes_names_in_two_folders_belong_to_two_images(tmp_path):
    for day, value in (("day1", 7), ("day2", 26)):
        photo(tmp_path / "leftImg8bit" / "train" / day / "a_leftImg8bit.png")
        path = tmp_path / "gtFine" / "train" / day / "a_gtFine_labelIds.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((48, 64), value, np.uint8)).save(path)
    labels = read_labels(Request(tmp_path / "gtFine", tmp_path))
    assert {i.file.parent.name: i.shapes()[0].name for i in labels.images} == {"day1": "road", "day2": "car"}
