"""Short trainings that show an effect (`make test-slow`); the figures of longer ones are in docs/results.md."""

from __future__ import annotations

import pytest

from benchmarks.text_matters import run_seed


@pytest.mark.slow
def test_text_carries_recognition_and_ensembling_helps_with_few_labels(tmp_path):
    scores = run_seed(seed=0, labels=0.03, iterations=120, out=tmp_path)
    pq = {name: values["panoptic/PQ"] for name, values in scores.items()}
    assert pq["zero-shot, true names"] > 3 * pq["zero-shot, permuted names"]
    assert pq["ensemble, true names"] > pq["learned, true names"] + 2
    assert pq["learned, true names"] > pq["learned, permuted names"] + 10
