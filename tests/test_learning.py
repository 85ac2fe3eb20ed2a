"""Short trainings that show an effect (`make test-slow`); the figures of longer ones are in docs/results.md."""

from __future__ import annotations

import pytest

from benchmarks.text_matters import run_seed
from dearli_d2.demo import RUNGS, climb


@pytest.mark.slow
def test_text_carries_recognition_and_ensembling_helps_with_few_labels(tmp_path):
    scores = run_seed(seed=0, labels=0.03, iterations=120, out=tmp_path)
    pq = {name: values["panoptic/PQ"] for name, values in scores.items()}
    assert pq["zero-shot, true names"] > 3 * pq["zero-shot, permuted names"]
    assert pq["ensemble, true names"] > pq["learned, true names"] + 2
    assert pq["learned, true names"] > pq["learned, permuted names"] + 10


@pytest.mark.slow
def test_each_rung_of_the_ladder_is_above_the_one_before(tmp_path):
    """One seed of `make ladder` (9 minutes on two cores); three are in docs/results.md."""
    scores = climb(tmp_path / "seed_0", 0, iterations=600, warmup=100)
    pq = {
        rung.config: score["panoptic/PQ"]
        for rung, score in zip(RUNGS, scores, strict=True)
        if rung.alpha < 1 or rung.config in ("m2f_lang_5", "ssl")
    }
    plain = scores[0]["panoptic/PQ"]
    assert pq["ssl"] > plain + 2
    assert pq["dear"] > pq["ssl"] + 2
    assert pq["dear"] > pq["m2f_lang_5"] + 2  # more than ensembling at inference alone gives
    assert pq["dearli"] > pq["dear"]
