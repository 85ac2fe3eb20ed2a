"""Files of an open vocabulary: the classes come from a file beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dearli_d2.deploy import OnnxPredictor
from dearli_d2.deploy.metadata import CLASS_EMBEDDINGS, CLASS_LOGITS, IMAGE, ClassInfo, VocabularyInput
from dearli_d2.deploy.vocabulary import VocabularyFile
from dearli_d2.errors import ConfigError, WeightsError
from tests.deploy.conftest import METADATA, QUERIES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
DIM = 3
QUERY_EMBEDDINGS = np.random.default_rng(4).standard_normal((1, QUERIES, DIM)).astype(np.float32) * 5


@pytest.fixture
def open_file(tiny_file):
    """The class logits are products of the queries' embeddings and those of the first name of each class."""
    metadata = replace(METADATA, vocabulary=VocabularyInput(DIM, "tower 1"), inputs=(IMAGE, CLASS_EMBEDDINGS))
    path = tiny_file(metadata)
    model = onnx.load(path)
    graph, make = model.graph, onnx.helper.make_node
    constants = {
        "queries": QUERY_EMBEDDINGS,
        "rows": np.array([-1, DIM]),
        "no object": np.array([0, 0, 0, 0, 0, 1]),
    }
    graph.initializer.extend([onnx.numpy_helper.from_array(array, name) for name, array in constants.items()])
    graph.input.append(onnx.helper.make_tensor_value_info(CLASS_EMBEDDINGS, onnx.TensorProto.FLOAT, ["K", 1, DIM]))
    del graph.node[-1]
    graph.node.extend(
        [
            make("Reshape", [CLASS_EMBEDDINGS, "rows"], ["table"]),
            make("Transpose", ["table"], ["columns"]),
            make("MatMul", ["queries", "columns"], ["products"]),
            make("Pad", ["products", "no object"], [CLASS_LOGITS]),
        ]
    )
    graph.output[0].type.tensor_type.shape.dim[2].Clear()
    onnx.save(model, path)
    return path


def vocabulary(path, count: int, fingerprint: str = "tower 1") -> str:
    embeddings = np.random.default_rng(count).standard_normal((count, 1, DIM)).astype(np.float32)
    classes = tuple(ClassInfo(f"word {i}", True, (i, i, i), i) for i in range(count))
    VocabularyFile(classes, embeddings, None, fingerprint).write(path)
    return str(path)


@pytest.mark.parametrize("count", [2, 7])
def test_the_classes_are_those_of_the_vocabulary_in_any_number(open_file, photograph, tmp_path, count):
    predictor = OnnxPredictor(open_file, vocabulary(tmp_path / "words.npz", count))
    assert predictor.taxonomy.main_names == [f"word {i}" for i in range(count)]
    found = predictor(photograph)
    assert set(np.unique(found.semantic)) <= set(range(count))
    embeddings = VocabularyFile.read(tmp_path / "words.npz").embeddings[:, 0]
    logits = predictor.run(photograph[:64, :96])[CLASS_LOGITS]
    assert np.allclose(logits[:, :-1], QUERY_EMBEDDINGS[0] @ embeddings.T, atol=1e-4)


def test_a_vocabulary_is_needed_and_must_fit(open_file, tmp_path):
    with pytest.raises(ConfigError, match="takes its classes from a vocabulary file"):
        OnnxPredictor(open_file)
    with pytest.raises(WeightsError, match="was made by another text tower"):
        OnnxPredictor(open_file, vocabulary(tmp_path / "words.npz", 2, "tower 2"))
    with pytest.raises(WeightsError, match="is no vocabulary that dearli export writes"):
        OnnxPredictor(open_file, tmp_path / "none.npz")
