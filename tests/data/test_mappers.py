"""Samples tell their own story: image and targets stay aligned through every transform."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dearli_d2.data.compact import unpacked
from dearli_d2.data.mappers import PanopticTrainMapper, TestMapper, panoptic_targets, read_image, semantic_targets
from dearli_d2.data.panoptic_png import segment_ids
from dearli_d2.data.photometry import ColorAugmentation
from dearli_d2.data.sizes import READ_OUT_PIXELS, read_out_size, resize_labels
from dearli_d2.data.streams import build_stream, seeded
from dearli_d2.data.views import WeakGeometry, scale_steps
from dearli_d2.errors import DatasetError, UnreadableImageError


@pytest.fixture
def coordinate_sample(tmp_path):
    """An image whose red and green are its column and row, and segments that are blocks of 16 columns."""
    height, width = 96, 128
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns * 2, rows * 2, np.zeros_like(rows)], -1).astype(np.uint8)
    ids = columns // 16 + 1
    Image.fromarray(image).save(tmp_path / "i.png")
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8)).save(tmp_path / "p.png")
    segments = [{"id": i, "category_id": i - 1, "iscrowd": 0} for i in range(1, 9)]
    return {
        "file_name": str(tmp_path / "i.png"),
        "pan_seg_file_name": str(tmp_path / "p.png"),
        "segments_info": segments,
        "image_id": 1,
    }


@pytest.mark.parametrize("seed", range(8))
def test_masks_lie_on_their_pixels_after_scale_crop_and_flip(coordinate_sample, seed):
    mapper = PanopticTrainMapper(WeakGeometry(64, scale_steps(0.5, 2.0), 400), None, 64)
    with seeded(seed):
        sample = unpacked(mapper(coordinate_sample))
    column = sample["image"][0].float() / 2
    for label, mask in zip(sample["targets"].labels.tolist(), sample["targets"].masks, strict=True):
        inside = column[mask]
        assert mask.any()
        assert (inside >= 16 * label - 1.5).all()
        assert (inside <= 16 * label + 16.5).all()


def test_padding_is_grey_and_not_valid(coordinate_sample):
    mapper = PanopticTrainMapper(WeakGeometry(96, [0.5], 400), None, 96, pad_value=128)
    sample = unpacked(mapper(coordinate_sample))
    valid = sample["targets"].valid
    assert valid[:48, :64].all()
    assert valid.sum() == 48 * 64
    assert (sample["image"][:, ~valid] == 128).all()
    assert not sample["targets"].masks[:, ~valid].any()


def test_crowds_and_vanished_segments_are_no_targets():
    ids = np.array([[1, 1], [2, 3]])
    segments = [{"id": i, "category_id": i, "iscrowd": int(i == 2)} for i in (1, 2, 3, 9)]
    targets = panoptic_targets(ids, segments).unpacked("cpu")
    assert targets.labels.tolist() == [1, 3]
    assert targets.masks.sum((1, 2)).tolist() == [2, 1]


def test_segment_ids_use_all_three_bytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # a machine that only predicts may have none
    assert segment_ids(np.array([[[1, 2, 3]]], np.uint8)).item() == 1 + 2 * 256 + 3 * 65536


def test_colour_augmentation_leaves_geometry_alone(coordinate_sample):
    plain = PanopticTrainMapper(WeakGeometry(64, [1.0], 400), None, 64)
    coloured = PanopticTrainMapper(WeakGeometry(64, [1.0], 400), ColorAugmentation(), 64)
    with seeded(5):
        a = unpacked(plain(coordinate_sample))
    with seeded(5):
        b = unpacked(coloured(coordinate_sample))
    assert torch.equal(a["targets"].masks, b["targets"].masks)
    assert not torch.equal(a["image"], b["image"])


def test_label_of_another_size_is_an_error(coordinate_sample, tmp_path):
    Image.new("RGB", (10, 10)).save(tmp_path / "p.png")
    with pytest.raises(DatasetError, match="is 128 x 96 but its label .* is 10 x 10 pixels"):
        PanopticTrainMapper(WeakGeometry(64, [1.0], 400), None, 64)(coordinate_sample)


def test_test_mapper_reports_the_files_size(coordinate_sample):
    sample = TestMapper(48, 1000)(coordinate_sample)
    assert sample["image"].shape == (3, 48, 64)
    assert (sample["height"], sample["width"]) == (96, 128)


def test_large_images_are_read_out_at_fewer_pixels():
    for size in ((1024, 2048), (4096, 1024), (1, 1)):  # Cityscapes' size, exactly the limit, the smallest
        assert read_out_size(*size) == size
    for height, width in ((3000, 4000), (9000, 100), (20000, 3)):
        rows, columns = read_out_size(height, width)
        if min(height, width) > 100:
            assert rows * columns == pytest.approx(READ_OUT_PIXELS, rel=1e-3)
            assert rows / columns == pytest.approx(height / width, rel=1e-3)
        assert 1 <= rows <= height
        assert 1 <= columns <= width
    sample = TestMapper(48, 100).prepare(np.zeros((3000, 4000, 3), np.uint8))
    assert sample["image"].shape == (3, 48, 64)
    assert (sample["height"], sample["width"]) == read_out_size(3000, 4000)


def test_labels_are_enlarged_to_the_nearest_pixel():
    labels = np.arange(6).reshape(2, 3)
    assert np.array_equal(resize_labels(labels, (4, 9)), labels.repeat(2, 0).repeat(3, 1))
    assert resize_labels(labels, (2, 3)) is labels


def test_grey_and_alpha_and_rotated_images_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (6, 4)).save(tmp_path / f"{mode}.png")
        assert read_image(str(tmp_path / f"{mode}.png")).shape == (4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(str(tmp_path / "turned.jpg")).shape == (6, 4, 3)


DICTS = [{"n": i} for i in range(7)]


def take(count, **options):
    stream = build_stream(DICTS, lambda d: {**d, "r": np.random.rand()}, 3, **{"seed": 5, **options})
    return [next(stream) for _ in range(count)]


def test_stream_resumes_at_the_same_sample_with_the_same_augmentation():
    assert take(6)[4:] == take(2, start_iteration=4)
    assert take(3) != take(3, seed=6)


def test_augmentation_differs_from_sample_to_sample():
    drawn = [x["r"] for batch in take(6) for x in batch]
    assert len(set(drawn)) == len(drawn)


def test_every_pass_shows_every_image_once():
    shown = [x["n"] for batch in take(7) for x in batch]
    for start in (0, 7, 14):
        assert sorted(shown[start : start + 7]) == list(range(7))


def test_ranks_share_the_batch_of_one_process():
    whole = build_stream(DICTS, dict, 4, seed=1)
    parts = [build_stream(DICTS, dict, 2, seed=1, rank=r, world_size=2) for r in range(2)]
    for _ in range(5):
        assert next(whole) == [x for part in parts for x in next(part)]


def test_a_damaged_image_is_replaced_by_another_and_named_once(caplog):
    def mapper(d):
        if d["n"] in (3, 4):
            raise UnreadableImageError(f"{d['file_name']} is damaged")
        return {**d, "r": np.random.rand()}

    def stream(mapper=mapper, **options):
        return build_stream(dicts, mapper, 7, seed=5, **{"replace_damaged": True, **options})

    dicts = [{"n": i, "file_name": f"{i}.jpg"} for i in range(7)]
    whole, holed, shown = stream(dict), stream(), set()
    for _ in range(5):
        for expected, sample in zip(next(whole), next(holed), strict=True):
            if expected["n"] not in (3, 4):
                assert sample["n"] == expected["n"]
            else:
                shown.add(sample["n"])
    assert len(shown) > 2  # not always the same one
    assert not shown & {3, 4}
    assert sorted(r.getMessage() for r in caplog.records) == [
        f"left out, another image takes its place: {n}.jpg is damaged" for n in (3, 4)
    ]
    # what is drawn still follows from the position alone, and the labelled stream says no
    drawn = stream()
    next(drawn)
    assert next(drawn) == next(stream(start_iteration=1))
    with pytest.raises(UnreadableImageError, match=r"^[34].jpg is damaged"):
        next(stream(replace_damaged=False))


def test_other_errors_than_a_damaged_image_end_the_stream():
    def mapper(d):
        raise DatasetError("its masks have another size")

    with pytest.raises(DatasetError, match="^its masks have another size"):
        next(build_stream([{"file_name": "0.jpg"}], mapper, 1, seed=5, replace_damaged=True))


def test_a_folder_that_went_away_ends_the_stream():
    def mapper(d):
        raise UnreadableImageError("gone")

    dicts = [{"file_name": f"{i}.jpg"} for i in range(7)]
    with pytest.raises(DatasetError, match="10 images in a row cannot be read, the last: gone"):
        next(build_stream(dicts, mapper, 1, seed=5, replace_damaged=True))


def test_workers_change_nothing():
    assert take(4) == take(4, num_workers=2)


def test_seeding_a_sample_leaves_the_global_generators_alone():
    np.random.seed(0)
    expected = np.random.rand(2)
    np.random.seed(0)
    first = np.random.rand()
    with seeded(1, 2):
        np.random.rand(10)
    assert [first, np.random.rand()] == expected.tolist()


def test_semantic_targets_join_segments_of_a_class_and_ignore_the_rest():
    ids = np.array([[0, 5, 5, 70000], [9, 9, 3, 3]])
    infos = [
        {"id": i, "category_id": c, "iscrowd": crowd}
        for i, c, crowd in ((5, 2, 0), (70000, 2, 0), (9, 0, 0), (3, 1, 1))
    ]
    targets = semantic_targets(ids, infos).unpacked("cpu")
    assert targets.labels.tolist() == [0, 2]
    assert targets.masks[0].int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]
    assert targets.masks[1].int().tolist() == [[0, 1, 1, 1], [0, 0, 0, 0]]
    assert targets.valid.int().tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    empty = semantic_targets(np.zeros((2, 3), int), []).unpacked("cpu")
    assert len(empty) == 0
    assert not empty.valid.any()
