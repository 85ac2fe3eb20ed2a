"""Masked attention and the linearity that the decoder rests on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dearli_d2.modeling.mask2former.pixel_decoder import PixelFeatures
from dearli_d2.modeling.mask2former.transformer_decoder import (
    DecoderOutput,
    MultiScaleMaskedTransformerDecoder,
    _resize,
    attend,
    attention_mask,
)


def test_a_query_looks_inside_its_mask_or_everywhere_when_that_is_empty():
    embeddings = torch.tensor([[[1.0], [-1.0], [1.0]]])
    features = torch.tensor([[[2.0, 3.0, 1.0, 0.5]]])
    mask = attention_mask(embeddings, features)
    assert mask[0, 0].all()
    assert mask[0, 1].all()  # its mask is empty
    features = torch.tensor([[[2.0, -3.0, 1.0, 0.0]]])
    mask = attention_mask(embeddings, features)
    assert mask[0, 0].tolist() == [True, False, True, True]
    assert mask[0, 1].tolist() == [False, True, False, True]


def test_attention_equals_torchs_own():
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    mask = torch.rand(2, 5, 9) > 0.4
    mask[..., 0] = True
    expected, _ = attention(query, key, value, attn_mask=~mask.repeat_interleave(4, 0))
    assert torch.allclose(attend(attention, query, key, value, mask), expected, atol=1e-5)


def test_resized_features_give_resized_logits():
    output = DecoderOutput(torch.zeros(1), torch.randn(1, 2, 5, 8), torch.randn(2, 8, 16, 16))
    expected = F.interpolate(output.mask_logits(), size=(4, 6), mode="bilinear", align_corners=False)
    small = F.interpolate(output.mask_features, size=(4, 6), mode="bilinear", align_corners=False)
    assert torch.allclose(torch.einsum("bqc,bchw->bqhw", output.mask_embeddings[0], small), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (2, 3), (8, 3), (5, 7), (1, 24)])
def test_resizing_is_bilinear_interpolation(size):
    features = torch.randn(2, 3, 16, 24)
    expected = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    assert torch.allclose(_resize(features, size), expected, atol=1e-6)


def test_mask_pooling_adds_the_features_under_the_querys_own_mask():
    """FC-CLIP: the class head reads the projected mean of the mask features where the mask is positive, and the query."""
    head = nn.Linear(16, 3)
    decoder = MultiScaleMaskedTransformerDecoder(
        16, head, 16, 16, num_queries=5, heads=2, feedforward_dim=32, layers=3, mask_pooling=True
    )
    nn.init.normal_(decoder.query_feat.weight, std=2)
    seen = []
    decoder.decoder_norm.register_forward_hook(lambda _, __, normed: seen.append(normed))
    levels = [torch.randn(2, 16, side, side) for side in (2, 4, 8)]
    output = decoder(PixelFeatures(levels, torch.randn(2, 16, 16, 16)))
    for layer in range(4):
        inside = output.mask_logits(layer) > 0
        for image in range(2):
            for query in range(5):
                cells = output.mask_features[image][:, inside[image, query]]
                pooled = cells.mean(1) if cells.numel() else torch.zeros(16)
                expected = head(seen[layer][image, query] + decoder.mask_pooling_proj(pooled))
                torch.testing.assert_close(output.class_outputs[layer, image, query], expected, rtol=1e-4, atol=1e-4)
    assert inside.any(-1).any(-1).any()
    output.class_outputs[-1].sum().backward()
    assert decoder.mask_pooling_proj[1].weight.grad.abs().sum() > 0
