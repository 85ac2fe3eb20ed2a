"""The generated world: deterministic, in the formats of real data sets, with the properties it was made for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.data import miniworld
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.data.miniworld import CLASSES, make_scene
from dearli_d2.data.panoptic_png import read_panoptic, segment_ids


def test_scene_is_a_function_of_its_arguments():
    a, b = make_scene(3, 17), make_scene(3, 17)
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.segments, b.segments)
    for other in (make_scene(4, 17), make_scene(3, 18), make_scene(3, 17, "val"), make_scene(3, 17, domain="night")):
        assert not np.array_equal(a.image, other.image)


def test_every_pixel_has_a_segment_and_every_segment_pixels():
    for index in range(30):
        scene = make_scene(0, index)
        assert set(np.unique(scene.segments)) == set(range(1, len(scene.classes) + 1))
        for i, cls in enumerate(scene.classes, start=1):
            assert not cls.isthing or (scene.segments == i).sum() >= 48


def test_frequencies_are_long_tailed_and_sky_is_above_water():
    things, heights = {}, {"sky": [], "water": []}
    for index in range(150):
        scene = make_scene(0, index)
        for i, cls in enumerate(scene.classes, start=1):
            if cls.isthing:
                things[cls.name] = things.get(cls.name, 0) + 1
            elif cls.name in heights:
                heights[cls.name].append(np.nonzero(scene.segments == i)[0].mean())
    assert things["striped red"] > 4 * things["checkered red"]
    assert min(things.values()) >= 3
    assert np.mean(heights["sky"]) < 0.35 * miniworld.SIZE < np.mean(heights["water"])


def test_look_alike_pair_differs_by_shape_only():
    ball, box = (next(c for c in CLASSES if c.name == n) for n in ("purple ball", "purple box"))
    assert (ball.hue, ball.texture) == (box.hue, box.texture)
    assert not set(ball.shapes) & set(box.shapes)


def test_night_is_darker_and_bluer_with_the_same_classes():
    day = np.stack([make_scene(0, i).image for i in range(20)]).mean((0, 1, 2))
    night = np.stack([make_scene(0, i, domain="night").image for i in range(20)]).mean((0, 1, 2))
    assert night.mean() < 0.6 * day.mean()
    assert night[2] / night[0] > 1.3 * day[2] / day[0]


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("DEARLI_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield miniworld.root(splits={"train": 4, "val": 2})
    patch.undo()


def test_files_hold_the_scene(small_root):
    content = json.loads((small_root / "panoptic_train.json").read_text())
    assert len(content["images"]) == len(content["annotations"]) == 4
    scene, annotation = make_scene(0, 2), content["annotations"][2]
    ids = segment_ids(read_panoptic(str(small_root / "panoptic" / "train" / annotation["file_name"])))
    assert np.array_equal(ids, scene.segments)
    assert [s["category_id"] for s in annotation["segments_info"]] == [c.id for c in scene.classes]
    for segment in annotation["segments_info"]:
        mask = ids == segment["id"]
        x, y, w, h = segment["bbox"]
        assert segment["area"] == mask.sum() == mask[y : y + h, x : x + w].sum()
    semantic = np.asarray(Image.open(small_root / "semantic" / "train" / annotation["file_name"]))
    assert np.array_equal(semantic, scene.semantic())


def test_captions_name_what_is_there(small_root):
    lines = [json.loads(line) for line in (small_root / "captions" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for index, line in enumerate(lines):
        assert (small_root / "images" / "train" / line["file"]).is_file()
        scene = make_scene(0, index)
        area = {c.name: 0 for c in scene.classes}
        for number, cls in enumerate(scene.classes, start=1):
            area[cls.name] = max(area[cls.name], int((scene.segments == number).sum()))
        largest = sorted(area, key=area.get, reverse=True)[:6]
        assert {name for name in area if name in line["caption"]} == set(largest)


def test_interrupted_generation_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("DEARLI_CACHE", str(tmp_path))
    monkeypatch.setattr(miniworld, "caption", lambda scene: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        miniworld.root(splits={"train": 2})
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    monkeypatch.undo()


def test_preview_is_a_picture(tmp_path):
    assert main(["data", "preview", "--out", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (4 * 2 * 192, 3 * 192)


def test_registered_names_give_the_documented_sizes():
    assert len(dataset_dicts("miniworld_train")) == 1000
    assert len(dataset_dicts("miniworld_val")) == 100
    taxonomy = taxonomy_of("miniworld_val")
    assert len(taxonomy) == 16
    assert len(taxonomy.thing_ids) == 10
    assert set(miniworld.UNSEEN_CLASSES) < set(taxonomy.main_names)


def test_scenes_are_the_same_with_numpy_1_and_2():
    """numpy 2 no longer lowers its own float64 scalars to float32; coordinates must stay float32 with both."""
    rng = np.random.default_rng(0)
    assert [c.dtype for c in miniworld._grid(rng, 8)] == [np.float32, np.float32]
    assert all(type(value) is float for value in miniworld._direction(0.3))
