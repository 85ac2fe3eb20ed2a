"""Labels that are masks: index masks and their names."""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.custom import register_custom
from dearli_d2.errors import ConfigError, DatasetError, DearliError
from dearli_d2.labels.convert import flat_shapes, write_labels
from dearli_d2.labels.geometry import decode, encode
from dearli_d2.labels.panoptic import TargetClass, draw
from dearli_d2.labels.recognition import read_labels, recognize
from dearli_d2.labels.structures import LabelClass, LabeledImage, LabelSet, Request, Shape
from tests.labels.conftest import SIZE, name_of
from tests.labels.test_formats import config

LINES = ("1 stuff road", "2 thing car")


def values_of(index: int = 0) -> np.ndarray:
    """A road, two cars that are apart, a speck of a car, and a strip without a label."""
    values = np.ones(SIZE, np.uint8)
    values[2:12, 2:12] = values[20:30, 30 + index : 45] = values[40, 60] = 2
    values[:, 62:] = 255
    return values


def write_masks(
    root, template="{stem}.png", folder="labels", values=values_of, save=lambda a, p: Image.fromarray(a).save(p)
):
    """Masks of five of six images."""
    for index in range(5):
        stem = name_of(index)[:-4]
        above, _, stem = stem.rpartition("/")
        path = root / folder / above / template.format(stem=stem, name=f"{stem}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        save(values(index), path)
    return root / folder


def read(root, path, **more):
    return read_labels(Request(path, root, **{"classes": LINES, **more}))


# ------------------------------------------------------------------------------------------ semantic labels of things


def semantic_image(root, values):
    shapes = [Shape(n, encode(values == v), semantic=True) for n, v in (("road", 1), ("car", 2))]
    return LabeledImage(root / "images" / name_of(0), SIZE, lambda: shapes, ignored=lambda: encode(values == 255))


def test_a_thing_of_semantic_labels_is_an_object_for_each_connected_region(root):
    values = values_of()
    drawn = draw(
        semantic_image(root, values), {"road": TargetClass(1, False), "car": TargetClass(2, True)}, min_area=16
    )
    assert sorted(s["category_id"] for s in drawn.segments) == [1, 2, 2]
    cars = [drawn.ids == s["id"] for s in drawn.segments if s["category_id"] == 2]
    np.testing.assert_array_equal(sum(c.astype(int) for c in cars), (values == 2) & ~(np.indices(SIZE)[0] == 40))
    assert len({int(drawn.ids[5, 5]), int(drawn.ids[25, 40]), int(drawn.ids[0, 0])}) == 3
    # the speck is no object, and still a car for the semantic score
    assert drawn.ids[40, 60] == 0
    np.testing.assert_array_equal(drawn.classes, np.where(values == 255, -1, values.astype(int)))


def test_stuff_of_semantic_labels_and_instances_are_not_split(root):
    values = values_of()
    drawn = draw(semantic_image(root, values), {"road": TargetClass(1, False), "car": TargetClass(2, False)})
    assert sorted(s["category_id"] for s in drawn.segments) == [1, 2]
    whole = LabeledImage(root, SIZE, lambda: [Shape("car", encode(values == 2))])
    assert len(draw(whole, {"car": TargetClass(2, True)}).segments) == 1


def test_a_background_takes_free_pixels_and_neither_ignored_ones_nor_specks(root):
    values = np.where(values_of() == 1, 0, values_of())
    drawn = draw(
        semantic_image(root, values),
        {"road": TargetClass(1, False), "car": TargetClass(2, True)},
        TargetClass(9, False),
        16,
    )
    np.testing.assert_array_equal(drawn.classes == 9, values == 0)
    assert drawn.ids[0, 63] == drawn.ids[40, 60] == 0


def test_converting_semantic_masks_writes_an_object_for_each_connected_region(root):
    labels = read(root, write_masks(root))
    assert [s.semantic for s in labels.images[0].shapes()] == [True, True]
    assert [s.name for s in flat_shapes(labels.images[0], labels)].count("car") == 3
    write_labels(labels, "coco-instances", root / "coco", root / "images")
    assert [s.name for s in read_labels(Request(root / "coco", root)).images[0].shapes()].count("car") == 3


# ------------------------------------------------------------------------------------------ names of masks


@pytest.mark.parametrize(
    "template",
    ["{stem}.png", "{name}.png", "{stem}_mask.png", "{stem}-mask.tif", "{stem}_label.png", "{stem}_L.png", "{stem}_semantic.PNG"],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["labels", "images"])
def test_usual_names_of_masks_are_found_beside_the_images_and_apart(root, template, folder):
    path = write_masks(root, template, folder)
    labels = read(root, path)
    assert [i.file.relative_to(root / "images").as_posix() for i in labels.images] == sorted(
        name_of(i) for i in range(5)
    )
    assert re.search("1 of .* have no mask: im5.jpg", labels.notes[0])
    np.testing.assert_array_equal(decode(labels.images[-1].shapes()[1].rle), values_of(4) == 2)


def test_a_template_names_masks(root):
    path = write_masks(root, "gt of {stem} v2.png")
    for wrong in ("{stem}_x.png", "gt.png", "{stem}{foo}.png"):
        with pytest.raises(DearliError, match="MASK_NAME"):
            read(root, path, mask_name=wrong)
    assert len(read(root, path, mask_name="gt of {stem} v2.png").images) == 5


def test_masks_without_an_image_and_two_masks_of_one_image_are_counted(root):
    path = write_masks(root)
    for name in ("x", "y"):
        Image.fromarray(values_of()).save(path / f"{name}.png")
    with pytest.raises(DatasetError, match=r"2 images that are not found.* x, y"):
        read(root, path)
    (path / "x.png").unlink(), (path / "y.png").unlink()
    Image.fromarray(values_of()).save(path / "im0.tif")
    with pytest.raises(DatasetError, match=r"1 masks are of an image that im0.png labels too: im0.tif"):
        read(root, path)


def test_ade_like_folders_have_their_splits_and_zero_may_mean_unlabelled(root):
    for index, split in enumerate(("training", "training", "validation")):
        for top in ("images", "annotations"):
            (root / top / split).mkdir(parents=True, exist_ok=True)
        (root / "images" / name_of(index)).rename(root / "images" / split / f"a{index}.jpg")
        Image.fromarray(np.where(values_of() == 255, 0, values_of())).save(
            root / "annotations" / split / f"a{index}.png"
        )
    for path in (root / "annotations", root):
        labels = read(root, path, ignore=0)
        assert labels.format == "index-png"
        assert [i.split for i in labels.images] == ["train", "train", "val"]
        np.testing.assert_array_equal(decode(labels.images[0].ignored()), values_of() == 255)


# ------------------------------------------------------------------------------------------ pixel values and classes


def test_masks_of_four_bits_palettes_and_sixteen_bits_are_read_alike(root):
    def palette(values, path):
        image = Image.fromarray(np.where(values == 255, 7, values).astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 255, 255, 255] + [0] * 762)
        image.putdata(np.where(values == 255, 7, values).ravel().tolist())
        image.save(path, bits=4)

    one = read(root, write_masks(root, folder="a", save=palette), ignore=7)
    two = read(root, write_masks(root, folder="b", save=lambda v, p: Image.fromarray(v.astype(np.uint16)).save(p)))
    for a, b in zip(one.images, two.images, strict=True):
        assert [s.name for s in a.shapes()] == [s.name for s in b.shapes()]
        assert all((decode(x.rle) == decode(y.rle)).all() for x, y in zip(a.shapes(), b.shapes(), strict=True))


def test_two_values_of_four_bits_are_no_binary_mask(root):
    """Pillow shows the value 15 of four bits as 255."""
    path = write_masks(root, save=lambda v, p: p.write_bytes(png_of_four_bits(np.where(v == 2, 15, 0))))
    assert set(recognize(path)) == {"index-png"}
    labels = read(root, path, classes=("0 stuff road", "15 thing car"))
    np.testing.assert_array_equal(decode(labels.images[-1].shapes()[1].rle), values_of(4) == 2)


def png_of_four_bits(values):
    """A greyscale PNG file of 4 bits, which Pillow does not write."""
    height, width = values.shape
    rows = (values[:, ::2] << 4 | values[:, 1::2]).astype(np.uint8)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def test_wrong_values_are_counted_with_advice_before_training(root):
    path = write_masks(root)
    for name in ("im0", "im1"):
        values = values_of()
        values[0, 0] = 0
        Image.fromarray(values).save(path / f"{name}.png")
    with pytest.raises(DatasetError, match=r"2 of 5 masks hold such values: 0; if 0 means 'not labelled'"):
        register_custom(config(root, "DATASETS.CUSTOM.CLASSES", str(list(LINES))).DATASETS.CUSTOM)
    labels = read(root, path)
    with pytest.raises(DatasetError, match="2 of 5 masks"):
        write_labels(labels, "coco-instances", root / "out", root / "images")
    for name in ("im0", "im1"):
        (path / f"{name}.png").write_bytes((path / f"{name}.png").read_bytes()[:60])
    with pytest.raises(DatasetError, match="2 of 5 masks cannot be used"):
        read(root, path).check()


def test_masks_of_another_size_are_counted(root):
    path = write_masks(root)
    for name in ("im0", "im1"):
        Image.fromarray(values_of()[:-1]).save(path / f"{name}.png")
    with pytest.raises(
        DatasetError, match=r"2 masks have another size than their image: .*im0.png is 64 x 47, its image is 64 x 48"
    ):
        read(root, path)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("classes.txt", "# mine\n1 stuff road\n2 thing car, vehicle\n", [("road", 1, False), ("car", 2, True)]),
        ("classes.txt", "void\nroad\ncar\n", [("void", 0, None), ("road", 1, None), ("car", 2, None)]),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, road\n2, car\n", [("background", 0, None), ("road", 1, None), ("car", 2, None)]),
    ],
)  # fmt: skip
def test_classes_come_from_a_file_beside_the_masks(root, name, text, wanted):
    path = write_masks(root)
    with pytest.raises(DatasetError, match=r"DATASETS.CUSTOM.CLASSES, or in .*classes.txt"):
        read(root, path, classes=())
    for place in (path, root):
        (place / name).write_text(text)
        assert [(c.name, c.id, c.isthing) for c in read(root, path, classes=()).classes] == wanted
        (place / name).unlink()


def test_a_broken_class_file_is_named(root):
    path = write_masks(root)
    (path / "classes.txt").write_text("1 stuff road\n2 thing\n")
    with pytest.raises(DatasetError, match=r"classes.txt: .*'2 thing'"):
        read(root, path, classes=())
    with pytest.raises(ConfigError, match="means 'ignore'"):
        read(root, path, ignore=2)


def test_index_masks_are_written_in_the_users_pixel_values(root):
    classes = [LabelClass("road", 300, False), LabelClass("car", 255, True)]
    shapes = [Shape("road", encode(values_of() == 1)), Shape("car", encode(values_of() == 2))]
    labels = LabelSet(
        root, "made", classes, [LabeledImage(root / "images" / name_of(0), SIZE, lambda: shapes)], True, ""
    )
    write_labels(labels, "index-png", root / "out", root / "images")
    values = np.asarray(Image.open(root / "out" / "masks" / "im0.png"))
    np.testing.assert_array_equal(values, np.array([0, 300, 255] + [0] * 252 + [65535])[values_of()])
    assert (root / "out" / "classes.txt").read_text().splitlines()[1:] == ["300 stuff road", "255 thing car"]
    assert len(read_labels(Request(root / "out", root, ignore=65535)).images) == 1


def test_photographs_are_no_index_masks(root):
    assert not recognize(root / "images")
    for path in (root / "images").rglob("*.jpg"):
        Image.open(path).convert("L").save(path.with_suffix(".png"))
    assert not recognize(root / "images")
