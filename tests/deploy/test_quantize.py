"""Copies of exported models in 8 bits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dearli_d2.deploy import OnnxPredictor
from dearli_d2.deploy.quantize import main, quantize
from dearli_d2.errors import ConfigError, WeightsError
from tests.deploy.conftest import METADATA

onnx = pytest.importorskip("onnx")


def operators(path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_calibrated_convolutions_compute_with_8_bits_and_labels_stay(tiny_file, photograph, tmp_path, capsys):
    model, out = tiny_file(), tmp_path / "small.onnx"
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    assert main([str(model), str(out), "--calibrate", str(tmp_path / "photo.png")]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators(out)
    before, after = OnnxPredictor(model), OnnxPredictor(out)
    assert after.metadata == before.metadata
    assert (after(photograph).semantic == before(photograph).semantic).mean() > 0.95
    assert not np.array_equal(after(photograph).confidence, before(photograph).confidence)


def test_products_by_weights_are_quantised_without_images(tiny_file, photograph, tmp_path):
    model, out = tiny_file(), tmp_path / "small.onnx"
    graph = onnx.load(model)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(5, dtype=np.float32), "mixing"))
    make = onnx.helper.make_node
    brightness = make("ReduceMean", ["image"], ["brightness"], keepdims=0)  # so that nothing is constant
    del graph.graph.node[-1]
    added = [
        brightness,
        make("Add", ["classes", "brightness"], ["sum"]),
        make("MatMul", ["sum", "mixing"], ["class_logits"]),
    ]
    graph.graph.node.extend(added)
    onnx.save(graph, model)
    quantize(model, out)
    assert "MatMulInteger" in operators(out)
    assert operators(out) >= {"Conv"}
    expected, found = OnnxPredictor(model)(photograph), OnnxPredictor(out)(photograph)
    assert (expected.semantic == found.semantic).mean() > 0.95


def test_what_cannot_be_quantised_is_an_error(tiny_file, tmp_path):
    model = tiny_file()
    with pytest.raises(ConfigError, match="is the model itself"):
        quantize(model, model)
    with pytest.raises(WeightsError, match="exported with --half"):
        quantize(tiny_file(replace(METADATA, half=True)), tmp_path / "small.onnx")
