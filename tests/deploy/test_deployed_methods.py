"""Prediction from the exported file of every method beside `dearli_d2.Predictor`, on generated pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.deploy import OnnxPredictor
from dearli_d2.export.write import export_model
from dearli_d2.methods import methods
from tests.export.test_export import caption_of, of_method

pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
def test_every_method_predicts_as_in_torch(tmp_path, name):
    found = of_method(tmp_path, name)
    caption = caption_of(found.model)
    export_model(found, tmp_path / "m.onnx", caption=caption)
    exported = OnnxPredictor(tmp_path / "m.onnx")
    scenes = [np.asarray(Image.open(d["file_name"])) for d in dataset_dicts("miniworld_val")[:2]]
    for image in (scenes[0], scenes[1][:100], scenes[1][:, :150].repeat(2, 0).repeat(2, 1)):
        expected, ours = found(image, caption or None), exported(image)
        assert (ours.semantic == expected.semantic).mean() > 0.999
        assert (ours.panoptic == expected.panoptic).mean() > 0.999
        assert np.allclose(ours.confidence, expected.confidence, atol=1e-3)
        assert [s["category_id"] for s in ours.segments] == [s["category_id"] for s in expected.segments]
        assert ours.taxonomy == expected.taxonomy
