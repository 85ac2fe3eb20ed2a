"""ClassMix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dearli_d2.engine.classmix import ClassMix
from dearli_d2.engine.cutmix import mix_images, mix_targets
from dearli_d2.structures import Targets


def labels(classes=(1, 5, 12), size=64, valid=True):
    """One horizontal stripe a class."""
    masks = torch.zeros(len(classes), size, size, dtype=torch.bool)
    for i, rows in enumerate(torch.arange(size).chunk(len(classes))):
        masks[i, rows] = True
    return Targets(torch.tensor(classes), masks, torch.full((size, size), valid))


def test_classmix_pastes_whole_classes_of_the_partner_into_image_and_target():
    targets = [labels((1, 5, 12), 12), labels((2, 7), 12), labels((3,), 12)]
    images = torch.rand(3, 3, 12, 12)
    pasted = 0
    for seed in range(20):
        plan = ClassMix(0.7).plan_for(targets, np.random.default_rng(seed))
        mixed = mix_images(images, plan)
        for i, target in enumerate(mix_targets(targets, plan, ())):
            partner, region = plan.partner[i], plan.regions[i]
            if not plan.changes(i):
                assert torch.equal(mixed[i], images[i])
                continue
            pasted += 1
            taken = {
                int(c) for c, m in zip(targets[partner].labels, targets[partner].masks, strict=True) if region[m].any()
            }
            assert len(taken) == (len(targets[partner]) + 1) // 2
            expected = torch.where(region, targets[partner].semantic(), targets[i].semantic())
            assert torch.equal(target.semantic(), expected)
            assert torch.equal(mixed[i], torch.where(region, images[partner], images[i]))
    assert pasted > 15


def test_classmix_of_empty_targets_changes_nothing():
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(8, 8).bool())
    plan = ClassMix(1.0).plan_for([empty, empty], np.random.default_rng(0))
    assert not any(plan.changes(i) for i in range(2))
    assert mix_targets([empty, empty], plan, ())[0] is empty


@pytest.mark.parametrize("count", [8, 4, 2])
def test_as_many_images_are_mixed_as_the_probability_says(count):
    rng, targets = np.random.default_rng(0), [labels(size=4)] * count
    plans = [ClassMix(0.5).plan_for(targets, rng) for _ in range(2000 // count)]
    assert np.mean([plan.changes(i) for plan in plans for i in range(count)]) == pytest.approx(0.5, abs=0.04)
