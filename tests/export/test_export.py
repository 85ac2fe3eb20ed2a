"""Exported files: equal to the model for every method, described, and whole or absent.

Tracing takes seconds a model, so all networks are the smallest, and the default suite exports each once, with fixed sizes. The
slow test exports each method with free sizes.
"""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from dearli_d2.deploy.metadata import KEY, Metadata
from dearli_d2.deploy.vocabulary import VocabularyFile
from dearli_d2.errors import ConfigError, WeightsError
from dearli_d2.export import write as writing
from dearli_d2.export.command import predictor_of
from dearli_d2.export.graph import Examples, Network, trace
from dearli_d2.export.write import export_model, write_vocabulary
from dearli_d2.methods import method_of, methods
from tests.export.tiny import CAPTION, checkpoint, predictor

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# the config of miniworld that stands for a method; one of another name has that name
CONFIG = {"mask2former": "m2f.yaml", "dearli": "dear.yaml", "dpt": "unimatch_v2.yaml"}
SMALLEST = ("MODEL.ENSEMBLE.ALPHA", "0.5", "MODEL.EOMT.BLOCKS", "1")


def of_method(folder, name):
    file = CONFIG.get(name, f"{name}.yaml")
    return predictor_of((), None, str(checkpoint(folder, name, file, *SMALLEST)), None)


def static_size(model):
    side = -(-max(model.fitting.least, 64) // model.fitting.divisor) * model.fitting.divisor
    return side, side + model.fitting.divisor


def caption_of(model):
    return CAPTION if model.reads_captions else ""


@pytest.mark.parametrize("name", methods())
def test_every_method_equals_its_model_in_onnxruntime(tmp_path, name):
    found = of_method(tmp_path, name)
    assert method_of(found.config) is methods()[name]
    result = export_model(found, tmp_path / "m.onnx", static=static_size(found.model), caption=caption_of(found.model))
    assert result.difference < 5e-6
    assert result.labels == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
def test_every_method_takes_any_size_and_number_of_images(tmp_path, name):
    found = of_method(tmp_path, name)
    path, caption = tmp_path / "m.onnx", caption_of(found.model)
    export_model(found, path, caption=caption)
    network, examples = Network(found.model, caption).eval(), Examples(found.model)
    from dearli_d2.export.onnx_file import run_file

    for size in ((1, 2, 5), (3, 6, 3)):
        inputs = examples.of(*size)
        with torch.no_grad():
            expected = network(**inputs)
        assert writing.agreement(found.model, expected, run_file(path, inputs)).difference < 5e-6


@pytest.mark.parametrize("name", ["masks", pytest.param("argmax", marks=pytest.mark.slow), "resized"])
def test_a_traced_graph_takes_any_size_and_number_of_images(tmp_path, name):
    model = predictor(tmp_path, name).model
    network, examples = Network(model).eval(), Examples(model)
    graph = trace(network, examples).module()
    inputs = examples.of(1, 5, 3)
    with torch.no_grad():
        expected, found = network(**inputs), graph(**inputs)
    assert writing.agreement(model, expected, found).difference < 5e-6


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A model with a text classifier, its graph whose classes are an input, and the folder of both."""
    folder = tmp_path_factory.mktemp("open")
    found = predictor(folder, "open")
    path = folder / "open.onnx"
    export_model(found, path, open_vocabulary=True, static=(64, 96))
    return found, path, folder


def test_other_words_are_an_input_of_an_open_vocabulary(words):
    found, path, folder = words
    session = onnxruntime.InferenceSession(path)
    other = predictor_of((), None, str(folder / "open.pth"), "sand|beach, red thing, sky")
    write_vocabulary(other, folder / "other.npz")
    for file, same in ((folder / "open.npz", found), (folder / "other.npz", other)):
        vocabulary = VocabularyFile.read(file)
        image = Examples(found.model, (64, 96)).of(1, 0, 0)["image"]
        with torch.no_grad():
            expected = same.model.raw_outputs(image)
        logits, masks = session.run(None, {"image": image.numpy(), **vocabulary.inputs})
        assert logits.shape[-1] == len(vocabulary.classes) + 1
        result = writing.agreement(
            same.model,
            expected,
            {"class_logits": torch.from_numpy(logits), "mask_logits": torch.from_numpy(masks)},
        )
        assert result.difference < 5e-6


def test_the_file_describes_the_model(words):
    found, path, folder = words
    model = onnx.load(path)
    metadata = Metadata.from_json({entry.key: entry.value for entry in model.metadata_props}[KEY])
    taxonomy = found.model.taxonomy
    assert [(c.name, c.category_id) for c in metadata.classes] == list(
        zip(taxonomy.main_names, taxonomy.dataset_ids, strict=True)
    )
    assert {i for i, c in enumerate(metadata.classes) if c.isthing} == taxonomy.thing_ids
    assert metadata.preparation.static == (64, 96)
    assert metadata.preparation.min_size == found.config.INPUT.MIN_SIZE_TEST
    assert metadata.read_out.panoptic
    assert metadata.inputs == tuple(entry.name for entry in model.graph.input)
    assert metadata.outputs == tuple(entry.name for entry in model.graph.output)
    assert metadata.vocabulary.fingerprint == VocabularyFile.read(folder / "open.npz").fingerprint
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert str(folder) not in str(model.graph)
    assert ".py" not in str(model.graph)[:10000]


def test_half_precision_halves_the_file_and_keeps_the_labels(tmp_path):
    found = predictor(tmp_path, "pixels")
    for half in (False, True):
        result = export_model(found, tmp_path / f"{half}.onnx", half=half, static=(64, 64), caption=CAPTION)
    assert (tmp_path / "True.onnx").stat().st_size < 0.6 * (tmp_path / "False.onnx").stat().st_size
    assert result.labels > 0.98
    assert {o.type.tensor_type.elem_type for o in onnx.load(tmp_path / "True.onnx").graph.output} == {1}


def test_a_program_of_torch_is_equal_and_described(tmp_path):
    from dearli_d2.export.torch_file import read_program

    found = predictor(tmp_path, "resized")
    result = export_model(found, tmp_path / "m.pt2", format="torch")
    network, metadata = read_program(tmp_path / "m.pt2")
    assert result.difference == 0
    assert metadata.read_out.kind == "pixels"
    assert metadata.preparation.fit == "resize"
    image = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        torch.testing.assert_close(network(image=image)["logits"], found.model.raw_outputs(image)["logits"])
    (tmp_path / "n.pt2").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="is no program"):
        read_program(tmp_path / "n.pt2")


def test_nothing_is_left_of_an_interrupted_export(tmp_path, monkeypatch):
    def interrupted(program, path, *rest):
        path.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(writing, "_write", interrupted)
    monkeypatch.setattr(writing, "trace", lambda *args: None)
    found = predictor(tmp_path, "resized")
    with pytest.raises(KeyboardInterrupt):
        export_model(found, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["resized.pth"]


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_write", lambda *args: {"logits": torch.zeros(1, 16, 1, 1)})
    monkeypatch.setattr(writing, "trace", lambda *args: None)
    with pytest.raises(RuntimeError, match="does not compute"):
        export_model(predictor(tmp_path, "resized"), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path, monkeypatch):
    found, out = predictor(tmp_path, "masks"), tmp_path / "m.onnx"
    for options, message in (
        ({"static": (100, 64)}, r"--static 100x64: .* multiples of 32 and at least 32; near 100 is 96"),
        ({"open_vocabulary": True}, "has fixed classes"),
        ({"caption": "a street"}, "reads no captions"),
        ({"format": "torch"}, "is named .pt2"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_model(found, out, **options)
    with pytest.raises(ConfigError, match="--half is for"):
        export_model(found, tmp_path / "m.pt2", format="torch", half=True)
    with pytest.raises(ConfigError, match="--caption TEXT"):
        export_model(predictor(tmp_path, "pixels"), out)
    monkeypatch.setattr("dearli_d2.export.onnx_file.LIMIT", 1000)
    with pytest.raises(ConfigError, match="one ONNX file holds less than 2"):
        export_model(predictor(tmp_path, "resized"), out, static=(32, 64))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript onnxruntime"):
        export_model(found, out)
    assert not out.exists()


def test_models_come_from_a_run_a_config_or_a_checkpoint(tmp_path):
    path = checkpoint(tmp_path, "model_final", "unimatch_v2.yaml")
    content = torch.load(path)
    (tmp_path / "config.yaml").write_text(content["config"])
    config = str(tmp_path / "config.yaml")
    torch.save({"model": content["model"]}, tmp_path / "bare.pth")
    for words, file, weights in (
        ((str(tmp_path), "INPUT.MIN_SIZE_TEST", "64"), None, None),
        (("INPUT.MIN_SIZE_TEST", "64"), config, str(path)),
        (("INPUT.MIN_SIZE_TEST", "64"), None, str(path)),
    ):
        assert predictor_of(words, file, weights, None).config.INPUT.MIN_SIZE_TEST == 64
    with pytest.raises(WeightsError, match="holds no config"):
        predictor_of((), None, str(tmp_path / "bare.pth"), None)
    with pytest.raises(ConfigError, match="not both"):
        predictor_of((str(tmp_path),), config, None, None)
    with pytest.raises(ConfigError, match="nothing to export"):
        predictor_of((), None, None, None)


def test_the_command_says_size_agreement_and_how_to_predict(tmp_path, capsys):
    from dearli_d2.cli import main

    path, out = checkpoint(tmp_path, "m", "unimatch_v2.yaml"), tmp_path / "m.onnx"
    assert main(["export", "--weights", str(path), "--out", str(out), "--static", "64x96"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["megabytes"] > 1
    assert result["largest_difference"] < 5e-6
    assert "tracing the model" in printed.err
    assert "dearli_d2.deploy" in printed.err
    assert main(["export", "--weights", str(path), "--out", str(out), "--static", "64"]) == 2
