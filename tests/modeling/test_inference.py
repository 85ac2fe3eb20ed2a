"""Read-outs against plain loops written from their definitions."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reference import loop_panoptic
from dearli_d2.modeling.mask2former.inference import instance_inference, panoptic_inference, semantic_inference


def random_predictions(batch=2, queries=12, classes=5, size=(20, 24), seed=0):
    torch.manual_seed(seed)
    class_logits = 3 * torch.randn(batch, queries, classes + 1)
    coarse = 4 * torch.randn(batch, queries, 5, 6)
    masks = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return class_logits, masks


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("object_threshold", "overlap_threshold"), [(0.0, 0.8), (0.0, 0.0), (0.5, 0.3), (0.999, 0.8)])
def test_panoptic_equals_the_loop(seed, object_threshold, overlap_threshold):
    class_logits, masks = random_predictions(seed=seed)
    things = {0, 2}
    results = panoptic_inference(class_logits, masks, things, object_threshold, overlap_threshold)
    for image, (panoptic, segments) in enumerate(results):
        expected, expected_segments = loop_panoptic(
            class_logits[image], masks[image], things, object_threshold, overlap_threshold
        )
        assert torch.equal(panoptic, expected)
        assert panoptic.dtype == torch.int32
        assert [s["id"] for s in segments] == [s["id"] for s in expected_segments]
        for ours, theirs in zip(segments, expected_segments, strict=True):
            assert ours == {**theirs, "score": pytest.approx(theirs["score"])}


def test_loop_cases_are_not_trivial():
    """The comparison above has merged stuff, several things and dropped queries in it."""
    merged = kept = 0
    for seed in range(6):
        class_logits, masks = random_predictions(seed=seed)
        _, segments = loop_panoptic(class_logits[0], masks[0], {0, 2}, 0.0, 0.0)
        labels = class_logits[0].softmax(-1).max(-1).indices.tolist()
        stuff = [x for x in labels if x in (1, 3, 4)]
        merged += len(stuff) - len(set(stuff))
        kept += len(segments)
    assert merged > 5
    assert kept > 20


def test_read_out_accepts_log_probabilities():
    class_logits, masks = random_predictions()
    a = panoptic_inference(class_logits, masks, {0}, 0.2, 0.5)
    b = panoptic_inference(class_logits.log_softmax(-1), masks, {0}, 0.2, 0.5)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))


def test_all_no_object_gives_an_empty_map():
    class_logits, masks = random_predictions()
    class_logits[..., -1] = 50
    for panoptic, segments in panoptic_inference(class_logits, masks, {0}, 0.0, 0.8):
        assert not panoptic.any()
        assert segments == []


def test_semantic_equals_the_definition():
    class_logits, masks = random_predictions(batch=1, queries=3, size=(4, 5))
    ours = semantic_inference(class_logits, masks)
    for c in range(5):
        expected = sum(class_logits[0, q].softmax(-1)[c] * masks[0, q].sigmoid() for q in range(3))
        assert torch.allclose(ours[0, c], expected, atol=1e-6)


def test_instances_are_things_sorted_by_score_times_mask_quality():
    class_logits, masks = random_predictions(batch=1)
    result = instance_inference(class_logits, masks, {1, 3}, topk=5)[0]
    assert set(result.labels.tolist()) <= {1, 3}
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
    every = []
    probability = class_logits[0].softmax(-1)
    for q in range(12):
        inside = masks[0, q] > 0
        quality = float(masks[0, q].sigmoid()[inside].mean()) if inside.any() else 0.0
        every += [(float(probability[q, c]), quality, c) for c in (1, 3)]
    best = sorted(every, reverse=True)[:5]
    assert result.scores.tolist() == pytest.approx(sorted((s * q for s, q, _ in best), reverse=True), rel=1e-4)
    assert instance_inference(class_logits, masks, set(), topk=5)[0].masks.shape == (0, 20, 24)
