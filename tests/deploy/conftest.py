"""Exported files with a tiny network of one convolution, and the same network in torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dearli_d2.deploy.metadata import (
    CLASS_LOGITS,
    IMAGE,
    KEY,
    MASK_LOGITS,
    PIXEL_LOGITS,
    ClassInfo,
    Metadata,
    Preparation,
    ReadOut,
)

QUERIES, STRIDE = 6, 4
CLASSES = tuple(ClassInfo(f"class {i}", i % 2 == 0, (40 * i, 9, 200), 10 + i, (f"other {i}",)) for i in range(4))
METADATA = Metadata(
    "Tiny",
    CLASSES,
    Preparation((120.0, 110.0, 100.0), (58.0, 57.0, 56.0), 64, 100, 32, (120.0, 110.0, 100.0)),
    ReadOut("masks", True, object_threshold=0.2, overlap_threshold=0.3),
    (IMAGE,),
    (CLASS_LOGITS, MASK_LOGITS),
)
PIXELS = replace(METADATA, read_out=ReadOut("pixels", False), outputs=(PIXEL_LOGITS,))


def weights(channels: int) -> np.ndarray:
    """(channels, 3, 4, 4) of the convolution."""
    return np.random.default_rng(1).standard_normal((channels, 3, STRIDE, STRIDE)).astype(np.float32) / 4


def class_logits() -> np.ndarray:
    """(1, Q, K + 1)."""
    return 3 * np.random.default_rng(2).standard_normal((1, QUERIES, len(CLASSES) + 1)).astype(np.float32)


@pytest.fixture
def tiny_file(tmp_path: Path):
    """tiny_file(metadata, entry=None): an ONNX file with this description, or with this text in its place."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def make(metadata: Metadata = METADATA, entry: str | None = None) -> Path:
        from onnx import TensorProto, helper, numpy_helper

        masks = metadata.read_out.kind == "masks"
        maps = MASK_LOGITS if masks else PIXEL_LOGITS
        channels = QUERIES if masks else len(CLASSES)
        nodes = [helper.make_node("Conv", [IMAGE, "weights"], [maps], strides=[STRIDE, STRIDE])]
        constants = {"weights": weights(channels)}
        outputs = [helper.make_tensor_value_info(maps, TensorProto.FLOAT, ["B", channels, "h", "w"])]
        if masks:
            constants["classes"] = class_logits()
            nodes.append(helper.make_node("Identity", ["classes"], [CLASS_LOGITS]))
            outputs.insert(
                0, helper.make_tensor_value_info(CLASS_LOGITS, TensorProto.FLOAT, constants["classes"].shape)
            )
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, ["B", 3, "H", "W"])],
            outputs,
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {KEY: metadata.to_json() if entry is None else entry} if entry != "" else {})
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return make


@pytest.fixture
def photograph() -> np.ndarray:
    """(75, 110, 3) uint8 with smooth areas."""
    coarse = np.random.default_rng(3).integers(0, 255, (5, 7, 3), np.uint8)
    return coarse.repeat(15, 0).repeat(16, 1)[:75, :110]
