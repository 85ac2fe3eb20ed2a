"""Large images by tiles: known segments across seams, classes, confidence, and images that one tile holds."""

from __future__ import annotations

import numpy as np
import pytest

from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.errors import ConfigError
from dearli_d2.prediction_files import Maps, segments_info
from dearli_d2.tiles import Tiles, predict_tiles

TAXONOMY = Taxonomy((("car",), ("sky",), ("road",)), frozenset({0}), (7, 3, 5), ((200, 0, 0), (0, 0, 200), (9, 9, 9)))
SKY, ROAD, CARS = 0, 40, (80, 120, 160, 200)  # grey values of the made-up image


def scene():
    """300 x 420: sky above road, and cars of which three cross seams of tiles of 128 in one or both directions."""
    grey = np.full((300, 420), ROAD, np.uint8)
    grey[:110] = SKY
    for value, (top, left, height, width) in zip(
        CARS, [(60, 90, 60, 70), (150, 20, 30, 380), (200, 200, 90, 30), (30, 300, 20, 20)], strict=True
    ):
        grey[top : top + height, left : left + width] = value
    return np.stack([grey] * 3, -1)


def perfect(images):
    """A model that sees the grey values of a tile alone; ids depend on the tile, as those of a real model do."""
    found = []
    for image in images:
        grey = image[..., 0]
        panoptic, segments = np.zeros(grey.shape, np.int32), []
        values = np.unique(grey).tolist()[:: 1 if grey.shape[0] % 2 else -1]
        for number, value in enumerate(values, start=1):
            panoptic[grey == value] = number
            category = 1 if value == SKY else 2 if value == ROAD else 0
            segments.append(
                {"id": number, "category_id": category, "isthing": category == 0, "score": 0.5 + value / 400}
            )
        semantic = np.where(grey == SKY, 1, np.where(grey == ROAD, 2, 0)).astype(np.int16)
        found.append(Maps(panoptic, segments, semantic, np.full(grey.shape, 0.75, np.float32)))
    return found


def expect_scene(maps, image):
    grey = image[..., 0]
    assert len(maps.segments) == 6
    for segment in maps.segments:
        (value,) = np.unique(grey[maps.panoptic == segment["id"]])
        assert (grey == value).sum() == (maps.panoptic == segment["id"]).sum()
        assert segment["score"] == pytest.approx(0.5 + value / 400)
        assert segment["isthing"] == (value >= CARS[0])
    assert [s["id"] for s in maps.segments] == list(range(1, 7))
    assert np.array_equal(maps.semantic, perfect([image])[0].semantic)
    np.testing.assert_allclose(maps.confidence, 0.75, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0, 1, 16, 64])
@pytest.mark.parametrize("batch", [1, 5])
def test_known_segments_are_whole_across_seams(overlap, batch):
    image = scene()
    expect_scene(predict_tiles(perfect, image, Tiles(128, overlap), TAXONOMY, batch), image)


def test_things_of_one_class_that_only_meet_at_a_corner_or_touch_a_little_stay_apart():
    image = np.full((100, 128, 3), ROAD, np.uint8)
    image[10:50, 30:64] = CARS[0]
    image[45:90, 64:100] = CARS[1]  # five of forty rows touch at the seam
    maps = predict_tiles(perfect, image, Tiles(64, 0), TAXONOMY)
    assert sum(s["isthing"] for s in maps.segments) == 2
    for value in CARS[:2]:
        assert len(np.unique(maps.panoptic[image[..., 0] == value])) == 1


def test_the_tile_whose_border_is_farther_away_decides():
    """Two tiles that contradict each other: the seam lies in the middle of the overlap, and confidence is half there."""
    image, calls = np.zeros((60, 100, 3), np.uint8), []

    def contradict(images):
        category = 1 + len(calls)
        calls.append(1)
        size = images[0].shape[:2]
        segments = [{"id": 1, "category_id": category, "isthing": False, "score": 1.0}]
        return [Maps(np.ones(size, np.int32), segments, np.full(size, category, np.int16), np.ones(size, np.float32))]

    maps = predict_tiles(contradict, image, Tiles(60, 20), TAXONOMY)
    assert maps.panoptic[30].tolist() == [1] * 50 + [2] * 50
    assert maps.semantic[30].tolist() == [1] * 50 + [2] * 50
    assert maps.confidence[30, [0, 39, 60, 99]].tolist() == [1, 1, 1, 1]
    assert 0.5 <= maps.confidence[30, 49] < 0.6


def test_a_tile_covers_a_small_image_and_wrong_overlaps_are_refused():
    tiles = Tiles(128, 64)
    assert tiles.hold(128, 100)
    assert not tiles.hold(129, 100)
    places = tiles.places(300, 100)
    assert {(p[0].stop - p[0].start, p[1].stop) for p in places} == {(128, 100)}
    assert places[-1][0].stop == 300
    for overlap in (-1, 65):
        with pytest.raises(ConfigError, match="it must be 0 to 64"):
            Tiles(128, overlap)


def test_segments_are_described_in_blocks_as_a_whole(monkeypatch):
    from dearli_d2 import prediction_files

    maps = predict_tiles(perfect, scene(), Tiles(128, 16), TAXONOMY)
    whole = segments_info(maps, TAXONOMY)
    monkeypatch.setattr(prediction_files, "_PIXELS", 1000)
    assert segments_info(maps, TAXONOMY) == whole
    for info in whole:
        rows, columns = np.nonzero(maps.panoptic == info["id"])
        assert info["area"] == len(rows)
        assert info["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
