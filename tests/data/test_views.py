"""Weak and strong views of unlabelled images, and their streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dearli_d2.data.build import build_labeled_mapper, build_streams, build_unlabeled_mapper
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.compact import unpacked
from dearli_d2.data.mappers import TestMapper
from dearli_d2.data.photometry import StrongPhotometry
from dearli_d2.data.streams import RareClassOrder, seeded
from dearli_d2.data.views import WeakGeometry
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, DatasetError


def test_weak_and_strong_view_are_aligned_pixel_by_pixel(ssl_config, tmp_path, monkeypatch):
    # every pixel of the image tells where it was; the strong part may change colours but must not move them
    ramp = np.stack([*np.meshgrid(np.arange(100), np.arange(90)), np.full((90, 100), 7)], -1).astype(np.uint8)
    mapper = build_unlabeled_mapper(ssl_config("INPUT.SCALE_RANGE", "(0.7, 1.8)", "INPUT.CROP_SIZE", "64"))
    monkeypatch.setattr("dearli_d2.data.mappers.read_image", lambda _: ramp)
    monkeypatch.setattr(mapper, "strong", lambda image: 255 - image)
    sizes = set()
    for seed in range(12):
        with seeded(seed):
            sample = unpacked(mapper({"file_name": "x", "image_id": 1}))
        valid = sample["inside"]
        assert torch.equal(sample["strong"][0][:, valid], 255 - sample["image"][:, valid])
        assert (sample["image"][:, ~valid] == 128).all()
        assert (sample["strong"][0][:, ~valid] == 128).all()
        sizes.add(int(valid.sum()))
    assert len(sizes) > 1  # some views are smaller than the crop


def test_strong_photometry_moves_nothing_and_changes_much():
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:40, 24:50] = (200, 90, 30)
    inside = np.zeros((64, 64), bool)
    inside[22:38, 26:48] = True  # away from the border, which blur softens
    outside = ~inside
    outside[15:45, 19:55] = False
    results = []
    for seed in range(20):
        with seeded(seed):
            strong = StrongPhotometry(blur_sigma=(0.1, 0.5))(image)
        assert strong.shape == image.shape
        assert strong.dtype == np.uint8
        assert np.ptp(strong[inside].astype(int), axis=0).max() <= 2  # one colour where there was one
        assert np.ptp(strong[outside].astype(int), axis=0).max() <= 2
        results.append(strong)
    grey = [(np.ptp(r.astype(int), axis=-1) == 0).all() for r in results]
    assert 0 < sum(grey) < 12
    assert len({r.tobytes() for r in results}) == 20


@pytest.mark.parametrize("size", [(5000, 2), (1, 20000)])
def test_strips_keep_a_pixel(size):
    image = np.zeros((*size, 3), np.uint8)
    view = WeakGeometry(64, [1.0], 1000)(image)
    assert view.transform.apply_segmentation(image[..., 0]).shape == view.image.shape[:2]
    assert (max(view.image.shape[:2]), min(view.image.shape[:2])) == (64, 1)
    pixels = TestMapper(64, 1000).prepare(image)["image"]
    assert sorted(pixels.shape) == [1, 3, 1000]


@pytest.mark.parametrize("size", [(128, 4), (1, 1), (6, 7), (7, 200)])
def test_strips_narrower_than_the_blur_reaches_are_blurred_too(size):
    strong = StrongPhotometry((0, 0, 0, 0), 0.0, 1.0)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    blurred = strong(image)
    assert blurred.shape == image.shape
    assert blurred.dtype == np.uint8
    assert size == (1, 1) or not np.array_equal(blurred, image)
    plain = np.full_like(image, 77)
    assert np.array_equal(strong(plain), plain)


def test_photometry_repeats_with_its_seed_and_leaves_the_generators():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        with seeded(3, 4):
            results.append(StrongPhotometry()(image))
    assert np.array_equal(*results)
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_resume_at_the_same_samples_and_differ_from_each_other(ssl_config):
    cfg = ssl_config("DATASETS.UNLABELED", "('miniworld_train@0.05',)")  # the same images in both streams
    stream = build_streams(cfg)
    batches = [next(stream) for _ in range(4)]
    again = next(build_streams(cfg, start_iteration=3))
    for name in ("labeled", "unlabeled"):
        assert [x["file_name"] for x in again[name]] == [x["file_name"] for x in batches[3][name]]
        assert torch.equal(again[name][0]["image"], batches[3][name][0]["image"])
    assert torch.equal(again["unlabeled"][0]["strong"], batches[3]["unlabeled"][0]["strong"])
    order = {name: [x["file_name"] for b in batches for x in b[name]] for name in batches[0]}
    assert order["labeled"] != order["unlabeled"]


def test_a_source_stream_has_losses_of_its_own(ssl_config):
    cfg = ssl_config(
        "DATASETS.SOURCE", "('miniworld_night_train',)", "SSL.SOURCE_IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1"
    )
    trainer = DualStreamTrainer(cfg)
    trainer.train()
    assert set(trainer.batch) == {"labeled", "source", "unlabeled"}
    assert all("night" in x["file_name"] and "targets" in x for x in trainer.batch["source"])
    losses = trainer.student(trainer.batch)
    assert {"loss_ce", "source_loss_ce", "unlabeled_loss_ce"} <= set(losses)


def test_unlabelled_samples_carry_no_annotation(ssl_config):
    batch = next(build_streams(ssl_config("DATASETS.UNLABELED", "('miniworld_train',)")))
    assert set(batch["unlabeled"][0]) == {"image", "strong", "inside", "file_name", "image_id"}


def rare_order(temperature=10.0, area=0.005, first_area=900):
    """One image in a hundred has class 1, one pixel of class 2 is in every image."""
    dicts = [
        {
            "pan_seg_file_name": f"{i}.png", "height": 10, "width": 100,
            "segments_info": [
                {"id": 1, "category_id": 0, "area": 900, "iscrowd": 0},
                {"id": 2, "category_id": 2, "area": 1, "iscrowd": 0},
                *([{"id": 3, "category_id": 1, "area": 99, "iscrowd": 0}] if i == 42 else []),
            ],
        }
        for i in range(100)
    ]  # fmt: skip
    dicts[0]["segments_info"][0]["area"] = first_area
    return RareClassOrder(dicts, 4, temperature, area, seed=0)


def test_rare_classes_are_drawn_as_published():
    """DAFormer, eq. 6 and 7: softmax((1 - f) / T), f = share of all annotated pixels."""
    areas = np.array([900 * 100, 99, 100])  # of classes 0, 1 and 2
    frequency = areas / areas.sum()
    for temperature in (0.01, 0.1, 1.0):
        expected = np.exp((1 - frequency) / temperature)
        assert np.allclose(rare_order(temperature, area=0.0).probability, expected / expected.sum())
    assert np.isfinite(rare_order(1e-4).probability).all()
    assert np.mean([rare_order(0.01)(p) == 42 for p in range(100)]) == 1  # 99 % against 0.1 %


def test_rare_classes_are_drawn_as_often_as_frequent_ones_at_a_high_temperature():
    order = rare_order()
    drawn = np.array([order(p) for p in range(400)])
    assert 0.4 < (drawn == 42).mean() < 0.6  # classes 0 and 1; class 2 is too small everywhere, class 3 is nowhere
    assert len(set(drawn.tolist())) > 80
    assert [order(p) for p in (7, 3)] == [drawn[7], drawn[3]]
    assert (np.array([rare_order(area=0.0)(p) for p in range(400)]) == 42).mean() < 0.45  # now three classes


def test_rare_class_sampling_needs_areas_and_images():
    with pytest.raises(DatasetError, match="no 'area'"):
        rare_order(first_area=None)
    with pytest.raises(DatasetError, match="no class covers as much"):
        rare_order(area=0.95)


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.5, 30, 70), (1.0, 100, 100)])
def test_colours_are_jittered_with_their_probability(probability, low, high):
    image = np.random.default_rng(0).integers(1, 255, (8, 8, 3), dtype=np.uint8)
    strong = StrongPhotometry(grey_probability=0, blur_probability=0, jitter_probability=probability)
    changed = 0
    for seed in range(100):
        with seeded(seed):
            changed += not np.array_equal(strong(image), image)
    assert low <= changed <= high


def test_labelled_images_are_jittered_by_key_and_their_labels_are_not(mini_config):
    plain = "INPUT.COLOR_AUG_SSD", "False", "INPUT.SCALE_RANGE", "(1.0, 1.0)"
    samples = []
    for jitter in ("()", "(0.9, 0.0, 0.0, 0.0)"):
        with seeded(3):
            mapper = build_labeled_mapper(mini_config(*plain, "INPUT.JITTER", jitter))
            samples.append(unpacked(mapper(dataset_dicts("miniworld_val")[0])))
    one, two = samples
    assert torch.equal(one["targets"].masks, two["targets"].masks)
    assert not torch.equal(one["image"], two["image"])
    usable = (one["image"] > 20).all(0) & (one["image"] < 130).all(0) & (two["image"] < 250).all(0) & one["inside"]
    assert (two["image"].float() / one["image"].float())[:, usable].std() < 0.05  # one factor of brightness
    with pytest.raises(ConfigError, match="use one of them"):
        mini_config("INPUT.JITTER", "(0.5, 0.5, 0.5, 0.0)", "INPUT.COLOR_AUG_SSD", "True")
    with pytest.raises(ConfigError, match=r"INPUT\.JITTER is \(0\.5, 0\.5\); it must be a list of 0 or 4"):
        mini_config("INPUT.JITTER", "(0.5, 0.5)", "INPUT.COLOR_AUG_SSD", "False")


def test_several_strong_views_differ_and_share_the_geometry(ssl_config):
    cfg = ssl_config(
        "SSL.STRONG_VIEWS", "2", "SSL.BLUR", "0.0", "SSL.GREYSCALE", "0.0", "SSL.JITTER", "(0.4, 0.0, 0.0, 0.0)"
    )
    with seeded(1):
        sample = unpacked(build_unlabeled_mapper(cfg)(dataset_dicts("miniworld_val")[0]))
    first, second = sample["strong"].float()
    assert not torch.equal(first, second)
    bright = (sample["image"] > 20).all(0) & (sample["image"] < 150).all(0)  # a factor of brightness, pixel by pixel
    ratio = (first / second)[:, bright & sample["inside"]]
    assert ratio.std() < 0.05
