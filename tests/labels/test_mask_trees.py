"""Masks by colour and in the trees of tools: CVAT, Pascal VOC, Cityscapes; binary masks."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.custom import TRAIN, VAL, register_custom
from dearli_d2.errors import ConfigError, DatasetError
from dearli_d2.labels.colors import read_color_map, voc_colors
from dearli_d2.labels.formats import formats
from dearli_d2.labels.geometry import area, decode
from dearli_d2.labels.recognition import read_labels, recognize
from dearli_d2.labels.structures import Request
from tests.labels.conftest import CLASSES, SIZE, name_of, shapes_of
from tests.labels.test_formats import config
from tests.labels.test_mask_formats import values_of, write_masks

SAMPLES = Path(__file__).parent / "samples"
ROAD, CAR = (128, 64, 128), (0, 0, 142)
COLORS = np.zeros((256, 3), np.uint8)
COLORS[[1, 2]] = ROAD, CAR


def found(labels):
    """(split, {(name, pixels, semantic)}) of each image."""
    return {
        i.file.stem: (i.split, sorted((s.name, area(s.rle), s.semantic) for s in i.shapes())) for i in labels.images
    }


# ------------------------------------------------------------------------------------------ files of datumaro


@pytest.mark.parametrize("name", ["cvat_masks", "datumaro_voc"])
def test_masks_as_cvat_and_datumaro_write_them_have_their_objects_though_these_touch(name):
    labels = read_labels(Request(SAMPLES / name, SAMPLES / name))
    labels.check()
    assert labels.format == "cvat-masks"
    assert {c.name for c in labels.classes} == {"road", "car"}
    wanted = [("car", 48, False), ("car", 48, False), ("road", 320, False)]
    splits = {"im0": "", "im1": ""} if name == "cvat_masks" else {"im0": "train", "im1": "val"}
    assert found(labels) == {stem: (split, wanted) for stem, split in splits.items()}


@pytest.mark.parametrize(("name", "format"), [("cityscapes", "cityscapes"), ("camvid", "color-png")])
def test_semantic_masks_as_datumaro_writes_them_are_read_with_their_splits(name, format):
    labels = read_labels(Request(SAMPLES / name, SAMPLES / name))
    labels.check()
    assert labels.format == format
    wanted = {("car", 96, True), ("road", 320, True)}
    for split, shapes in found(labels).values():
        assert split in ("train", "val")
        assert wanted <= set(shapes)


# ------------------------------------------------------------------------------------------ CVAT


@pytest.fixture
def cvat(root):
    writer = formats()["cvat-masks"].writer(root / "labels", CLASSES)
    for index in range(5):
        writer.add(name_of(index), SIZE, shapes_of(index))
    writer.finish()
    return root / "labels"


def test_the_written_archive_is_what_cvat_documents_and_is_read_as_it_is(root, cvat):
    archive = root / "upload.zip"
    (cvat / "upload_to_cvat.zip").rename(archive)
    names = set(zipfile.ZipFile(archive).namelist())
    assert {
        "labelmap.txt",
        "ImageSets/Segmentation/default.txt",
        "SegmentationClass/day/im3.png",
        "SegmentationObject/day/im3.png",
    } <= names
    assert len(names) == 12
    assert (cvat / "labelmap.txt").read_text().splitlines()[1:] == [
        "background:0,0,0::",
        "road:128,64,128::",
        "car:0,0,142::",
    ]
    assert (cvat / "ImageSets/Segmentation/default.txt").read_text().splitlines() == [f"im{i}" for i in (0, 1, 2)] + [
        "day/im3",
        "im4",
    ]
    shutil.rmtree(cvat)
    labels = read_labels(Request(archive, root))
    assert (labels.format, labels.path) == ("cvat-masks", archive)
    assert {i.file.relative_to(root / "images").as_posix() for i in labels.images} == {name_of(i) for i in range(5)}
    register_custom(config(root, "DATASETS.CUSTOM.LABELS", "upload.zip").DATASETS.CUSTOM)
    assert len(dataset_dicts(TRAIN)) + len(dataset_dicts(VAL)) == 5


def test_unlabelled_pixels_are_a_class_only_where_the_class_list_has_it(root, cvat):
    assert "background" not in {c.name for c in read_labels(Request(cvat, root)).classes}
    listed = ("1 stuff road", "2 thing car", "3 stuff background")
    shapes = read_labels(Request(cvat, root, classes=listed)).images[0].shapes()
    assert {s.name for s in shapes} == {"road", "car", "background"}
    assert sum(area(s.rle) for s in shapes) == SIZE[0] * SIZE[1]


def test_unknown_colours_and_damaged_masks_are_counted(root, cvat):
    for name in ("im0", "im1"):
        path = cvat / "SegmentationClass" / f"{name}.png"
        pixels = np.array(Image.open(path))
        pixels[0, 0] = 1, 2, 3
        Image.fromarray(pixels).save(path)
    labels = read_labels(Request(cvat, root))
    with pytest.raises(
        DatasetError, match=r"im0.png holds \(1, 2, 3\), which .*labelmap.txt does not list; 2 of 5 masks"
    ):
        labels.check()
    with pytest.raises(DatasetError, match=r"\(1, 2, 3\)"):
        labels.images[[i.file.stem for i in labels.images].index("im0")].shapes()
    for name in ("im0", "im1"):
        path = cvat / "SegmentationClass" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match="2 of 5 masks cannot be used"):
        read_labels(Request(cvat, root)).check()


def test_more_objects_than_cvat_has_colours_are_kept_apart_by_their_class(tmp_path, root):
    from dearli_d2.labels.geometry import encode
    from dearli_d2.labels.structures import Shape

    masks = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    shapes = [Shape("car", encode(masks == n)) for n in range(254)] + [Shape("road", encode(masks == 254))]
    writer = formats()["cvat-masks"].writer(root / "labels", CLASSES)
    writer.add(name_of(0), SIZE, shapes)
    writer.finish()
    assert len(read_labels(Request(root / "labels", root)).images[0].shapes()) == 255


@pytest.mark.parametrize("broken", ["truncated", "outside", "images"])
def test_a_bad_archive_is_one_line(root, cvat, broken):
    archive = root / "bad.zip"
    if broken == "truncated":
        archive.write_bytes((cvat / "upload_to_cvat.zip").read_bytes()[:300])
    else:
        shutil.copy(cvat / "upload_to_cvat.zip", archive)
        with zipfile.ZipFile(archive, "a") as file:
            file.write(root / "images" / "im0.jpg", "../x.png" if broken == "outside" else "JPEGImages/im0.jpg")
        shutil.rmtree(cvat)
        if broken == "images":
            assert len(read_labels(Request(archive, root)).images) == 5
            (root / "images" / "im0.jpg").unlink()
    wanted = {
        "truncated": "bad.zip cannot be unpacked",
        "outside": "1 names lead out",
        "images": "1 images are in the archive alone: im0",
    }
    with pytest.raises(DatasetError, match=wanted[broken]):
        read_labels(Request(archive, root))


# ------------------------------------------------------------------------------------------ Pascal VOC


@pytest.fixture
def voc(root):
    """Two images as in VOC2012: palette masks with a border of 255; two horses (13) that touch, and background."""
    tree = root / "VOCdevkit" / "VOC2012"
    palette = [v for color in voc_colors(256) for v in color]
    values, objects = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    values[10:20, 10:40] = 13
    objects[10:20, 10:25], objects[10:20, 25:40] = 1, 2
    values[10:20, 40], objects[10:20, 40] = 255, 255
    for folder, pixels in (("SegmentationClass", values), ("SegmentationObject", objects)):
        (tree / folder).mkdir(parents=True)
        for name in ("im0", "im1"):
            image = Image.fromarray(pixels).convert("P")
            image.putdata(pixels.ravel().tolist())
            image.putpalette(palette)
            image.save(tree / folder / f"{name}.png")
    (tree / "JPEGImages").mkdir()
    for name in ("im0", "im1", "im2"):
        (root / "images" / f"{name}.jpg").rename(tree / "JPEGImages" / f"{name}.jpg")
    lists = tree / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", "im0\n"), ("val", "im1\n"), ("trainval", "im0\nim1\n"), ("test", "im2\n")):
        (lists / f"{split}.txt").write_text(names)
    return root


@pytest.mark.parametrize("path", ["VOCdevkit", "VOCdevkit/VOC2012", "VOCdevkit/VOC2012/SegmentationClass"])
def test_a_voc_tree_has_its_classes_objects_splits_and_border(voc, path):
    assert set(recognize(voc / path)) == {"voc"}
    labels = read_labels(Request(voc / path, voc))
    labels.check()
    assert len(labels.classes) == 21
    horses = [("horse", 150, False), ("horse", 150, False)]
    rest = [("background", SIZE[0] * SIZE[1] - 310, True)]
    assert found(labels) == {"im0": ("train", rest + horses), "im1": ("val", rest + horses)}
    assert decode(labels.images[0].ignored()).sum() == 10
    assert not labels.notes


def test_a_voc_tree_without_objects_and_with_own_classes(voc):
    shutil.rmtree(voc / "VOCdevkit/VOC2012/SegmentationObject")
    labels = read_labels(Request(voc / "VOCdevkit", voc, classes=("13 thing pony",)))
    assert found(labels)["im0"] == ("train", [("pony", 300, True)])
    labels = read_labels(Request(voc / "VOCdevkit", voc, classes=("12 thing dog",)))
    with pytest.raises(DatasetError, match=r"holds 13, which DATASETS.CUSTOM.CLASSES does not list; 2 of 2"):
        labels.check()


# ------------------------------------------------------------------------------------------ colours


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("colors.txt", "road:128,64,128::\ncar:0,0,142::\nvoid:0,0,0::\n"),
        ("label_colors.txt", "128 64 128\t\troad\n0 0 142\t\tcar\n0 0 0\t\tVoid\n"),
        ("class_dict.csv", "name,r,g,b\nroad,128,64,128\ncar,0,0,142\nVoid,0,0,0\n"),
        ("colors.txt", "# mine\nroad 128 64 128\ncar 0 0 142\nunlabelled 0 0 0\n"),
    ],
)  # fmt: skip
def test_masks_by_colour_with_the_usual_lists(root, name, text):
    path = write_masks(root, values=lambda i: COLORS[values_of(i)])
    assert not recognize(path)
    (path / name).write_text(text)
    labels = read_labels(Request(path, root))
    assert labels.format == "color-png"
    assert [(c.name, c.color) for c in labels.classes] == [("road", ROAD), ("car", CAR)]
    np.testing.assert_array_equal(decode(labels.images[-1].shapes()[1].rle), values_of(4) == 2)
    np.testing.assert_array_equal(decode(labels.images[-1].ignored()), values_of(4) == 255)


@pytest.mark.parametrize(
    "text",
    ["road 1 2 3\ncar 1 2 3\n", "road 1 2 3\nroad 1 2 4\n", "road 1 2 300\ncar 0 0 1\n", "road 1 2 3\ncar\n", ""],
)
def test_a_broken_list_of_colours_is_named(tmp_path, text):
    (tmp_path / "colors.txt").write_text(text)
    with pytest.raises(DatasetError, match="colors.txt: "):
        read_color_map(tmp_path / "colors.txt")


# ------------------------------------------------------------------------------------------ binary masks


def binary(index):
    return (values_of(index) == 2).astype(np.uint8) * 255


@pytest.mark.parametrize(
    "lines",
    [("255 thing blob",), ("1 thing blob",), ("0 stuff ground", "1 thing blob"), ("0 stuff ground", "255 thing blob")],
)
@pytest.mark.parametrize(
    "save",
    [
        lambda a, p: Image.fromarray(a).save(p),
        lambda a, p: Image.fromarray(a > 0).save(p),
        lambda a, p: Image.fromarray(a).convert("RGB").save(p),
    ],
)
def test_binary_masks_need_one_class_whatever_its_id(root, lines, save):
    path = write_masks(root, values=binary, save=save)
    assert set(recognize(path)) == {"binary-png"}
    labels = read_labels(Request(path, root, classes=lines))
    labels.check()
    shapes = {s.name: decode(s.rle) for s in labels.images[-1].shapes()}
    np.testing.assert_array_equal(shapes["blob"], binary(4) > 0)
    assert ("ground" in shapes) == (len(lines) == 2)
    if len(lines) == 2:
        np.testing.assert_array_equal(shapes["ground"], binary(4) == 0)


def test_training_splits_binary_masks_into_objects(root):
    write_masks(root, values=binary)
    cfg = config(
        root, "DATASETS.CUSTOM.CLASSES", "['0 stuff ground','1 thing blob']", "DATASETS.CUSTOM.MIN_THING_AREA", "16"
    )
    register_custom(cfg.DATASETS.CUSTOM)
    dicts = dataset_dicts(TRAIN) + dataset_dicts(VAL)
    assert len(dicts) == 5
    assert all(sorted(s["category_id"] for s in d["segments_info"]) == [0, 1, 1] for d in dicts)


def test_binary_masks_of_each_class_and_of_each_object(root):
    for index in range(2):
        for shape_number, shape in enumerate(shapes_of(index)):
            for place in (f"classes/im{index}_{shape.name}.png", f"objects/im{index}/masks/{shape_number}.png"):
                path = root / "labels" / place
                path.parent.mkdir(parents=True, exist_ok=True)
                old = np.asarray(Image.open(path)) if path.is_file() else 0
                Image.fromarray(np.maximum(old, decode(shape.rle).astype(np.uint8) * 255)).save(path)
    labels = read_labels(Request(root / "labels/classes", root, mask_name="{stem}_{class}.png"), "binary-png")
    assert [c.name for c in labels.classes] == ["car", "road"]
    assert not labels.instances
    assert [len(i.shapes()) for i in labels.images] == [2, 2]
    labels = read_labels(
        Request(root / "labels/objects", root, mask_name="{stem}/masks/{n}.png", classes=("1 thing part",)),
        "binary-png",
    )
    assert labels.instances
    assert [len(i.shapes()) for i in labels.images] == [3, 2]


def test_faulty_binary_masks_are_counted(root):
    path = write_masks(root, values=binary)
    with pytest.raises(ConfigError, match=r"2 classes are listed: road, car; .*\{stem\}_\{class\}.png"):
        read_labels(Request(path, root, classes=("1 stuff road", "2 thing car")))
    with pytest.raises(DatasetError, match=r"classes.txt"):
        read_labels(Request(path, root))
    for name in ("im0", "im1"):
        Image.fromarray(binary(0) // 2 + 3).save(path / f"{name}.png")
    with pytest.raises(
        DatasetError, match="2 of 5 masks cannot be used: .*im0.png is no binary mask: beside 0 and 255 it holds 3, 130"
    ):
        read_labels(Request(path, root, classes=("1 thing blob",)), "binary-png").check()


# ------------------------------------------------------------------------------------------ Cityscapes


@pytest.fixture
def streets(root):
    """Two images as Cityscapes names them: a road (7), two cars (26001, 26002) that touch, a group (26), a licence plate and an ego vehicle (1)."""
    ids = np.full(SIZE, 7, np.uint16)
    ids[5:10, 5:10], ids[5:10, 10:20], ids[20:22, 20:40] = 26001, 26002, 26
    ids[0, 0], ids[40:] = 65535, 1
    for index, split in enumerate(("train", "val")):
        image = root / "leftImg8bit" / split / "a" / f"a_{index}_leftImg8bit.png"
        mask = root / "gtFine" / split / "a" / f"a_{index}_gtFine_instanceIds.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True)
        Image.open(root / "images" / name_of(index)).save(image)
        Image.fromarray(ids).save(mask)
        labels = np.where(ids == 65535, 255, np.where(ids >= 1000, ids // 1000, ids)).astype(np.uint8)
        Image.fromarray(labels).save(mask.with_name(f"a_{index}_gtFine_labelIds.png"))
        Image.fromarray(COLORS[labels]).save(mask.with_name(f"a_{index}_gtFine_color.png"))
    return root


def test_cityscapes_ids_are_objects_groups_and_void(streets):
    for path in (streets, streets / "gtFine"):
        labels = read_labels(Request(path, streets))
        labels.check()
        assert labels.format == "cityscapes"
        assert [(i.file.name, i.split) for i in labels.images] == [
            ("a_0_leftImg8bit.png", "train"),
            ("a_1_leftImg8bit.png", "val"),
        ]
        cars = sorted((area(s.rle), s.crowd, s.semantic) for s in labels.images[0].shapes() if s.name == "car")
        assert cars == [(25, False, False), (40, True, False), (50, False, False)]
        assert decode(labels.images[0].ignored()).sum() == 1 + 8 * SIZE[1]
    for path in streets.rglob("*_instanceIds.png"):
        path.unlink()
    shapes = read_labels(Request(streets / "gtFine", streets)).images[0].shapes()
    assert [(s.name, area(s.rle), s.semantic) for s in shapes if s.name == "car"] == [("car", 115, True)]


def test_cityscapes_ids_of_own_classes_and_unlisted_ids(streets):
    lines = ("1 stuff bonnet", "7 stuff street", "26 thing auto")
    labels = read_labels(Request(streets / "gtFine", streets, classes=lines))
    labels.check()
    assert sorted({s.name for s in labels.images[0].shapes()}) == ["auto", "bonnet", "street"]
    labels = read_labels(Request(streets / "gtFine", streets, classes=lines[:2]))
    with pytest.raises(DatasetError, match=r"_0_gtFine_instanceIds.png holds the class ids 26, .*; 2 of 2 masks"):
        labels.check()
    (streets / "leftImg8bit/val/a/a_1_leftImg8bit.png").unlink()
    with pytest.raises(DatasetError, match=r"1 images that are not found .*a_1"):
        read_labels(Request(streets / "gtFine", streets))
