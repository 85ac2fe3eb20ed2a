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


def test_calibrated_convolutions_compute_with_8_bits_but_for_delicate_ones_and_labels_stay(
    tiny_file, photograph, tmp_path, capsys
):
    """The first convolution and one in groups stay, the one between them does not."""
    model, out = tiny_file(), tmp_path / "small.onnx"
    graph = onnx.load(model)
    graph.graph.node[0].name, graph.graph.node[0].output[0] = "start", "first"
    kernels = {"mixing": np.eye(6, dtype=np.float32)[..., None, None], "each": np.ones((6, 1, 1, 1), np.float32)}
    graph.graph.initializer.extend([onnx.numpy_helper.from_array(array, name) for name, array in kernels.items()])
    make = onnx.helper.make_node
    graph.graph.node.insert(1, make("Conv", ["first", "mixing"], ["second"], name="middle"))
    graph.graph.node.insert(2, make("Conv", ["second", "each"], ["mask_logits"], name="grouped", group=6))
    onnx.save(graph, model)
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    assert main([str(model), str(out), "--calibrate", str(tmp_path / "photo.png")]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    nodes = onnx.load(out).graph.node
    weights_in_8_bits = {node.input[0].split("_quantized")[0] for node in nodes if node.op_type == "DequantizeLinear"}
    assert weights_in_8_bits & {"weights", "mixing", "each"} == {"mixing"}
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
