"""A look at labels says what they hold, what is suspicious, and how a config reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.data.custom import register_custom
from dearli_d2.labels.formats import formats
from dearli_d2.labels.look import config_lines, look, report
from dearli_d2.labels.structures import Request
from tests.labels.conftest import CLASSES, SIZE, name_of, shapes_of
from tests.labels.test_formats import config
from tests.labels.test_tools import SAMPLES, photo


@pytest.fixture
def labelled(root):
    """Five of six images labelled with COCO instances."""
    writer = formats()["coco-instances"].writer(root, CLASSES)
    for index in range(5):
        writer.add(name_of(index), SIZE, shapes_of(index))
    writer.finish()
    return root


def test_a_look_counts_images_regions_and_pixels_and_draws_them(labelled, tmp_path, capsys):
    picture = tmp_path / "sheet.png"
    assert main(["data", "look", str(labelled), "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    found = look(Request(labelled, labelled))
    assert found.counts["road"][:2] == [5, 5]
    assert found.counts["car"][:2] == [5, 8]
    pixels = sum(int(np.asarray(s.rle["size"]).prod()) for index in range(5) for s in shapes_of(index)[:1])
    assert found.all_pixels == pixels
    assert found.unlabelled == 1
    for words in ("coco-instances", "no split: 5", "without labels: 1", "64 x 48 to 64 x 48"):
        assert words in text
    with Image.open(picture) as sheet:
        assert sheet.height > 5 * 240  # a row for each of the five images


def test_the_lines_of_the_config_read_the_labels(labelled):
    lines = yaml.safe_load(config_lines(look(Request(labelled / "instances.json", labelled))))["DATASETS"]["CUSTOM"]
    assert (labelled / lines["LABELS"]).is_file()
    cfg = config(labelled, *(v for key, value in lines.items() for v in (f"DATASETS.CUSTOM.{key}", str(value))))
    register_custom(cfg.DATASETS.CUSTOM)
    assert cfg.MODEL.NUM_CLASSES == 2


def coco(root: Path, names: list[str], *annotations: dict) -> Request:
    for index in range(3):
        photo(root / f"p{index}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"p{i}.jpg"} for i in range(3)],
        "annotations": [{"id": n, "category_id": 1, **a} for n, a in enumerate(annotations)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }
    (root / "labels.json").write_text(json.dumps(content))
    return Request(root / "labels.json", root)


def square(image: int, left: int, side: int, **more) -> dict:
    right = left + side
    return {"image_id": image, "segmentation": [[left, left, right, left, right, right, left, right]], **more}


@pytest.mark.parametrize(
    ("names", "annotations", "words"),
    [
        (["car", "Cars"], [square(0, 1, 9)], "'car' and 'Cars'"),
        (["traffic light", "trafic light"], [square(0, 1, 9)], "'traffic light' and 'trafic light'"),
        (["car"], [square(0, 1, 3)], "1 objects of fewer than 16 pixels"),
        (["car"], [square(0, 1, 9), square(0, 2, 3), square(0, 2, 3)], "regions hide others wholly: p0.jpg"),
        (["car", "bus"], [square(i, 1, 9) for i in range(3)], "1 classes are in no image: bus"),
        (["car"], [square(0, 1, 9)], "1 classes are in one image only"),
        (["car"], [square(0, 1, 9)], "2 of 3 images have labels without any region: p1.jpg, p2.jpg"),
        (["car"], [square(0, 1, 9)], "more than half of the images have a label on less than 5%"),
        (["car"], [square(0, 1, 9)], "less than 5% of their pixels: p0.jpg"),
        (["car"], [{"image_id": 0, "bbox": [1, 1, 5, 5]}], "1 annotations have a box and no segmentation"),
        (["car"], [square(0, 1, 9)], "twice or more, perhaps in two splits: p0.jpg and p1.jpg and p2.jpg"),
    ],
)
def test_suspicious_things_are_named(names, annotations, words, tmp_path):
    assert words in report(look(coco(tmp_path, names, *annotations)))


@pytest.mark.parametrize("names", [["car", "bus"], ["type 1", "type 2"], ["left", "right"]])
def test_different_names_are_not_suspicious(names, tmp_path):
    assert "nearly the same" not in report(look(coco(tmp_path, names, square(0, 1, 9))))


def test_images_that_an_exif_tag_turns_and_very_different_sizes_are_named(tmp_path):
    request = coco(tmp_path, ["car"], *(square(i, 1, 9) for i in range(3)))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (64, 48)).save(tmp_path / "p0.jpg", exif=exif)
    photo(tmp_path / "p1.jpg", (480, 640))
    text = report(look(request))
    assert "an EXIF tag turns or mirrors 1 of 3" in text
    assert "100 times the pixels" in text


def test_a_look_stops_in_time_and_says_so(tmp_path):
    request = coco(tmp_path, ["car"], *(square(i, 1, 9) for i in range(3)))
    assert "regions of 1 of 3 images" in report(look(request, seconds=0))


def test_masks_of_labelled_images_are_no_unlabelled_images(tmp_path):
    request = coco(tmp_path, ["car"], square(0, 1, 9))
    for name in ("masks/p0.png", "masks/p1_mask.png", "masks/p2.jpg.png", "more/p3.png"):
        photo(tmp_path / name)
    assert look(request).unlabelled == 1


def test_several_labels_in_a_folder_are_listed(tmp_path, capsys):
    photo(tmp_path / "photo.jpg")
    for name in ("cvat.xml", "label_studio.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(SAMPLES / name, tmp_path / name)
    assert main(["data", "look", str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert "cvat-xml" in text
    assert "label-studio" in text
    (tmp_path / "export").mkdir()
    (tmp_path / "cvat.xml").unlink()
    (tmp_path / "label_studio.json").rename(tmp_path / "export" / "tasks.json")
    assert main(["data", "look", str(tmp_path)]) == 0
    assert "tree" in capsys.readouterr().out
