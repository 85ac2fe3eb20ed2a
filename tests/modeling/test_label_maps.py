"""Label maps in blocks equal the read-out of whole images."""

from __future__ import annotations

import pytest
import torch

from dearli_d2.modeling import label_maps
from dearli_d2.modeling.mask2former.inference import candidates, resize_logits, semantic_inference
from dearli_d2.modeling.per_pixel.semantic import class_segments, normalized


@pytest.mark.parametrize("size", [(37, 53), (8, 13), (5, 90)])
@pytest.mark.parametrize("block", [300, 2**20])
def test_blocks_equal_the_whole_image(size, block, monkeypatch):
    monkeypatch.setattr(label_maps, "_CPU_BLOCK", block)
    logits, masks = 3 * torch.randn(1, 7, 6), 4 * torch.randn(1, 7, 8, 13)
    semantic, confidence, score = label_maps.maps_of_masks(lambda m: semantic_inference(logits, m), masks, size)
    scores = semantic_inference(logits, resize_logits(masks, size))[0]
    expected, label = normalized(scores[None])[0].max(0)
    top = scores.topk(2, 0).values
    clear = top[0] - top[1] > 1e-4
    assert torch.equal(semantic[clear].long(), label[clear])
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(confidence, expected)
    torch.testing.assert_close(score, scores.amax(0))
    maps = label_maps.maps_of_classes(label.short(), expected, scores.amax(0))
    ids, segments = class_segments(scores)
    assert torch.equal(maps.panoptic, ids)
    assert maps.segments == segments


def test_the_candidates_are_the_queries_above_the_threshold():
    logits = torch.full((1, 5, 3), -9.0)
    logits[0, [0, 1, 2, 3, 4], [2, 0, 1, 2, 1]] = torch.tensor([9.0, 9.0, -8.5, 9.0, 9.0])
    assert candidates(logits, 0.8).tolist() == [1, 4]
    assert logits[:, candidates(logits, 0.99999999)].shape == (1, 1, 3)  # one is left to be read out
