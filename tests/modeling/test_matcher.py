"""The matcher against brute force over all assignments."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from dearli_d2.modeling.mask2former import matcher as matcher_module
from dearli_d2.modeling.mask2former.losses import image_of_target
from dearli_d2.modeling.mask2former.matcher import HungarianMatcher, pairwise_mask_cost
from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput
from dearli_d2.structures import Targets


def predictions(batch=2, queries=5, classes=4, layers=3, size=16):
    class_logits = torch.randn(layers, batch, queries, classes + 1)
    output = DecoderOutput(class_logits, torch.randn(layers, batch, queries, 8), torch.randn(batch, 8, size, size))
    return class_logits, output


@pytest.mark.parametrize("counts", [(3, 2), (1, 4), (0, 3), (5, 5)])
def test_total_cost_is_the_minimum_over_all_assignments(counts, make_targets):
    class_logits, output = predictions()
    targets = [make_targets(n, classes=4, seed=i) for i, n in enumerate(counts)]
    matcher = HungarianMatcher(num_points=64)
    torch.manual_seed(1)
    costs = matcher.costs(class_logits, output, targets)
    torch.manual_seed(1)
    matches = matcher(class_logits, output, targets)
    for layer in range(3):
        start = 0
        for image, count in enumerate(counts):
            chosen = matches.query[layer, start : start + count, 0]
            assert len(set(chosen.tolist())) == count
            total = sum(float(costs[layer, image, q, t]) for t, q in enumerate(chosen.tolist()))
            best = min(
                sum(float(costs[layer, image, q, t]) for t, q in enumerate(order))
                for order in permutations(range(5), count)
            )
            assert total == pytest.approx(best, abs=1e-4)
            start += count


def test_pairwise_cost_equals_a_loop():
    logits, masks = 3 * torch.randn(2, 4, 50), (torch.rand(2, 3, 50) > 0.5).float()
    valid = (torch.rand(2, 50) > 0.3).float()
    for weight in (None, valid):
        ours = pairwise_mask_cost(logits.clone(), masks, weight, 2.0, 3.0)
        for b in range(2):
            keep = torch.ones(50, dtype=bool) if weight is None else weight[b].bool()
            for q in range(4):
                for n in range(3):
                    x, t = logits[b, q, keep].double(), masks[b, n, keep].double()
                    bce = F.binary_cross_entropy_with_logits(x, t)
                    dice = 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
                    assert float(ours[b, q, n]) == pytest.approx(float(2 * bce + 3 * dice), rel=1e-4)


def test_costs_do_not_depend_on_how_many_images_are_compared_at_a_time(make_targets, monkeypatch):
    class_logits, output = predictions(batch=3)
    counts = (2, 4, 1)
    inside = [torch.rand(64, 64) > 0.3 for _ in counts]
    targets = [
        Targets(t.labels, t.masks, valid=valid)
        for t, valid in zip((make_targets(n, classes=4, seed=n) for n in counts), inside, strict=True)
    ]
    matcher, costs = HungarianMatcher(num_points=64), []
    for images in (1, 2, 3):
        monkeypatch.setattr(matcher_module, "CHUNK_VALUES", {"cpu": images * 5 * 64})
        torch.manual_seed(1)
        costs.append(matcher.costs(class_logits, output, targets))
    assert costs[0].shape == (3, 3, 5, 4)
    torch.testing.assert_close(costs[0], costs[2])
    torch.testing.assert_close(costs[1], costs[2])


def test_cost_is_finite_for_extreme_and_broken_logits(make_targets):
    class_logits, output = predictions()
    output.mask_embeddings[0] *= 1e4
    output.mask_embeddings[1, 0, 0] = float("nan")
    costs = HungarianMatcher(num_points=64).costs(class_logits, output, [make_targets(2), make_targets(1)])
    assert torch.isfinite(costs).all()


def test_all_costs_are_on_their_way_before_the_host_waits_for_the_first(make_targets, monkeypatch):
    class_logits, output = predictions(layers=10, batch=3)
    events = []

    class Noted(matcher_module.OnHost):
        def __init__(self, values):
            super().__init__(values)
            events.append(tuple(values.shape[:2]))

        def numpy(self):
            events.append("wait")
            return super().numpy()

    monkeypatch.setattr(matcher_module, "OnHost", Noted)
    for name in ("item", "tolist", "cpu"):

        def refuse(self, *args, _name=name, _original=getattr(torch.Tensor, name), **kwargs):
            if self.dtype.is_floating_point and self.dim() and self.shape[0] == 10 and _name != "cpu":
                raise AssertionError(f"{_name} on a device tensor")
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, refuse)
    targets = [make_targets(n, seed=n) for n in (2, 3, 1)]
    torch.manual_seed(0)
    joint = HungarianMatcher(num_points=32)(class_logits, output, targets)
    monkeypatch.setattr(matcher_module, "CHUNK_VALUES", {"cpu": 10 * 5 * 32})
    torch.manual_seed(0)
    by_image = HungarianMatcher(num_points=32)(class_logits, output, targets)
    assert events == [(10, 3), "wait", *[(10, 1)] * 3, *["wait"] * 3]
    assert torch.equal(joint.query, by_image.query)


def test_more_segments_than_queries_leaves_the_rest_unmatched(make_targets):
    class_logits, output = predictions(queries=2, batch=1)
    matches = HungarianMatcher(num_points=32)(class_logits, output, [make_targets(5, classes=4)])
    assert matches.matched.sum((1, 2)).tolist() == [2, 2, 2]


def test_class_weight_zero_ignores_classes(make_targets):
    class_logits, output = predictions()
    targets = [make_targets(3, classes=4), make_targets(2, classes=4)]
    matcher = HungarianMatcher(class_weight=0.0, num_points=32)
    results = []
    for logits in (class_logits, torch.randn_like(class_logits)):
        torch.manual_seed(3)
        results.append(matcher(logits, output, targets).query)
    assert torch.equal(*results)


def test_invalid_pixels_have_no_part_in_the_cost(make_targets):
    class_logits, output = predictions(batch=1)
    target = make_targets(3)
    valid = torch.ones(64, 64, dtype=torch.bool)
    valid[:, 40:] = False
    other_masks = target.masks.clone()
    other_masks[:, :, 42:] = ~other_masks[:, :, 42:]  # one pixel apart from the border: sampling is bilinear
    results = []
    for masks in (target.masks, other_masks):
        torch.manual_seed(2)
        targets = [Targets(target.labels, masks, valid)]
        results.append(HungarianMatcher(num_points=200).costs(class_logits, output, targets))
    assert torch.equal(*results)
    torch.manual_seed(2)
    without = HungarianMatcher(num_points=200).costs(class_logits, output, [Targets(target.labels, other_masks)])
    assert not torch.allclose(results[0], without)


def test_image_of_target_counts_images():
    masks = torch.zeros(3, 2, 2, dtype=torch.bool)
    targets = [Targets(torch.zeros(n, dtype=torch.int64), masks[:n]) for n in (2, 0, 3)]
    assert image_of_target(targets).tolist() == [0, 0, 2, 2, 2]
