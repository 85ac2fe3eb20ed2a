"""Panoptic quality against panopticapi on the same files, and by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb
from PIL import Image

from benchmarks import found_segments
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.data.panoptic_png import read_panoptic, segment_ids
from dearli_d2.evaluation import PanopticQuality
from dearli_d2.modeling.mask_classifier import PseudoLabeling
from dearli_d2.structures import Targets

CATEGORIES = [{"id": 10 + i, "name": f"c{i}", "isthing": int(i < 3)} for i in range(5)]


def random_panoptic(rng, crowd=False):
    """(H, W) ids with void, and segments; blocks of random size and class."""
    ids = np.zeros((40, 60), np.int64)
    segments = []
    for k in range(8):
        y, x = rng.integers(0, 30), rng.integers(0, 45)
        ids[y : y + rng.integers(6, 25), x : x + rng.integers(6, 30)] = 1000 + 7 * k
        segments.append({"id": 1000 + 7 * k, "category_id": int(rng.integers(0, 5)), "iscrowd": 0})
    present = set(np.unique(ids))
    segments = [s for s in segments if s["id"] in present]
    if crowd:
        segments[0]["iscrowd"] = 1
    return ids, segments


def perturbed(ids, segments, rng):
    """Shifted by some pixels, some classes wrong, some segments gone."""
    moved = np.roll(ids, rng.integers(0, 4), axis=int(rng.integers(0, 2)))
    kept = [s for s in segments if rng.random() > 0.15]
    moved[~np.isin(moved, [s["id"] for s in kept])] = 0
    kept = [{**s, "category_id": s["category_id"] if rng.random() > 0.2 else int(rng.integers(0, 5))} for s in kept]
    present = set(np.unique(moved))
    return moved, [s for s in kept if s["id"] in present]


def write(folder, name, images):
    (folder / name).mkdir()
    annotations = []
    for i, (ids, segments) in enumerate(images):
        Image.fromarray(id2rgb(ids.astype(np.uint32))).save(folder / name / f"{i}.png")
        infos = [{**s, "category_id": s["category_id"] + 10, "area": int((ids == s["id"]).sum())} for s in segments]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos})
    content = {"images": [{"id": i} for i in range(len(images))], "annotations": annotations, "categories": CATEGORIES}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("seed", range(4))
def test_equals_panopticapi(tmp_path, seed, capsys):
    rng = np.random.default_rng(seed)
    truth = [random_panoptic(rng, crowd=i % 2 == 0) for i in range(6)]
    predicted = [perturbed(ids.copy(), [dict(s, iscrowd=0) for s in segments], rng) for ids, segments in truth]
    write(tmp_path, "truth", truth)
    write(tmp_path, "predicted", predicted)
    theirs = pq_compute(
        str(tmp_path / "truth.json"),
        str(tmp_path / "predicted.json"),
        str(tmp_path / "truth"),
        str(tmp_path / "predicted"),
    )
    quality = PanopticQuality(5)
    for (t, t_segments), (p, p_segments) in zip(truth, predicted, strict=True):
        quality.add(p, p_segments, t, t_segments)
    ours = quality.summary({0, 1, 2})
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for name in ("pq", "sq", "rq"):
            assert ours[name.upper() + suffix] == pytest.approx(100 * theirs[group][name], abs=1e-9), (group, name)
    assert 5 < ours["PQ"] < 95  # neither trivial case
    for i, row in enumerate(quality.per_class()):
        assert np.nan_to_num(row[0]) == pytest.approx(100 * theirs["per_class"][10 + i]["pq"], abs=1e-9)


def test_merging_ranks_equals_one_process():
    rng = np.random.default_rng(0)
    images = [random_panoptic(rng) for _ in range(4)]
    guesses = [perturbed(ids.copy(), segments, rng) for ids, segments in images]
    whole, parts = PanopticQuality(5), [PanopticQuality(5), PanopticQuality(5)]
    for i, ((t, ts), (p, ps)) in enumerate(zip(images, guesses, strict=True)):
        whole.add(p, ps, t, ts)
        parts[i % 2].add(p, ps, t, ts)
    parts[0].merge(parts[1])
    assert np.allclose(whole.per_class(), parts[0].per_class(), equal_nan=True)


def test_perfect_prediction_and_absent_classes():
    ids, segments = random_panoptic(np.random.default_rng(1))
    quality = PanopticQuality(9)
    quality.add(ids, segments, ids, segments)
    summary = quality.summary({0, 1, 2})
    assert summary["PQ"] == summary["SQ"] == summary["RQ"] == 100
    assert np.isnan(quality.per_class()[8]).all()
    assert np.isnan(PanopticQuality(2).summary({0})["PQ"])


def test_empty_prediction_scores_zero():
    ids, segments = random_panoptic(np.random.default_rng(2))
    quality = PanopticQuality(5)
    quality.add(np.zeros_like(ids), [], ids, segments)
    assert quality.summary({0, 1, 2})["PQ"] == 0
    assert quality.fn.sum() == len(segments)


def test_found_segments_are_those_that_pass_the_threshold():
    taxonomy, truth = taxonomy_of("miniworld_val"), dataset_dicts("miniworld_val")[0]
    ids, segments = segment_ids(read_panoptic(truth["pan_seg_file_name"])), truth["segments_info"]
    masks = torch.stack([torch.from_numpy(ids == s["id"]) for s in segments])
    labels = torch.tensor([s["category_id"] for s in segments])
    labels[0] = (labels[0] + 1) % len(taxonomy)  # one of another class: a segment missed and one made up

    class Model:
        pseudo_labeling = PseudoLabeling()

        def pseudo_label(self, inputs):
            kept = slice(0, 2 if self.pseudo_labeling.object_threshold > 0.5 else None)
            return [Targets(labels[kept], masks[kept])]

    model = Model()
    model.taxonomy = taxonomy
    predictor = SimpleNamespace(model=model, mapper=lambda d: {"image": None})
    for threshold, found in ((0.0, len(segments) - 1), (0.9, 1)):
        quality = found_segments.score(predictor, [truth], threshold).quality
        assert (quality.tp.sum(), quality.fp.sum(), quality.fn.sum()) == (found, 1, len(segments) - found)
