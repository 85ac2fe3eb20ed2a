"""CutMix of images and targets against a loop over pixels written from the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dearli_d2.engine.classmix import ClassMix
from dearli_d2.engine.cutmix import CutMix, CutMixPlan, mix_images, mix_targets
from dearli_d2.structures import Targets

THINGS = {0, 1}
SIZE = 24


def panoptic_targets(seed: int, padded: bool = False) -> Targets:
    """Disjoint random rectangles: things 0 and 1, at most one segment each of stuff 2 and 3."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((SIZE, SIZE), int)
    labels = [2, 3, *rng.integers(0, 2, rng.integers(1, 5))]
    for number in range(1, len(labels) + 1):
        x, y = rng.integers(0, SIZE - 6, 2)
        ids[y : y + rng.integers(3, 14), x : x + rng.integers(3, 14)] = number
    present = [n for n in range(1, len(labels) + 1) if (ids == n).any()]
    masks = torch.from_numpy(np.stack([ids == n for n in present]))
    valid = None
    if padded:
        valid = torch.ones(SIZE, SIZE, dtype=torch.bool)
        valid[:, SIZE - 5 :] = False
    return Targets(torch.tensor([labels[n - 1] for n in present]), masks, valid)


def owner(target: Targets, y: int, x: int):
    """(label, number) of the segment at a pixel, or None."""
    found = target.masks[:, y, x].nonzero()
    return None if not len(found) else (int(target.labels[found[0, 0]]), int(found[0, 0]))


def expected_segments(targets, plan, index) -> set:
    """{(label, frozenset of pixels)} of the mixed image, from the definition."""
    x0, y0, x1, y1 = plan.boxes[index]
    segments: dict = {}
    for y in range(SIZE):
        for x in range(SIZE):
            source = plan.partner[index] if (x0 <= x < x1 and y0 <= y < y1) else index
            here = owner(targets[source], y, x)
            if here is None:
                continue
            label, number = here
            key = (label,) if label not in THINGS else (label, source if source != index else -1, number)
            segments.setdefault(key, set()).add((y, x))
    return {(key[0], frozenset(pixels)) for key, pixels in segments.items()}


def as_set(target: Targets) -> set:
    return {
        (int(label), frozenset(map(tuple, mask.nonzero().tolist())))
        for label, mask in zip(target.labels, target.masks, strict=True)
    }


@pytest.mark.parametrize("seed", range(8))
def test_targets_equal_the_definition(seed):
    targets = [panoptic_targets(seed * 10 + i) for i in range(4)]
    plan = CutMix(probability=0.8).plan(4, SIZE, SIZE, np.random.default_rng(seed))
    for index, mixed in enumerate(mix_targets(targets, plan, THINGS)):
        assert as_set(mixed) == expected_segments(targets, plan, index)
        assert len(as_set(mixed)) == len(mixed)
        assert mixed.masks.sum(0).max() <= 1  # still disjoint


def test_identity_permutation_or_empty_box_is_the_identity():
    targets = [panoptic_targets(i) for i in range(3)]
    images = torch.rand(3, 3, SIZE, SIZE)
    full, empty = (2, 3, 20, 21), (5, 5, 5, 5)
    for plan in (CutMixPlan((0, 1, 2), (full,) * 3), CutMixPlan((1, 2, 0), (empty,) * 3)):
        assert torch.equal(mix_images(images, plan), images)
        assert all(a is b for a, b in zip(mix_targets(targets, plan, THINGS), targets, strict=True))


def test_pasted_pixels_come_from_the_partner_and_the_input_stays():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, SIZE, SIZE).contiguous()
    before = images.clone()
    mixed = mix_images(images, CutMixPlan((2, 0, 1), ((1, 2, 7, 9),) * 3))
    assert torch.equal(images, before)
    for index, partner in enumerate((2, 0, 1)):
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        inside[2:9, 1:7] = True
        assert (mixed[index, :, inside] == partner).all()
        assert (mixed[index, :, ~inside] == index).all()


def test_validity_follows_the_pixels():
    targets = [panoptic_targets(0, padded=True), panoptic_targets(1)]
    plan = CutMixPlan((1, 0), ((15, 0, 24, 10),) * 2)
    mixed = mix_targets(targets, plan, THINGS)
    assert mixed[0].valid[:10].all()  # the padding there is covered by the partner's pixels
    assert not mixed[0].valid[10:, SIZE - 5 :].any()
    assert not mixed[1].valid[:10, SIZE - 5 :].any()
    assert mixed[1].valid[10:].all()


def test_images_without_segments():
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, SIZE, SIZE, dtype=torch.bool))
    plan = CutMixPlan((1, 0), ((0, 0, 12, 24),) * 2)
    full = panoptic_targets(3)
    mixed = mix_targets([nothing, full], plan, THINGS)
    assert as_set(mixed[0]) == expected_segments([nothing, full], plan, 0)
    assert as_set(mixed[1]) == expected_segments([nothing, full], plan, 1)
    assert [len(t) for t in mix_targets([nothing, nothing], plan, THINGS)] == [0, 0]


@pytest.mark.parametrize("count", [8, 4, 2])
def test_as_many_images_are_mixed_as_the_probability_says(count):
    """Whatever the number of images a process: a partner is never the image itself."""
    rng, changed, partners = np.random.default_rng(0), [], []
    for _ in range(4000 // count):
        plan = CutMix(0.5).plan(count, 64, 64, rng)
        assert sorted(plan.partner) == list(range(count))
        changed += [plan.changes(i) for i in range(count)]
        partners.append(plan.partner[0])
    assert np.mean(changed) == pytest.approx(0.5, abs=0.03)
    shares = np.bincount(partners, minlength=count) / len(partners)
    assert shares[0] == 0
    assert shares[1:] == pytest.approx(1 / (count - 1), abs=0.05)  # every other image alike


def test_an_image_alone_is_not_mixed_in_silence():
    for mix in (CutMix(), ClassMix()):
        with pytest.raises(ValueError, match="alone has no partner"):
            mix.plan_for([panoptic_targets(0)], np.random.default_rng(0))


def test_boxes_have_the_area_and_aspect_of_the_published_code():
    rng = np.random.default_rng(0)
    boxes = [b for _ in range(1500) for b in CutMix(1.0).plan(4, 400, 400, rng).boxes]
    drawn = np.array(boxes)
    width, height = drawn[:, 2] - drawn[:, 0], drawn[:, 3] - drawn[:, 1]
    assert drawn.min() >= 0
    assert drawn.max() <= 400
    # of 4000 boxes of UniMatch's and DEARLi's function at 200 x 200
    quantiles = np.quantile(height / width, (0.1, 0.25, 0.5, 0.75, 0.9))
    assert quantiles == pytest.approx((0.62, 0.97, 1.53, 2.21, 2.80), abs=0.08)
    area = width * height / 400**2
    assert np.quantile(area, (0.1, 0.5, 0.9)) == pytest.approx((0.055, 0.208, 0.361), abs=0.012)
    assert area.min() > 0.018
    assert area.max() <= 0.4
