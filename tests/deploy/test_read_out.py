"""The read-out with numpy beside that with torch, on random outputs of a network."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from dearli_d2.deploy.metadata import CLASS_LOGITS, MASK_LOGITS, PIXEL_LOGITS, ReadOut
from dearli_d2.deploy.read_out import Frame, labels_of, resized_scores, scores_of
from dearli_d2.deploy.resizing import Resize, axis_matrix
from dearli_d2.modeling.mask2former.inference import panoptic_inference, resize_logits, semantic_inference
from dearli_d2.modeling.per_pixel.semantic import class_segments, normalized, semantic_argmax

THINGS = {0, 2}
FRAME = Frame((64, 96), (50, 90), False)
SIZES = [(50, 90), (77, 131), (31, 40)]  # as the input, enlarged, made smaller


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("dearli_d2.deploy.read_out._BLOCK", 12 * 131 * 5)


def outputs(queries: int = 12, classes: int = 5, confident: float = 6.0) -> dict[str, torch.Tensor]:
    """Logits of blobs, each query with a favourite class."""
    generator = torch.Generator().manual_seed(queries)
    coarse = torch.randn(1, queries, 3, 4, generator=generator) * 6
    masks = torch.nn.functional.interpolate(coarse, size=(16, 24), mode="bicubic")
    logits = torch.randn(1, queries, classes + 1, generator=generator)
    favourite = torch.randint(0, classes + 1, (1, queries, 1), generator=generator)
    return {CLASS_LOGITS: logits.scatter_add(2, favourite, torch.full((1, queries, 1), confident)), MASK_LOGITS: masks}


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor[0].numpy() for name, tensor in tensors.items()}


def full_masks(logits: torch.Tensor, size) -> torch.Tensor:
    return resize_logits(resize_logits(logits, FRAME.input)[..., : FRAME.content[0], : FRAME.content[1]], size)


def check_classes(found, scores: torch.Tensor) -> None:
    """The semantic part of labels beside torch's (1, K, H, W) scores."""
    confidence, semantic = normalized(scores)[0].max(0)
    assert (found.semantic == semantic.numpy()).mean() > 0.999
    assert np.allclose(found.confidence, confidence, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(7, 28), (28, 7), (13, 13), (1, 5), (5, 1), (31, 17)])
def test_an_axis_is_resized_as_by_torch(source, target):
    line = torch.randn(1, 1, 1, source)
    expected = torch.nn.functional.interpolate(line, size=(1, target), mode="bilinear", align_corners=False)
    assert np.allclose(axis_matrix(source, target) @ line.flatten().numpy(), expected.flatten(), atol=1e-6)


def test_a_chain_of_resizes_and_cuts_is_the_steps_one_by_one():
    maps = torch.randn(1, 3, 16, 24)
    for size in SIZES:
        chain = Resize.chain((16, 24), (FRAME.input, FRAME.content), (size, size))
        expected = full_masks(maps, size)[0].numpy()
        assert np.allclose(chain(maps[0].numpy()), expected, atol=1e-5)
        assert np.allclose(chain(maps[0].numpy(), 5, 9), expected[:, 5:9], atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("thresholds", [(0.8, 0.8), (0.0, 0.0), (0.3, 0.6)])
@pytest.mark.parametrize("queries", [1, 12, 40])
def test_panoptic_equals_torch(size, thresholds, queries):
    tensors = outputs(queries)
    read_out = ReadOut("masks", True, object_threshold=thresholds[0], overlap_threshold=thresholds[1])
    found = labels_of(arrays(tensors), FRAME, read_out, THINGS, size)
    masks = full_masks(tensors[MASK_LOGITS], size)
    panoptic, segments = panoptic_inference(tensors[CLASS_LOGITS], masks, THINGS, *thresholds)[0]
    assert (found.panoptic == panoptic.numpy()).mean() > 0.999
    assert [{**s, "score": 0} for s in found.segments] == [{**s, "score": 0} for s in segments]
    assert [s["score"] for s in found.segments] == pytest.approx([s["score"] for s in segments], abs=1e-6)
    check_classes(found, semantic_inference(tensors[CLASS_LOGITS], masks))


def test_no_object_at_all_is_no_segment():
    tensors = outputs()
    tensors[CLASS_LOGITS][..., -1] = 50
    found = labels_of(arrays(tensors), FRAME, ReadOut("masks", True), THINGS, (50, 90))
    assert not found.panoptic.any()
    assert found.segments == []


@pytest.mark.parametrize("kind", ["marginal", "argmax", "penalty"])
def test_semantic_kinds_equal_torch_and_each_class_is_a_segment(kind):
    tensors, size = outputs(), (77, 131)
    masks = full_masks(tensors[MASK_LOGITS], size)
    if kind == "penalty":  # Split Matching: independent classes, seen ones handicapped
        tensors[CLASS_LOGITS] = tensors[CLASS_LOGITS][..., :-1]
        read_out = ReadOut("masks", False, "sigmoid", penalty=(0.5, 0.0, 0.0, 0.5, 0.0))
        scores = torch.einsum("bqk,bqhw->bkhw", tensors[CLASS_LOGITS].sigmoid(), masks.sigmoid())
        scores[:, [0, 3]] -= 0.5
    else:
        read_out = ReadOut("masks", False, semantic=kind)
        read = {"marginal": semantic_inference, "argmax": semantic_argmax}[kind]
        scores = read(tensors[CLASS_LOGITS], masks)
    found = labels_of(arrays(tensors), FRAME, read_out, THINGS, size)
    check_classes(found, scores)
    panoptic, segments = class_segments(scores[0])
    assert (found.panoptic == panoptic.numpy()).mean() > 0.999
    assert [s["id"] for s in found.segments] == [s["id"] for s in segments]
    assert [s["score"] for s in found.segments] == pytest.approx([s["score"] for s in segments], abs=1e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fitted", [False, True])
def test_pixels_equal_torch(size, fitted):
    """Padded: logits to the input, softmax, cut, resize. Fitted, as DPT does: logits to the image, softmax, resize."""
    logits, frame = torch.randn(1, 5, 16, 24) * 3, Frame(FRAME.input, FRAME.content, fitted)
    if fitted:
        inside = resize_logits(logits, frame.content).softmax(1)
    else:
        inside = resize_logits(logits, frame.input).softmax(1)[..., : frame.content[0], : frame.content[1]]
    found = labels_of({PIXEL_LOGITS: logits[0].numpy()}, frame, ReadOut("pixels", False), set(), size)
    check_classes(found, resize_logits(inside, size))


def test_scores_of_windows_equal_torch():
    tensors = outputs()
    found = scores_of(arrays(tensors), FRAME, ReadOut("masks", True))
    expected = semantic_inference(tensors[CLASS_LOGITS], full_masks(tensors[MASK_LOGITS], FRAME.content))
    assert np.allclose(found, expected[0], atol=1e-5)
    larger = resized_scores(found, (77, 131))
    assert np.allclose(larger(0, 77), resize_logits(expected, (77, 131))[0], atol=1e-5)


def test_a_large_image_needs_little_memory(monkeypatch):
    """960 x 540 with 100 queries and 133 classes: all masks would take 207 MB, all scores 275 MB."""
    monkeypatch.undo()
    logits = {
        CLASS_LOGITS: np.zeros((100, 134), np.float32),
        MASK_LOGITS: np.zeros((100, 80, 144), np.float32),
    }
    logits[CLASS_LOGITS][:, :3] = 9
    frame = Frame((320, 576), (320, 569), False)
    tracemalloc.start()
    labels_of(logits, frame, ReadOut("masks", True), THINGS, (540, 960))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
