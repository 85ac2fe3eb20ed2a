"""Short trainings that show an effect (`make test-slow`); the figures of longer ones are in docs/results.md."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import hvl, segkc, semidavil, split_matching, study
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


def means(rows, metrics, options_of_seed, out, names, dataset="miniworld_val") -> np.ndarray:
    """(rows, metrics): mean over three seeds of the named rows of a study, in the order of the names."""
    by_folder = {row.folder: row for row in rows}
    results = [
        [study.train(by_folder[name], seed, out, options_of_seed(out, seed), dataset) for seed in range(3)]
        for name in names
    ]
    return np.array([[np.mean([m.value(r) for r in of_seeds]) for m in metrics] for of_seeds in results])


def hvl_parts_help(out) -> None:
    """mIoU, of look-alikes and of rare classes."""
    random, queries, refined, whole = means(
        hvl.ROWS, hvl.METRICS, hvl.options_of_seed, out, ("random", "htqg", "ptrm", "hvl")
    )
    assert queries[0] > random[0] + 2
    assert refined[0] > queries[0] + 2
    assert whole[0] > random[0] + 4
    assert whole[2] > random[2] + 5  # rare classes gain most


def split_matching_finds_unseen_classes(out) -> None:
    """hIoU, sIoU, uIoU."""
    baseline, matched, enhanced, random = means(
        split_matching.ROWS,
        split_matching.METRICS,
        split_matching.options_of_seed,
        out,
        ("baseline", "sm", "mfe", "random"),
    )
    assert baseline[2] < 10
    assert matched[2] > baseline[2] + 30
    assert matched[1] > baseline[1] - 8
    assert enhanced[0] > matched[0] + 5
    assert enhanced[1] > baseline[1]  # what matching costs the seen classes, enhancement gives back
    assert random[0] > matched[0] + 5


@pytest.mark.slow
def test_textual_queries_and_refinement_help(tmp_path):
    hvl_parts_help(tmp_path)


@pytest.mark.slow
def test_split_matching_finds_classes_that_were_never_annotated(tmp_path):
    split_matching_finds_unseen_classes(tmp_path)


def language_and_dyce_help_adaptation(out) -> None:
    """mIoU and the mean IoU of the rarest third of the classes, without labels of the target and with 5 %."""
    names = ("vlp_0_dyce", "dlg_0_dyce", "labels_5_dyce", "vlp_5_dyce", "dlg_5_dyce", "dlg_5_ce")
    unlabelled, guided, labels, pretrained, full, plain = means(
        semidavil.ROWS, semidavil.METRICS, semidavil.options_of_seed, out, names, "miniworld_night_val"
    )
    assert guided[0] > unlabelled[0] + 3
    assert labels[0] < pretrained[0] < full[0]
    assert full[1] > plain[1] + 3  # DyCE, on rare classes


def cross_supervision_helps_the_junior(out) -> None:
    """mIoU of the junior: labels alone, a pair of two juniors, an unlike pair."""
    names = ("labels", "equal", "segkc")
    labels, equal, unlike = means(segkc.ROWS, segkc.METRICS, segkc.options_of_seed, out, names, "miniworld_val")
    assert unlike[0] > labels[0] + 2
    assert unlike[0] > equal[0]


@pytest.mark.slow
def test_cross_supervision_helps_the_junior(tmp_path):
    cross_supervision_helps_the_junior(tmp_path)


@pytest.mark.slow
def test_language_and_dyce_help_domain_adaptation(tmp_path):
    language_and_dyce_help_adaptation(tmp_path)
