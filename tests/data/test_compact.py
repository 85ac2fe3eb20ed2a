"""Windows, segment maps and mask bits equal the parts of whole images and masks that are resized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image
from pycocotools import mask as rle
from skimage import data

from dearli_d2.data.batches import PackedBatch
from dearli_d2.data.compact import Inside, MaskBits, SegmentMap, unpacked
from dearli_d2.data.mappers import panoptic_targets, semantic_targets
from dearli_d2.data.streams import build_stream
from dearli_d2.data.views import ResizeShortSide, WeakGeometry, scale_steps
from dearli_d2.masks.bits import mask_bits, run_lengths
from dearli_d2.masks.storage import encode, size_problem
from dearli_d2.structures import Targets
from tests.pretend_cuda import CUDA, PretendCuda

SIZES = [(256, 341), (214, 320), (333, 251), (600, 97), (5, 900), (400, 400), (1, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_a_window_is_that_of_the_whole_resized_image(size):
    """Of detectron2's resize, crop and flip, with the same draws, to the last bit."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    photograph = np.asarray(Image.fromarray(data.coffee()).resize(size[::-1]))
    geometry = WeakGeometry(320, scale_steps(0.5, 2.0), 1280)
    theirs = [
        ResizeShortSide(geometry.short_sides, 1280, sample_style="choice"), T.RandomCrop("absolute", (320, 320)),
        T.RandomFlip(),
    ]  # fmt: skip
    flips = set()
    for seed in range(10):
        for image in (noise, photograph):
            np.random.seed(seed)
            view, state = geometry(image), np.random.get_state()[2]
            np.random.seed(seed)
            expected = T.AugInput(image)
            transform = T.AugmentationList(theirs)(expected)
            assert np.random.get_state()[2] == state
            assert np.array_equal(view.transform.apply_segmentation(noise), transform.apply_segmentation(noise))
            assert np.array_equal(view.image, expected.image)
        flips.add(view.transform.mirrored)
    assert flips == {True, False}


def plain_panoptic(ids, segments):
    chosen = [s for s in segments if not s["iscrowd"] and (ids == s["id"]).any()]
    masks = np.array([ids == s["id"] for s in chosen], bool).reshape(-1, *ids.shape)
    return Targets(torch.tensor([s["category_id"] for s in chosen], dtype=torch.int64), torch.from_numpy(masks))


def plain_semantic(ids, segments):
    classes = np.full(ids.shape, -1)
    for s in segments:
        if not s["iscrowd"]:
            classes[ids == s["id"]] = s["category_id"]
    labels = np.unique(classes[classes >= 0])
    masks = torch.from_numpy(classes == labels[:, None, None])
    return Targets(torch.from_numpy(labels), masks, torch.from_numpy(classes >= 0))


def equal(one: Targets, other: Targets) -> bool:
    same = torch.equal(one.labels, other.labels) and torch.equal(one.masks, other.masks)
    if one.valid is None or other.valid is None:
        return same and one.valid is other.valid
    return same and torch.equal(one.valid, other.valid)


@pytest.mark.parametrize("count", [0, 1, 7, 255, 256, 700])
@pytest.mark.parametrize(("own", "plain"), [(panoptic_targets, plain_panoptic), (semantic_targets, plain_semantic)])
def test_a_segment_map_holds_the_same_targets(count, own, plain):
    rng = np.random.default_rng(count)
    values = rng.permutation(np.unique(rng.integers(1, 2**24 - 1, 2 * count)))[:count]
    seen = np.concatenate([values[: max(count - 3, 0)], [0, 2**24 - 1]])  # some are hidden, some pixels are of none
    ids = rng.choice(seen, (40, 60))
    ids.flat[: len(seen)] = seen
    segments = [
        {"id": int(v), "category_id": int(rng.integers(9)), "iscrowd": int(n % 5 == 4)} for n, v in enumerate(values)
    ]
    found, expected = own(ids, segments), plain(ids, segments)
    assert equal(found.unpacked("cpu"), expected)
    padded = SegmentMap(found.labels, found.numbers, found.ignores, 64)
    assert equal(padded.unpacked("cpu"), expected.padded(64, 64))
    assert padded.unpacked("cpu").valid.sum() <= 2400


@pytest.mark.parametrize("count", [0, 1, 8, 31, 33, 100])
def test_mask_bits_hold_the_same_masks(count):
    """Blobs that overlap, noise, empty and full ones; those outside of the window, or between its pixels, are left out."""
    rng = np.random.default_rng(count)
    height, width = 50, 37
    y, x = np.mgrid[:height, :width]
    kinds = [
        lambda: ((y - rng.integers(height)) ** 2 + (x - rng.integers(width)) ** 2) < rng.integers(2, 400),
        lambda: rng.random((height, width)) > 0.5,
        lambda: (y == rng.integers(height)) & (x == rng.integers(width)),
        lambda: np.full((height, width), rng.random() > 0.5),
    ]
    masks = np.array([kinds[n % 4]() for n in range(count)], bool).reshape(-1, height, width)
    for rows, columns in (
        (np.arange(height), np.arange(width)),
        (np.arange(10, 42, 3), np.arange(30, 5, -2)),
        (np.arange(160) // 8 + 5, np.arange(80) // 8),
    ):
        expected = torch.from_numpy(masks[:, rows][:, :, columns])
        expected = expected[expected.flatten(1).any(1)]
        found = MaskBits(
            *(lambda bits, n: (torch.from_numpy(bits), n))(*mask_bits(list(map(encode, masks)), rows, columns))
        )
        targets = Targets(torch.zeros(len(expected), dtype=torch.int64), expected)
        assert equal(found.unpacked("cpu"), targets)
        assert equal(MaskBits(found.bits, found.count, 200).unpacked("cpu"), targets.padded(200, 200))


def test_run_lengths_are_those_of_pycocotools_and_damaged_ones_are_known():
    rng = np.random.default_rng(0)
    masks = [rng.random((h, 9)) > p for h, p in ((7, 0.5), (7, -1), (7, 2), (700, 0.001), (70, 0.9))]
    codes = [rle.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]
    texts = [c["counts"] for c in codes]
    texts[2:2] = [b"", b"0\x90", b"`", b"o" * 9 + b"0", "O", b"00\x7f"]
    lengths, begin = run_lengths(texts)
    parts = np.split(lengths, begin[1:])
    assert [p.tolist() for p in parts[2:8]] == [[-1]] * 6
    for mask, part in zip(masks, parts[:2] + parts[8:], strict=True):
        decoded = np.repeat(np.arange(len(part)) % 2 == 1, part).reshape(mask.shape[::-1]).T
        assert np.array_equal(decoded, mask)
    good = [encode(masks[0]) for _ in range(3)]
    assert not size_problem((7, 9), (7, 9), good)
    good[1] = {**good[1], "counts": "O"}
    assert size_problem((7, 9), (7, 9), good) == "the run lengths of mask 1 do not add up to 7 x 9 pixels"


def test_where_a_sample_is_no_padding():
    inside = Inside(3, 5, 8).unpacked("cpu")
    assert inside.sum() == 15
    assert inside[:3, :5].all()
    assert Inside(8, 8, 8).unpacked("cpu").all()


def make_sample(d):
    ids = np.arange(20).reshape(4, 5) // 6 + d["n"]
    targets = panoptic_targets(ids, [{"id": i, "category_id": 2 * i, "iscrowd": 0} for i in range(9)])
    return {
        "image": torch.full((3, 4, 5), d["n"], dtype=torch.uint8).transpose(1, 2), "targets": targets, "name": str(d["n"]),
        "inside": Inside(4, 5, 8), "nested": [torch.arange(d["n"]), {"x": torch.tensor(1.5)}],
    }  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_travels_in_one_buffer_and_arrives_unpacked(workers):
    dicts = [{"n": n} for n in range(6)]
    for sample in next(build_stream(dicts, make_sample, 6, seed=0, num_workers=workers)):
        expected = unpacked(make_sample({"n": int(sample["name"])}))
        assert torch.equal(sample["image"], expected["image"])
        assert equal(sample["targets"], expected["targets"])
        assert torch.equal(sample["inside"], expected["inside"])
        assert torch.equal(sample["nested"][0], expected["nested"][0])
        assert sample["nested"][1]["x"] == 1.5


def test_a_batch_is_one_copy_to_the_device_which_nothing_waits_for(monkeypatch):
    rng = np.random.default_rng(0)
    codes = [encode(rng.random((4, 5)) > 0.5) for _ in range(11)]
    bits, count = mask_bits(codes, np.arange(4), np.arange(5))
    samples = [make_sample({"n": 3}), {"targets": MaskBits(torch.from_numpy(bits), count, 8)}, {"image": torch.ones(2)}]
    batch, copies = PackedBatch(samples), []
    plain = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *to, **how: copies.append(x.device.type) or plain(x, *to, **how))
    with PretendCuda() as device:
        there = batch.samples(CUDA)
        assert copies.count("cpu") == 1
        assert not device.waits
        for made, sample in zip(there, samples, strict=True):
            expected = unpacked(sample)
            for key, value in made.items():
                if isinstance(value, Targets):
                    on_host = None if value.valid is None else value.valid.cpu()
                    assert equal(Targets(value.labels.cpu(), value.masks.cpu(), on_host), expected[key])
                elif isinstance(value, torch.Tensor):
                    assert value.device.type == "cuda"
                    assert torch.equal(value.cpu(), expected[key])
