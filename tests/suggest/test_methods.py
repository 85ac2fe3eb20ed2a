"""Suggestions need no more of a method than a `Segmenter` has."""

from __future__ import annotations

import numpy as np
import pytest

from dearli_d2.data import miniworld
from dearli_d2.data.catalog import taxonomy_of
from dearli_d2.data.mappers import TestMapper
from dearli_d2.errors import ConfigError, DatasetError
from dearli_d2.modeling import build_model
from dearli_d2.suggest.doubted import segment_posteriors
from dearli_d2.suggest.signals import Signals
from dearli_d2.suggest.unlabeled import unless_unreadable

ALWAYS = {"entropy", "two views"}


@pytest.mark.parametrize("file", ["m2f", "dear", "hvl", "eomt", "segkc", "semidavil", "split_matching", "unimatch_v2"])
def test_every_method_gives_signals_in_their_range(file, mini_config):
    pixels_alone = ["MODEL.SEMIDAVIL.GUIDANCE", "False"] if file == "semidavil" else []
    cfg = mini_config("MODEL.WEIGHTS", "", *pixels_alone, file=f"{file}.yaml")
    taxonomy = taxonomy_of("miniworld_train")
    model = build_model(cfg, taxonomy).eval()
    scene = miniworld.make_scene(0, 0)
    image = np.ascontiguousarray(scene.image[:100, :120])  # sides that are padded
    mapper = TestMapper(100, 128)
    doubts = Signals(model, mapper)(image)
    assert set(doubts.maps) == ALWAYS | ({"learned and zero-shot"} if file == "dear" else set())
    for doubt in doubts.maps.values():
        assert doubt.shape == (25, 30)
        assert float(doubt.min()) >= -1e-5
        assert float(doubt.max()) <= 1 + 1e-5
    assert float(doubts.feature.norm()) == pytest.approx(1, abs=1e-5)
    ids = scene.segments[:100, :120]
    segments = [{"id": int(i), "category_id": 0} for i in np.unique(ids)]
    posteriors = segment_posteriors(model, mapper, image, ids, segments)
    assert posteriors.shape == (len(segments), len(taxonomy))
    assert (posteriors.sum(1) <= 1 + 1e-4).all()


def test_what_a_model_needs_beside_the_image_is_said_at_once():
    def compute(key):
        raise DatasetError("an image has no caption")

    with pytest.raises(ConfigError, match="no caption"):
        unless_unreadable(compute, "[]")
