"""Suggestions: the arithmetic of uncertainty and diversity, and of doubt in labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dearli_d2.suggest.choose import random_order, rarity, spread_choice, uncertainty
from dearli_d2.suggest.doubted import doubted_segments, segment_posteriors
from dearli_d2.suggest.regions import doubtful_regions, mask_of
from dearli_d2.suggest.signals import (
    Doubts,
    Signals,
    disagreement_map,
    emphasized,
    entropy_map,
    outcomes,
)
from tests.suggest.stub import StubModel, mapper


def by_loops(scores, features, known, count):
    """Weighted greedy k-centre, as its definition says."""
    chosen = []
    for _ in range(count):
        best, best_value = None, -1.0
        for i in range(len(features)):
            others = [*known, *(features[j] for j in chosen)]
            distance = min((math.dist(features[i], o) for o in others), default=1.0)
            if i not in chosen and scores[i] * distance > best_value + 1e-12:
                best, best_value = i, scores[i] * distance
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("labeled", [0, 1, 7])
def test_the_greedy_choice_is_that_of_the_definition(labeled):
    rng = np.random.default_rng(labeled)
    scores, features, known = rng.random(30), rng.normal(size=(30, 4)), rng.normal(size=(labeled, 4))
    chosen, distances = spread_choice(scores, features, known, 12)
    assert chosen == by_loops(scores, features, known, 12)
    assert spread_choice(scores, features, known, 5)[0] == chosen[:5]
    assert sorted(spread_choice(scores, features, known, 99)[0]) == list(range(30))
    if labeled:
        assert distances[0] == pytest.approx(min(np.linalg.norm(known - features[chosen[0]], axis=1)))


def test_a_copy_of_a_labelled_image_comes_last():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert spread_choice(np.array([9.0, 1.0, 1.0]), features, features[:1], 3)[0] == [1, 2, 0]


def test_entropy_has_its_closed_form_and_disagreement_is_total_variation():
    p = torch.tensor([0.7, 0.2, 0.1])
    assert float(entropy_map(p.view(3, 1, 1))) == pytest.approx(
        -sum(v * math.log(v) for v in p.tolist()) / math.log(3), abs=1e-6
    )
    assert float(entropy_map(torch.full((5, 1, 1), 0.2))) == pytest.approx(1, abs=1e-6)
    assert float(entropy_map(torch.eye(4)[0].view(4, 1, 1))) == pytest.approx(0, abs=1e-6)
    one, other = torch.tensor([1.0, 0.0]).view(2, 1, 1), torch.tensor([0.25, 0.75]).view(2, 1, 1)
    assert float(disagreement_map(one, other)) == pytest.approx(0.75)


def test_what_is_missing_to_one_is_an_outcome_and_larger_sums_are_divided():
    scores = torch.tensor([[0.3, 3.0], [0.2, 1.0]]).view(1, 2, 1, 2)
    assert torch.allclose(outcomes(scores)[0, :, 0], torch.tensor([[0.3, 0.75], [0.2, 0.25], [0.5, 0.0]]))


def test_a_small_doubtful_region_counts_in_a_plain_image():
    doubt = torch.zeros(10, 10)
    doubt[:2, :10] = 0.8
    assert emphasized(doubt) == pytest.approx(0.8)
    assert emphasized(torch.full((10, 10), 0.3)) == pytest.approx(0.3)


def test_signals_of_different_sizes_count_alike():
    parts = [
        {"entropy": 0.5, "two views": 0.01},
        {"entropy": 0.5, "two views": 0.03},
        {"entropy": 0.2, "two views": 0.02},
    ]
    found = uncertainty(parts)
    assert found == pytest.approx([(1.25 + 0.5) / 2, (1.25 + 1.5) / 2, (0.5 + 1) / 2])
    assert uncertainty([{"entropy": 0.0}]) == pytest.approx([0])


def test_rare_predicted_classes_lift_an_image():
    labeled = [{0}, {0}, {0, 1}]
    found = rarity([{0}, {1}, {2}, {0, 2}, set()], labeled)
    assert found == pytest.approx([1, math.sqrt(2), 2, 1.5, 1])


def test_a_choice_by_chance_depends_on_names_and_seed_alone():
    names = [f"{i}.png" for i in range(50)]
    assert random_order(names) == random_order(names) != random_order(names, 1)
    assert sorted(random_order(names)) == list(range(50))


# ---------------------------------------------------------------------------------------------- with a model that is known


def picture(*classes: int, side: int = 32) -> np.ndarray:
    """Vertical stripes whose grey value is 40 times the class."""
    stripes = np.repeat(np.array(classes), side // len(classes))
    return np.repeat(np.broadcast_to(40 * stripes, (side, side))[..., None], 3, 2).astype(np.uint8)


def test_signals_come_from_the_segmenter_and_missing_ones_are_left_out():
    model = StubModel()
    doubts = Signals(model, mapper())(picture(0, 1))
    assert set(doubts.maps) == {"entropy", "two views"}
    assert float(doubts.maps["two views"].max()) < 1e-5  # this model sees pixels only
    assert float(doubts.feature.norm()) == pytest.approx(1)
    more = Signals(StubModel(opinions=True), mapper(), StubModel(wrong=True))(picture(0, 1))
    assert set(more.maps) == {"entropy", "two views", "teacher and student", "learned and zero-shot"}
    assert float(more.maps["teacher and student"].mean()) > 0.5
    assert model.read_out.panoptic  # as before


def test_the_doubtful_region_is_where_the_doubt_is_and_names_the_classes():
    doubts = Signals(StubModel(), mapper())(
        picture(0, 4, 4, 4)
    )  # the model knows no class for 4, and guesses between 2 and 3
    regions = doubtful_regions(doubts)
    mask = mask_of(regions[0])
    assert mask.shape == tuple(doubts.maps["entropy"].shape)
    assert mask[:, 3:].sum() > 0.9 * mask.sum()
    assert {i for i, _ in regions[0]["classes"]} == {2, 3}


def test_an_image_without_doubt_has_no_region():
    probability = torch.zeros(3, 8, 8)
    probability[1] = 1
    assert doubtful_regions(Doubts(probability, {"entropy": torch.zeros(8, 8)}, torch.ones(1))) == []


def test_a_changed_class_is_found_first_by_a_model_that_knows_the_truth():
    rng, records = np.random.default_rng(0), []
    for index in range(12):
        left, right = (int(v) for v in rng.permutation(4)[:2])
        image = picture(left, right)
        ids = np.repeat(np.array([[1, 2]]), 16, 1).repeat(32, 0)
        labels = [left, right if index != 5 else (right + 1) % 4]
        segments = [{"id": 1, "category_id": labels[0]}, {"id": 2, "category_id": labels[1]}]
        posteriors = segment_posteriors(StubModel(), mapper(), image, ids, segments)
        for s, posterior in zip(segments, posteriors, strict=True):
            others = np.delete(posterior, s["category_id"])
            other = int(np.argmax(np.where(np.arange(4) == s["category_id"], -1, posterior)))
            records.append(
                {"image": f"{index}", "id": s["id"], "category": s["category_id"], "probability": float(posterior[s["category_id"]]),
                 "other": other, "other_probability": float(others.max())}
            )  # fmt: skip
    ranked = doubted_segments(records)
    assert (ranked[0]["image"], ranked[0]["id"]) == ("5", 2)
    assert [r["suspected"] for r in ranked] == [True] + [False] * (len(ranked) - 1)


def test_a_segment_without_pixels_at_the_size_of_the_read_out_is_left_out():
    segments = [{"id": 1, "category_id": 0}, {"id": 9, "category_id": 0}]
    found = segment_posteriors(StubModel(), mapper(), picture(0, 1), np.ones((32, 32), int), segments)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
