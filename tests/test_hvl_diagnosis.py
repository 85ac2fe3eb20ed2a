"""The diagnoses of HVL: shares of the gradient, and what its queries know apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from benchmarks import hvl_gradients, hvl_queries
from dearli_d2 import Predictor
from dearli_d2.data.build import build_streams
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.modeling import build_model


def test_a_share_of_the_gradient_is_proportional_to_the_weight(mini_config):
    cfg = mini_config("DATASETS.UNLABELED", "()", file="hvl.yaml")
    batches = list(islice(build_streams(cfg), 2))
    model = build_model(cfg)
    torch.manual_seed(0)
    once = hvl_gradients.shares(model, batches)
    options = model.options
    model.options = replace(options, diversity_weight=2 * options.diversity_weight, vl_weight=3 * options.vl_weight)
    torch.manual_seed(0)
    more = hvl_gradients.shares(model, batches)
    factors = {"loss_diversity": 2, "loss_align": 3, "loss_consistency": 3, "loss_prompt": 1}
    for (loss, part), share in once.items():
        assert share > 0
        assert more[loss, part] == pytest.approx(factors[loss] * share, rel=1e-3)
    assert hvl_gradients.weight_of(cfg, ("VL_WEIGHT", "MASK_WEIGHT")) == pytest.approx(0.15 * 15)


def test_queries_are_read_out_apart_and_the_filter_is_counted(mini_config, tmp_path):
    """Scores of all four read-outs; a filter that lets every class in misses none and makes up those that are not there."""
    cfg = mini_config("MODEL.HVL.PRESENCE", "all", "DATASETS.TEST", "('miniworld_val@n2',)", file="hvl.yaml")
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    predictor = Predictor(cfg, tmp_path / "weights.pth")
    dicts = dataset_dicts("miniworld_val@n2")
    scores, agreement, (missed, made_up) = hvl_queries.measure(predictor, dicts)
    assert set(scores) == {hvl_queries.ALL, hvl_queries.TEXTUAL, hvl_queries.FREE, hvl_queries.ORACLE}
    assert all(0 <= v <= 100 for v in scores.values())
    assert 0 <= agreement <= 1
    shown = [{s["category_id"] for s in d["segments_info"]} for d in dicts]
    assert missed == 0
    assert made_up == pytest.approx(sum(model.num_classes - len(s) for s in shown) / 2, abs=0.51)
