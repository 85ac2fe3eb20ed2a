"""Short trainings that show an effect (`make test-slow`); the figures of longer ones are in docs/results.md."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.text_matters import run_seed
from dearli_d2.demo import climb


@pytest.mark.slow
def test_text_carries_recognition_and_ensembling_helps_with_few_labels(tmp_path):
    scores = run_seed(seed=0, labels=0.03, iterations=120, out=tmp_path)
    pq = {name: values["panoptic/PQ"] for name, values in scores.items()}
    assert pq["zero-shot, true names"] > 3 * pq["zero-shot, permuted names"]
    assert pq["ensemble, true names"] > pq["learned, true names"] + 2
    assert pq["learned, true names"] > pq["learned, permuted names"] + 10


@pytest.mark.slow
def test_each_rung_of_the_ladder_is_above_the_one_before(tmp_path):
    """`make ladder`: the mean of three seeds (half an hour on two cores)."""
    seeds = [climb(tmp_path / f"seed_{seed}", seed, iterations=600, warmup=100) for seed in range(3)]
    assert_the_ladder_climbs(seeds)


def assert_the_ladder_climbs(seeds: list[list[dict[str, float]]]) -> None:
    """Scores by seed and rung."""
    plain, ensembled, ssl, dear, dearli = np.mean([[s["panoptic/PQ"] for s in rungs] for rungs in seeds], axis=0)
    assert ssl > plain + 2
    assert dear > ssl + 2
    assert dear > ensembled + 2  # more than ensembling at inference alone gives
    assert dearli > dear
