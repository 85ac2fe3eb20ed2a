"""Prediction from an exported file beside torch and detectron2, with a network of one convolution, and the errors."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dearli_d2.data.mappers import TestMapper
from dearli_d2.deploy import OnnxPredictor
from dearli_d2.deploy.metadata import FORMAT, Metadata, ReadOut
from dearli_d2.deploy.predictor import taxonomy_of
from dearli_d2.deploy.preparation import network_input, resized_image
from dearli_d2.errors import ConfigError, DatasetError, DearliError, WeightsError
from dearli_d2.methods.eomt.model import EoMT
from dearli_d2.modeling import segmenter
from dearli_d2.modeling.mask_classifier import MaskClassifier
from dearli_d2.modeling.per_pixel.dpt_segmenter import DPTSegmenter
from dearli_d2.modeling.per_pixel.segmenter import PixelSegmenter
from dearli_d2.modeling.per_pixel.semantic import class_segments, normalized
from tests.deploy.conftest import CLASSES, METADATA, PIXELS, STRIDE, class_logits, weights

pytest.importorskip("onnxruntime")


class Backbone(nn.Module):
    size_divisibility = METADATA.preparation.divisor


class Tiny:
    """The methods of `Segmenter` that prediction does not use."""

    from_config = losses = network = None

    def convolved(self, images: torch.Tensor) -> torch.Tensor:
        kernel = torch.from_numpy(weights(6 if isinstance(self, MaskClassifier) else 4))
        return nn.functional.conv2d(images, kernel, stride=STRIDE)


class TinyMasks(Tiny, MaskClassifier):
    def predict(self, images):
        return torch.from_numpy(class_logits()).expand(len(images), -1, -1), self.convolved(images)


class TinyPixels(Tiny, PixelSegmenter):
    def logits(self, images, samples):
        return self.convolved(images)


class TinyDPT(DPTSegmenter):
    def logits(self, images, samples):
        return Tiny.convolved(self, images)


def in_torch(
    image: np.ndarray, metadata: Metadata, model: type[nn.Module]
) -> tuple[np.ndarray, list, np.ndarray, np.ndarray]:
    """Panoptic map, segments, semantic map and confidence as `dearli_d2.Predictor` finds them."""
    preparation, options = metadata.preparation, metadata.read_out
    read_out = segmenter.ReadOut(
        panoptic=options.panoptic,
        object_threshold=options.object_threshold,
        overlap_threshold=options.overlap_threshold,
        window=preparation.window,
        window_stride=preparation.window_stride,
    )
    parts = {"criterion": nn.Module()} if issubclass(model, MaskClassifier) else {}
    if issubclass(model, DPTSegmenter):
        parts["head"] = nn.Module()
    built = model(
        backbone=Backbone(), taxonomy=taxonomy_of(CLASSES), pixel_mean=preparation.mean, pixel_std=preparation.std,
        read_out=read_out, **parts,
    ).eval()  # fmt: skip
    with torch.no_grad():
        output = built([TestMapper(preparation.min_size, preparation.max_size).prepare(image)])[0]
    panoptic, segments = output["panoptic_seg"] if "panoptic_seg" in output else class_segments(output["sem_seg"])
    confidence, semantic = normalized(output["sem_seg"][None])[0].max(0)
    return panoptic.numpy(), segments, semantic.numpy(), confidence.numpy()


@pytest.mark.parametrize(
    ("model", "metadata"),
    [
        (TinyMasks, METADATA),
        (TinyMasks, replace(METADATA, preparation=replace(METADATA.preparation, window=48, window_stride=30))),
        (TinyMasks, replace(METADATA, preparation=replace(METADATA.preparation, min_size=0))),
        (TinyPixels, PIXELS),
        (TinyPixels, replace(PIXELS, preparation=replace(PIXELS.preparation, window=48, window_stride=30))),
        (TinyDPT, replace(PIXELS, preparation=replace(PIXELS.preparation, fit="resize"))),
    ],
    ids=["masks", "masks in windows", "masks at full size", "pixels", "pixels in windows", "pixels fitted"],
)
def test_predictions_equal_torch(tiny_file, photograph, model, metadata):
    if metadata.preparation.window:  # torch has no panoptic read-out of windows
        metadata = replace(metadata, read_out=replace(metadata.read_out, panoptic=False))
    found = OnnxPredictor(tiny_file(metadata))(photograph)
    panoptic, segments, semantic, confidence = in_torch(photograph, metadata, model)
    assert len(np.unique(semantic)) > 1
    assert (found.semantic == semantic).mean() > 0.999
    assert (found.panoptic == panoptic).mean() > 0.999
    assert np.allclose(found.confidence, confidence, atol=1e-4)
    for ours, theirs in zip(found.segments, segments, strict=True):
        assert {**ours, "score": 0} == {**theirs, "score": 0}
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)


def test_paths_pictures_arrays_and_lists_are_one_image_each(tiny_file, photograph, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photograph).save(path)
    predictor = OnnxPredictor(tiny_file(), threads=1)
    expected = predictor(photograph)
    for found in [predictor(path), predictor(str(path)), *predictor([Image.open(path), photograph])]:
        assert np.array_equal(found.panoptic, expected.panoptic)
        assert found.segments == expected.segments
    assert expected.taxonomy.main_names == [c.name for c in CLASSES]
    assert expected.taxonomy.dataset_ids == (10, 11, 12, 13)
    with pytest.raises(DatasetError, match="an image is a path"):
        predictor(3)


def test_a_large_image_is_read_out_small_and_enlarged(tiny_file, photograph):
    metadata = replace(METADATA, read_out=replace(METADATA.read_out, max_pixels=75 * 110 // 4))
    small, whole = OnnxPredictor(tiny_file(metadata))(photograph), OnnxPredictor(tiny_file())(photograph)
    assert small.panoptic.shape == small.semantic.shape == small.confidence.shape == (75, 110)
    assert 0.8 < (small.semantic == whole.semantic).mean() < 1


def test_a_fixed_size_takes_images_of_any_size(tiny_file, photograph):
    metadata = replace(METADATA, preparation=replace(METADATA.preparation, static=(64, 96)))
    predictor = OnnxPredictor(tiny_file(metadata))
    for image in (photograph, np.ascontiguousarray(photograph.transpose(1, 0, 2)), photograph[:1]):
        found = predictor(image)
        assert found.panoptic.shape == image.shape[:2]
        assert network_input(resized_image(image, metadata.preparation), metadata.preparation).shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("", "is an ONNX file that dearli export did not write: it has no entry 'dearli_d2'"),
        ("{", "is no description that dearli export writes"),
        (f'{{"format": {FORMAT + 1}}}', f"has format {FORMAT + 1}, this program reads {FORMAT}"),
        (f'{{"format": {FORMAT}}}', "is damaged"),
    ],
)
def test_a_file_of_others_is_an_error_of_one_line(tiny_file, entry, message):
    with pytest.raises(WeightsError, match=message) as error:
        OnnxPredictor(tiny_file(entry=entry))
    assert "\n" not in str(error.value)


def test_what_is_missing_is_an_error_of_one_line(tiny_file, tmp_path, monkeypatch):
    path = tiny_file()
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "model.pt2").write_text("no model")
    cases = [
        (WeightsError, r"there is no file .*none\.onnx", {"path": tmp_path / "none.onnx"}),
        (WeightsError, "text.onnx cannot be opened by onnxruntime", {"path": tmp_path / "text.onnx"}),
        (WeightsError, "dearli export --format onnx", {"path": tmp_path / "model.pt2"}),
        (ConfigError, "there is no provider 'tpu'", {"path": path, "provider": "tpu"}),
        (ConfigError, "has classes of its own", {"path": path, "vocabulary": "words.npz"}),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=message) as error:
            OnnxPredictor(**arguments)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DearliError, match="needs onnxruntime: pip install onnxruntime"):
        OnnxPredictor(path)


def test_read_out_without_objects_ignores_thing_classes(tiny_file, photograph):
    metadata = replace(METADATA, read_out=ReadOut("masks", False))
    found = OnnxPredictor(tiny_file(metadata))(photograph)
    assert not any(s["isthing"] for s in found.segments)
    assert np.array_equal(found.panoptic, found.semantic + 1)


def test_padding_to_a_least_size_with_a_colour_equals_that_of_eomt(photograph):
    preparation = replace(METADATA.preparation, least=130, divisor=8, pad=(0.0, 0.0, 0.0))
    model = SimpleNamespace(
        device="cpu", backbone=SimpleNamespace(patch=8, image_size=130), pad_value=0.0,
        pixel_mean=torch.tensor(preparation.mean).view(3, 1, 1), pixel_std=torch.tensor(preparation.std).view(3, 1, 1),
    )  # fmt: skip
    expected = EoMT.preprocess(model, [{"image": torch.from_numpy(photograph.transpose(2, 0, 1).copy())}]).tensor
    assert np.allclose(network_input(photograph, preparation), expected, atol=1e-6)
    assert expected.shape[-2:] == (136, 136)
