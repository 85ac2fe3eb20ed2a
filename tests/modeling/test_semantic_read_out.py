"""Semantic read-outs, sliding windows, confident pseudo-labels."""

from __future__ import annotations

import math

import pytest
import torch

from dearli_d2.modeling.mask2former.inference import semantic_inference
from dearli_d2.modeling.per_pixel.semantic import (
    confident_targets,
    entropy,
    normalized,
    semantic_argmax,
    sliding_window,
)


def test_read_outs_agree_on_crisp_masks():
    owner = torch.randint(0, 4, (20, 20))
    masks = torch.where(owner == torch.arange(6)[:, None, None], 9.0, -9.0)[None]  # the last two queries have no pixel
    logits = torch.full((1, 6, 6), -9.0)
    for query, label in enumerate((2, 0, 4, 2, 1, 5)):  # two queries of one class, the last one is no-object
        logits[0, query, label] = 9
    expected = torch.tensor([2, 0, 4, 2])[owner]
    assert torch.equal(semantic_argmax(logits, masks).argmax(1)[0], expected)
    assert torch.equal(semantic_inference(logits, masks).argmax(1)[0], expected)


def test_argmax_is_the_rule_of_the_paper():
    logits, masks = torch.randn(2, 7, 5), torch.randn(2, 7, 9, 8)
    scores = semantic_argmax(logits, masks)
    for b in range(2):
        objects = [q for q in range(7) if logits[b, q].argmax() < 4]
        strongest = torch.tensor(objects)[masks[b, objects].argmax(0)]
        assert torch.equal(scores[b].argmax(0), logits[b].argmax(-1)[strongest])


@pytest.mark.parametrize(("size", "window", "stride"), [((40, 70), 32, 20), ((20, 90), 32, 32), ((33, 33), 32, 7)])
def test_windows_cover_everything_and_average(size, window, stride):
    images = torch.randn(1, 3, *size)

    def scores(part):
        assert part.shape[2] <= window
        assert part.shape[3] <= window
        return part[:, :2] * 2

    result = sliding_window(scores, images, window, stride)
    assert torch.allclose(result, images[:, :2] * 2, atol=1e-6)


def test_windows_that_differ_are_averaged_where_they_overlap():
    images = torch.zeros(1, 3, 4, 10)
    values = iter((1.0, 4.0, 7.0))
    result = sliding_window(lambda p: torch.full_like(p[:, :1], next(values)), images, 6, 3)
    # windows at 0..5, 3..8 and 4..9
    assert result[0, 0, 0].tolist() == [1, 1, 1, 2.5, 4, 4, 5.5, 5.5, 5.5, 7]


def test_confident_targets_are_the_best_class_where_it_is_sure():
    probability = torch.randn(2, 5, 12, 10).mul(3).softmax(1)
    inside = torch.rand(12, 10) > 0.3
    for index, target in enumerate(confident_targets(probability.clone(), 0.8, [None, inside])):
        best = probability[index].max(0)
        sure = (best.values >= 0.8) & (inside if index else torch.ones_like(inside))
        assert torch.equal(target.valid, sure)
        assert torch.equal(target.masks.any(0), sure)
        assert target.labels.tolist() == sorted(best.indices[sure].unique().tolist())
        for label, mask in zip(target.labels, target.masks, strict=True):
            assert torch.equal(mask, sure & (best.indices == label))


def test_entropy_of_known_distributions():
    uniform, certain = torch.full((1, 4, 3, 3), 0.25), torch.zeros(1, 4, 3, 3)
    certain[:, 2] = 1
    assert float(entropy(uniform)) == pytest.approx(math.log(4), abs=1e-6)
    assert float(entropy(certain)) == pytest.approx(0, abs=1e-5)
    half = torch.zeros(1, 4, 3, 3)
    half[:, 1] = 0.3  # the rest is that of no class
    assert float(entropy(half)) == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7), abs=1e-6)


def test_scores_become_probabilities_without_raising_what_is_unsure():
    """A class that is left alone by a filter, or a pixel that no mask claims, gains no confidence by that."""
    scores = torch.rand(2, 4, 3, 3) + 0.3
    assert torch.allclose(normalized(scores).sum(1), torch.ones(2, 3, 3), atol=1e-6)
    alone = torch.zeros(1, 4, 2, 2)
    alone[:, 2] = 0.01
    assert torch.equal(normalized(alone), alone)
    assert torch.equal(normalized(torch.zeros(1, 4, 2, 2)), torch.zeros(1, 4, 2, 2))
    assert not confident_targets(normalized(alone), 0.95, [None])[0].valid.any()
