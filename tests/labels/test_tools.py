"""Labels that the labelling tools' own libraries wrote are read as what they show; their quirks too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.errors import DatasetError
from dearli_d2.labels import brush, outlines
from dearli_d2.labels.geometry import decode
from dearli_d2.labels.recognition import format_of, read_labels
from dearli_d2.labels.structures import Request
from tests.labels.samples.make_samples import HEIGHT, WIDTH, masks

SAMPLES = Path(__file__).parent / "samples"
# format, file or folder, pixels by which a mask may differ: polygons have no sharp border
WRITTEN = {
    "label_studio.json": ("label-studio", {"car": 0}),
    "cvat.xml": ("cvat-xml", {"car": 0}),
    "labelme.json": ("labelme", {"car": 0}),
    "pycocotools.json": ("coco-instances", {}),
    # supervision draws polygons through the centres of the border's pixels, which makes regions half a pixel smaller
    "supervision_coco.json": ("coco-instances", {"road": 14 + 64, "car": 22 + 16, "tree": 110}),
    "supervision_yolo": ("yolo-seg", {"road": 14 + 64, "car": 22 + 16, "tree": 110}),
}


def photo(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def union_of(image, name: str) -> np.ndarray:
    return np.any([decode(s.rle) for s in image.shapes() if s.name == name], axis=0)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_files_of_the_tools_libraries_are_read_as_what_they_show(name, tmp_path):
    wanted, slack = WRITTEN[name]
    path = tmp_path / "labels" / name
    path.parent.mkdir()
    (shutil.copytree if (SAMPLES / name).is_dir() else shutil.copy)(SAMPLES / name, path)
    photo(tmp_path / "images" / "photo.jpg")
    assert format_of(path).name == wanted
    labels = read_labels(Request(path, tmp_path))
    assert {c.name for c in labels.classes} == {"road", "car", "tree"}
    (image,) = labels.images
    for cls, truth in masks().items():
        assert (union_of(image, cls) != truth).sum() <= slack.get(cls, 0), cls


# ---------------------------------------------------------------------------------------------- Label Studio


def test_brush_masks_are_encoded_as_label_studio_does_it():
    (task,) = json.loads((SAMPLES / "label_studio.json").read_text())
    for result in task["annotations"][0]["result"]:
        if "rle" in result["value"]:
            theirs, ours = result["value"]["rle"], brush.encode(masks()[result["id"]])
            assert [*ours, 0][: len(theirs)] == theirs  # it pads with a whole byte where none is needed


def test_a_brush_mask_with_values_one_by_one_is_decoded():
    # one repeated value, then a list of four: how Label Studio's editor writes short runs
    size, values = (2, 1), [0, 0, 0, 0, 9, 9, 9, 255]
    bits = f"{8:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16)) + f"100{3:03b}{0:08b}"
    bits += f"000{3:03b}" + "".join(f"{v:08b}" for v in values[4:])
    bits += "0" * (-len(bits) % 8)
    rle = int(bits, 2).to_bytes(len(bits) // 8, "big")
    found = brush.decode(rle, size)
    assert found is not None
    assert found.ravel().tolist() == [False, True]
    assert brush.decode(rle[:-2], size) is None
    assert brush.decode(rle, (3, 1)) is None
    assert brush.decode(b"", size) is None


@pytest.mark.parametrize("seed", range(8))
def test_brush_masks_come_back_whatever_their_length_is(seed):
    rng = np.random.default_rng(seed)
    size = tuple(int(v) for v in rng.integers(1, 300, 2))
    mask = rng.random(size) < rng.random() if seed % 2 else np.add.outer(*map(np.arange, size)) % 97 < 10 * seed
    np.testing.assert_array_equal(brush.decode(bytes(brush.encode(mask)), size), mask)


def tasks(tmp_path: Path, *entries: dict) -> Path:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(entries))
    photo(tmp_path / "images" / "photo.jpg", (100, 200))
    return path


def region(kind: str, value: dict, **more) -> dict:
    value = {**value, f"{kind}labels": ["car"]}
    return {"type": f"{kind}labels", "original_width": 200, "original_height": 100, "image_rotation": 0, "value": value, **more}  # fmt: skip


SQUARE = {"points": [[10, 10], [30, 10], [30, 50], [10, 50]]}


def task(*results: dict, image: str = "photo.jpg", **more) -> dict:
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 1, "result": list(results)}], **more}


@pytest.mark.parametrize(
    "name",
    ["photo.jpg", "/data/upload/3/0a1b2c3d-photo.jpg", "/data/local-files/?d=images%2Fphoto.jpg", "s3://bucket/a/photo.jpg",
     "https://host/some/photo.jpg?token=1", "C:\\Users\\me\\photo.jpg", "/data/local-files/?d=elsewhere/photo.jpg"],
)  # fmt: skip
def test_an_image_is_found_by_every_name_that_label_studio_gives_it(name, tmp_path):
    labels = read_labels(Request(tasks(tmp_path, task(region("polygon", SQUARE), image=name)), tmp_path))
    assert [image.file.name for image in labels.images] == ["photo.jpg"]
    expected = np.zeros((100, 200), bool)
    expected[10:50, 20:60] = True
    np.testing.assert_array_equal(union_of(labels.images[0], "car"), expected)


def test_rectangles_and_ellipses_are_rotated_as_label_studio_shows_them(tmp_path):
    # a quarter turn clockwise about the upper left corner, and about the centre
    rectangle = region("rectangle", {"x": 50, "y": 20, "width": 20, "height": 10, "rotation": 90})
    ellipse = region("ellipse", {"x": 20, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 90})
    labels = read_labels(Request(tasks(tmp_path, task(rectangle, ellipse)), tmp_path))
    first, second = (decode(s.rle) for s in labels.images[0].shapes())
    expected = np.zeros((100, 200), bool)
    expected[20:60, 90:100] = True
    assert (first != expected).sum() <= 2 * (40 + 10)
    y, x = np.mgrid[:100, :200] + 0.5
    round_one = ((y - 50) / 20) ** 2 + ((x - 40) / 10) ** 2 <= 1
    assert (second != round_one).sum() < 40
    assert any("rectangles" in note for note in labels.notes)


def test_the_newest_annotation_that_is_not_cancelled_counts(tmp_path):
    new = {"id": 3, "updated_at": "2024-03-01", "was_cancelled": True, "result": []}
    good = {"id": 2, "updated_at": "2024-02-01", "result": [region("polygon", SQUARE)]}
    old = {"id": 1, "updated_at": "2024-01-01", "result": []}
    labels = read_labels(Request(tasks(tmp_path, {"data": {"image": "photo.jpg"}, "annotations": [old, new, good]}), tmp_path))  # fmt: skip
    assert len(labels.images[0].shapes()) == 1
    assert any("newest" in note for note in labels.notes)


def test_predictions_count_only_where_no_task_is_annotated(tmp_path):
    prediction = {"result": [region("polygon", SQUARE, score=0.75)]}
    guessed = {"data": {"image": "photo.jpg"}, "annotations": [], "predictions": [prediction]}
    labels = read_labels(Request(tasks(tmp_path, guessed), tmp_path))
    assert labels.images[0].shapes()[0].score == 0.75
    photo(tmp_path / "other.jpg")
    labels = read_labels(Request(tasks(tmp_path, guessed, task(image="other.jpg")), tmp_path))
    assert [image.file.name for image in labels.images] == ["other.jpg"]
    assert labels.images[0].shapes() == []  # labelled as one without objects
    assert any("1 tasks have no labels" in note for note in labels.notes)


def test_keypoints_choices_and_regions_without_a_class_are_no_error(tmp_path):
    keypoint = region("keypoint", {"x": 1, "y": 1, "width": 1})
    choice = {"type": "choices", "value": {"choices": ["good"]}}
    nameless = {"id": "a", "type": "polygon", "value": SQUARE}
    twin = {"id": "b", "type": "polygon", "value": SQUARE}
    labelled = {"id": "b", "type": "labels", "value": {**SQUARE, "labels": ["tree"]}}
    labels = read_labels(Request(tasks(tmp_path, task(keypoint, choice, nameless, twin, labelled)), tmp_path))
    assert [s.name for s in labels.images[0].shapes()] == ["tree"]
    assert sum("keypoint" in note or "without a class" in note for note in labels.notes) == 2


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([region("polygon", SQUARE, image_rotation=90)], "1 regions are drawn on an image that Label Studio rotated"),
        ([region("polygon", {"points": [[10, 10], [900, 10], [30, 50]]})] * 2, "2 polygons that leave the image"),
        ([region("polygon", {"points": [[10, float("nan")], [9, 10], [30, 50]]})], "no number"),
        ([region("polygon", {"points": [[10, 10**400], [9, 10], [30, 50]]})], "no number"),
        ([region("polygon", {"points": 7})], "no number"),
        ([region("brush", {"rle": [0, 0, 0, 9, 1, 1, 1, 1, 1, 1]})], "brush masks do not have the size"),
        ([region("brush", {"rle": [255] * 40})], "brush masks do not have the size"),
        ([region("brush", {"rle": "abc"})], "brush masks do not have the size"),
        ([region("rectangle", {"x": 300, "y": 1, "width": 5, "height": 5})], "outside of the image"),
        ([region("rectangle", {"x": 1, "y": 1, "width": 1e7, "height": 5})], "much larger"),
        ([region("ellipse", {"x": 1, "y": None, "radiusX": 5, "radiusY": 5})], "no number"),
        ([{**region("polygon", SQUARE), "original_width": 201}], "another size"),
        ([{"type": "polygonlabels", "value": {**SQUARE, "polygonlabels": ["car", "tree"]}}], "several classes"),
    ],
)
def test_faulty_regions_of_label_studio_are_counted_and_named(results, words, tmp_path):
    path = tasks(tmp_path, task(*results))
    with pytest.raises(DatasetError, match=words) as error:
        read_labels(Request(path, tmp_path))
    assert "task 1" in str(error.value)
    assert str(path) in str(error.value)


def test_two_tasks_of_one_image_and_a_brief_export_are_refused(tmp_path):
    path = tasks(tmp_path, task(), task(id=2))
    with pytest.raises(DatasetError, match="task 2, as task 1"):
        read_labels(Request(path, tmp_path))
    path.write_text(json.dumps([{"image": "photo.jpg", "label": [{"original_width": 1, "points": []}]}]))
    with pytest.raises(DatasetError, match="JSON-MIN"):
        read_labels(Request(path, tmp_path))


# ---------------------------------------------------------------------------------------------- CVAT


def xml(tmp_path: Path, *shapes: str, image: str = "photo.jpg", more: str = "", meta: str = "<label><name>car</name></label>") -> Path:  # fmt: skip
    path = tmp_path / "annotations.xml"
    path.write_text(
        f"<annotations><version>1.1</version><meta><task><labels>{meta}</labels></task></meta>"
        f'<image id="0" name="{image}" width="200" height="100" {more}>{"".join(shapes)}</image></annotations>'
    )
    photo(tmp_path / "images" / "photo.jpg", (100, 200))
    return path


def test_shapes_of_cvat_have_their_place_their_level_and_their_group(tmp_path):
    path = xml(
        tmp_path,
        '<box label="car" xtl="10" ytl="20" xbr="50" ybr="30" rotation="90" z_order="2"/>',
        '<ellipse label="car" cx="100" cy="50" rx="20" ry="10"/>',
        '<polygon label="car" points="150,10;160,10;160,20;150,20" group_id="4"/>',
        '<mask label="car" rle="0, 4" left="150" top="40" width="2" height="2" group_id="4" z_order="-1"/>',
        '<points label="car" points="1,1"/>',
        more='subset="Validation"',
    )
    labels = read_labels(Request(path, tmp_path))
    (image,) = labels.images
    assert image.split == "val"
    box, ellipse, group = image.shapes()
    expected = np.zeros((100, 200), bool)
    expected[5:45, 25:35] = True
    assert (decode(box.rle) != expected).sum() <= 100
    assert box.level == 2
    y, x = np.mgrid[:100, :200] + 0.5
    assert (decode(ellipse.rle) != (((y - 50) / 10) ** 2 + ((x - 100) / 20) ** 2 <= 1)).sum() < 40
    expected[:] = False
    expected[10:20, 150:160] = expected[40:42, 150:152] = True
    np.testing.assert_array_equal(decode(group.rle), expected)
    assert any("1 regions of the kind points" in note for note in labels.notes)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ('<polygon label="bus" points="1,1;9,1;9,9"/>', "label that <meta> does not list"),
        ('<polygon label="car" points="1,1;9,1"/>', "fewer than three"),
        ('<polygon label="car" points="1,1;9,x;9,9"/>', "no list of pairs of numbers"),
        ('<polygon label="car"/>', "polygons without points"),
        ('<polygon label="car" points="1,1;1e300,1;9,9"/>', "no list of pairs"),
        ('<mask label="car" rle="0, 5" left="0" top="0" width="2" height="2"/>', "do not fill their box"),
        ('<mask label="car" rle="0, 4" left="199" top="0" width="2" height="2"/>', "do not fill their box"),
        (
            '<mask label="car" rle="0, 999999999" left="0" top="0" width="99999" height="99999"/>',
            "do not fill their box",
        ),
        ('<mask label="car"/>', "do not fill their box"),
        ('<box label="car" xtl="nan" ytl="20" xbr="50" ybr="30"/>', "no number"),
        ('<box label="car" xtl="1" ytl="20" xbr="50" ybr="30" rotation="inf"/>', "no number"),
        ('<ellipse label="car" cx="900" cy="20" rx="5" ry="3"/>', "outside of the image"),
        ('<blob label="car"/>', "kind that is unknown"),
        ('<polygon points="1,1;9,1;9,9"/>', "without a label"),
    ],
)
def test_faulty_shapes_of_cvat_are_counted_and_named(shape, words, tmp_path):
    path = xml(tmp_path, shape, shape)
    with pytest.raises(DatasetError, match=words) as error:
        read_labels(Request(path, tmp_path))
    assert ": 2 " in str(error.value)
    assert "photo.jpg" in str(error.value)


def test_other_xml_files_are_refused_in_one_line(tmp_path):
    path = xml(tmp_path)
    whole = path.read_text()
    for text, words in {
        whole.replace("<image", "<track id='1'/><image"): "CVAT for images 1.1",
        "<!DOCTYPE a [<!ENTITY b 'c'>]>" + whole: "entities",
        "<annotation><size/></annotation>": "<annotations>",
        whole[: len(whole) // 2]: "no whole XML file",
        "": "no whole XML file",
        whole.replace('height="100"', 'height="200"').replace('width="200"', 'width="100"'): "EXIF",
        whole.replace("</annotations>", '<image id="9" name="images/photo.jpg"/></annotations>'): "image 9",
        whole.replace("photo.jpg", "../../" + "a" * 300): "1 images that are not found",
    }.items():
        path.write_text(text)
        with pytest.raises(DatasetError, match=words) as error:
            read_labels(Request(path, tmp_path), "cvat-xml")
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)


def test_run_lengths_along_rows_come_back():
    rng = np.random.default_rng(0)
    for _ in range(10):
        mask = rng.random(tuple(rng.integers(1, 30, 2))) < rng.random()
        runs, (height, width) = outlines.row_runs(mask), mask.shape
        assert outlines.fills(runs, (2, 1, width, height), (40, 40))
        rle = outlines.from_row_runs(runs, (2, 1, width, height), (40, 40))
        np.testing.assert_array_equal(decode(rle)[1 : 1 + height, 2 : 2 + width], mask)
        assert not outlines.fills(runs, (20, 1, width, height), (10, 20))


# ---------------------------------------------------------------------------------------------- names of images

NAMES = {  # as the label file has it, as the file is called
    "a prefix and spaces replaced, as Label Studio stores uploads": ("images/0a1b2c3d-My_photo_1.jpg", "My photo (1).jpg", True),
    "a prefix": ("0a1b2c3d-photo.jpg", "photo.jpg", False),
    "other letters": ("IMG_01.JPG", "img_01.jpg", True),
    "composed letters": ("cafe\u0301.jpg", "caf\u00e9.jpg", False),
    "decomposed letters": ("caf\u00e9.jpg", "cafe\u0301.jpg", False),
    "a path of Windows": ("C:\\data set\\day\\photo.jpg", "day/photo.jpg", False),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["coco-instances", "yolo-seg", "index-png"])
def test_images_are_found_where_a_tool_changed_their_names(name, kind, tmp_path):
    given, file, told = NAMES[name]
    photo(tmp_path / "images" / file)
    stem = given.replace("\\", "/").rpartition("/")[2][:-4]
    (tmp_path / "labels").mkdir()
    path = tmp_path / "labels"
    if kind == "coco-instances":
        content = {
            "images": [{"id": 1, "file_name": given}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
            "categories": [{"id": 1, "name": "car"}],
        }
        path = path / "labels.json"
        path.write_text(json.dumps(content))
    elif kind == "yolo-seg":
        (path / "classes.txt").write_text("car\n")
        (path / f"{stem}.txt").write_text("0 0.1 0.1 0.4 0.1 0.4 0.4\n")
    else:
        Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(path / f"{stem}.png")
    labels = read_labels(Request(path, tmp_path, classes=("1 thing car",)))
    assert [i.file for i in labels.images] == [tmp_path / "images" / file]
    assert any("have a similar name" in note for note in labels.notes) == told


def test_a_name_that_is_similar_to_several_is_none_of_them(tmp_path):
    for name in ("My photo.jpg", "my_photo.jpg"):
        photo(tmp_path / "images" / name)
    (tmp_path / "0a1b2c3d-MY_PHOTO.json").write_text('{"imagePath": "MY_PHOTO.jpg", "shapes": []}')
    with pytest.raises(DatasetError, match=r"1 images whose name several files .* have"):
        read_labels(Request(tmp_path, tmp_path))


def test_a_mask_is_no_image_that_is_called_like_it(tmp_path):
    photo(tmp_path / "masks" / "a.jpg.png")
    (tmp_path / "a.json").write_text('{"imagePath": "a.jpg", "shapes": []}')
    with pytest.raises(DatasetError, match="1 images that are not found"):
        read_labels(Request(tmp_path / "a.json", tmp_path))
