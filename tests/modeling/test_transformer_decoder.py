"""Masked attention and the linearity that the decoder rests on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput, attend, attention_mask


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
