"""COCO-panoptic JSON: what other tools write differently is read, what contradicts itself is refused."""

from __future__ import annotations

import copy
import json

import pytest

from dearli_d2.data.panoptic_json import read_panoptic_json, without_annotation
from dearli_d2.errors import DatasetError

CONTENT = {
    "info": {"year": 2026},
    "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in (1, 2, 3)],
    "annotations": [
        {
            "image_id": i,
            "file_name": f"{i}.png",
            "segments_info": [{"id": 5, "category_id": 7, "area": 9, "iscrowd": 0}, {"id": 6, "category_id": 8}],
        }
        for i in (1, 2)
    ],
    "categories": [{"id": 7, "name": "cat", "isthing": 1}, {"id": 8, "name": "grass", "isthing": 0}],
}


def read(tmp_path, content, start=b""):
    path = tmp_path / "labels.json"
    path.write_bytes(start + (content if isinstance(content, bytes) else json.dumps(content).encode()))
    return read_panoptic_json(path)


def changed(change):
    content = copy.deepcopy(CONTENT)
    change(content)
    return content


def test_a_good_file_is_read_as_it_is(tmp_path):
    content = read(tmp_path, CONTENT)
    assert content["info"] == CONTENT["info"]
    assert content["images"] == CONTENT["images"]
    assert content["annotations"][0]["segments_info"][1] == {"id": 6, "category_id": 8, "iscrowd": 0}
    assert without_annotation(content) == ["3.jpg"]


def as_text(c):
    for image in c["images"]:
        image.update(height="4", width=6.0)
    for annotation in c["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        for segment in annotation["segments_info"]:
            segment.update(id=str(segment["id"]), category_id=str(segment["category_id"]), iscrowd="0")
    for category in c["categories"]:
        category.update(id=str(category["id"]), isthing=str(category["isthing"]))


def test_ids_of_images_may_be_written_as_fractions(tmp_path):
    content = read(tmp_path, changed(lambda c: [i.update(id=float(i["id"])) for i in c["images"]]))
    assert [a["image_id"] for a in content["annotations"]] == [1, 2]
    assert without_annotation(content) == ["3.jpg"]


def test_numbers_that_stand_as_text_are_numbers(tmp_path):
    expected = read(tmp_path, CONTENT)
    found = read(tmp_path, changed(as_text))
    assert found["images"] == expected["images"]
    assert found["categories"] == expected["categories"]
    assert [a["image_id"] for a in found["annotations"]] == [1, 2]
    assert found["annotations"][0]["segments_info"][0]["id"] == 5
    assert found["annotations"][0]["segments_info"][0]["iscrowd"] == 0


def test_a_byte_order_mark_and_missing_sizes_are_no_error(tmp_path):
    content = read(tmp_path, changed(lambda c: c["images"][0].pop("height")), start=b"\xef\xbb\xbf")
    assert content["images"][0] == {"id": 1, "file_name": "1.jpg", "width": 6}


def test_paths_of_windows_are_paths(tmp_path):
    def change(content):
        content["images"][0]["file_name"] = "day\\1.jpg"
        content["annotations"][0]["file_name"] = "day\\1.png"

    content = read(tmp_path, changed(change))
    assert content["images"][0]["file_name"] == "day/1.jpg"
    assert content["annotations"][0]["file_name"] == "day/1.png"


def first_segments(c):
    return c["annotations"][0]["segments_info"]


WRONG = {
    "image id twice": (lambda c: c["images"][1].update(id=1), "an image id stands twice: 1"),
    "image id twice, once as text": (lambda c: c["images"][1].update(id="1"), "an image id stands twice: 1"),
    "image listed twice": (lambda c: c["images"][1].update(file_name="1.jpg"), "an image is listed twice: 1.jpg"),
    "two annotations of an image": (lambda c: c["annotations"][1].update(image_id=1), "an image has two annotations, its id is: 1"),
    "one label file for two": (lambda c: c["annotations"][1].update(file_name="1.png"), "a label file belongs to two images: 1.png"),
    "annotation of no image": (lambda c: c["annotations"][1].update(image_id=9), "1 annotations without an image entry: 2.png"),
    "one label file for two, written otherwise": (lambda c: c["annotations"][1].update(file_name="./1.png"), "a label file belongs to two images: 1.png"),
    "image id is a list": (lambda c: c["images"][1].update(id=[1, 2]), r"1 image ids are neither a text nor a whole number: \[1, 2\]"),
    "image id is null": (lambda c: c["images"][1].update(id=None), "1 image ids are neither a text nor a whole number: None"),
    "image id is a truth value": (lambda c: c["images"][1].update(id=True), "1 image ids are neither .*: True"),
    "two signs": (lambda c: first_segments(c)[1].update(id="--5"), "'--5' in 1.png"),
    "area beyond every image": (lambda c: first_segments(c)[1].update(area=10**400), "'area' is no number: 1000"),
    "negative category id": (lambda c: c["categories"][1].update(id=-1), "1 category ids are no whole numbers from 0 to 65535: -1"),
    "category id beyond a PNG": (lambda c: c["categories"][1].update(id=1e300), "1 category ids are no whole numbers from 0 to 65535"),
    "image without id": (lambda c: c["images"][1].pop("id"), "1 images lack a key: 'id' in entry 1"),
    "image without name": (lambda c: c["images"][1].pop("file_name"), "1 images lack a key: 'file_name' in entry 1"),
    "image with an empty name": (lambda c: c["images"][1].update(file_name=" "), "1 images have no file name: 2"),
    "label file with a number for a name": (lambda c: c["annotations"][1].update(file_name=7), "1 annotations have no file name: 2"),
    "negative size": (lambda c: c["images"][1].update(height=-4), r"1 images have a size .*: 2.jpg \(height -4\)"),
    "size in words": (lambda c: c["images"][1].update(width="wide"), r"2.jpg \(width 'wide'\)"),
    "no segments_info": (lambda c: c["annotations"][1].pop("segments_info"), "1 annotations lack a key: 'segments_info' in entry 1"),
    "segments_info is a number": (lambda c: c["annotations"][1].update(segments_info=3), "whose 'segments_info' is no list of objects: 2.png"),
    "segment id twice": (lambda c: first_segments(c)[1].update(id=5), "1 segment ids stand twice in an image: id 5 in 1.png"),
    "segment id twice, once as text": (lambda c: first_segments(c)[1].update(id="5"), "id 5 in 1.png"),
    "segment id 0": (lambda c: first_segments(c)[1].update(id=0), r"from 1 to 16777215 \(0 means 'ignore'\): 0 in 1.png"),
    "segment id too large": (lambda c: first_segments(c)[1].update(id=2**24), "16777216 in 1.png"),
    "segment without id": (lambda c: first_segments(c)[1].pop("id"), "None in 1.png"),
    "segment without category": (lambda c: first_segments(c)[1].pop("category_id"), "1 segments of categories that are not in 'categories': category None"),
    "unknown category": (lambda c: first_segments(c)[1].update(category_id=99), "category 99 in 1.png"),
    "crowd 2": (lambda c: first_segments(c)[1].update(iscrowd=2), "'iscrowd' is not 0 or 1: 2 in 1.png"),
    "area not a number": (lambda c: first_segments(c)[1].update(area=float("nan")), "'area' is no number: nan in 1.png"),
    "area in words": (lambda c: first_segments(c)[1].update(area="big"), "'area' is no number: 'big' in 1.png"),
    "category id twice": (lambda c: c["categories"][1].update(id=7), "a category id stands twice: 7"),
    "category name twice": (lambda c: c["categories"][1].update(name="cat "), "a category name stands twice: cat"),
    "category without name": (lambda c: c["categories"][1].pop("name"), "1 categories lack a key: 'name' in entry 1"),
    "isthing missing": (lambda c: c["categories"][1].pop("isthing"), "1 categories without 'isthing' 1 .*: grass"),
    "isthing in words": (lambda c: c["categories"][1].update(isthing="no"), "1 categories without 'isthing'"),
    "category is a text": (lambda c: c["categories"].append("dog"), "1 entry|entry 2 of 'categories'"),
    "colour in words": (lambda c: c["categories"][1].update(color="#00ff00"), "1 categories have a 'color' .*: grass"),
    "synonyms in one text": (lambda c: c["categories"][1].update(synonyms="meadow"), "1 categories have 'synonyms' .*: grass"),
    "images are an object": (lambda c: c.update(images={}), "is no COCO-panoptic JSON file: 'images' is no list"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_contradictions_are_refused_with_the_entry(tmp_path, case):
    change, words = WRONG[case]
    with pytest.raises(DatasetError, match=words) as error:
        read(tmp_path, changed(change))
    assert str(error.value).startswith(str(tmp_path / "labels.json"))


OTHERS = {
    "COCO instances": ({"images": [], "annotations": [{"id": 1, "image_id": 1, "segmentation": [[1, 2, 3]], "bbox": []}], "categories": []}, "is a COCO instances file"),
    "COCO captions": ({"images": [], "annotations": [{"image_id": 1, "caption": "a cat"}]}, "is a COCO captions file"),
    "COCO results": ([{"image_id": 1, "category_id": 1, "bbox": []}], "is a list of COCO detections"),
    "Labelme": ({"version": "5", "shapes": [], "imagePath": "a.jpg", "imageData": None}, "is a Labelme file"),
    "Label Studio": ([{"id": 1, "data": {}, "annotations": []}], "is a Label Studio export"),
    "VIA": ({"_via_settings": {}, "_via_img_metadata": {}}, "VGG Image Annotator"),
    "GeoJSON": ({"type": "FeatureCollection", "features": []}, "is a GeoJSON file"),
    "Cityscapes polygons": ({"imgHeight": 1, "imgWidth": 1, "objects": []}, "is a polygon file of one image"),
    "own predictions": ({"annotations": [{"image": "a.jpg", "segments_info": []}], "categories": []}, "predictions.json of dearli_d2.predict"),
    "a list": ([1], "it holds a list"),
    "a number": (3, "it holds a int"),
    "null": (None, "it holds a NoneType"),
    "cut off": (json.dumps(CONTENT).encode()[:99], "is no COCO-panoptic JSON file: "),
    "empty": (b"", "is no COCO-panoptic JSON file: "),
    "nested without end": (b"[" * 100000, "is no COCO-panoptic JSON file: its brackets are nested too deep"),
    "UTF-16": (json.dumps(CONTENT).encode("utf-16"), "is no text in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_formats_are_named(tmp_path, case):
    content, words = OTHERS[case]
    with pytest.raises(DatasetError, match=words):
        read(tmp_path, content)
