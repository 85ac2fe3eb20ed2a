"""Mask pooling and geometric ensembling (DEARLi, eq. 4-6)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dearli_d2.modeling.clip.ensembling import geometric_ensemble, mask_pool


def logits(classes=6, scale=5.0):
    return scale * torch.randn(2, 7, classes + 1), scale * torch.randn(2, 7, classes)


def test_alpha_one_is_the_learned_posterior():
    learned, clip = logits()
    assert torch.allclose(geometric_ensemble(learned, clip, 1.0), learned.log_softmax(-1), atol=1e-5)


def test_alpha_zero_is_the_zero_shot_posterior_over_the_object_classes():
    learned, clip = logits()
    result = geometric_ensemble(learned, clip, 0.0).exp()
    void = learned.softmax(-1)[..., -1:]
    assert torch.allclose(result[..., -1:], void, atol=1e-6)
    assert torch.allclose(result[..., :-1], (1 - void) * clip.softmax(-1), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.6, 1.0])
def test_equals_the_formula_in_float64_and_sums_to_one(alpha):
    learned, clip = logits()
    result = geometric_ensemble(learned, clip, alpha).exp().double()
    p_learned, p_clip = learned.double().softmax(-1), clip.double().softmax(-1)
    mix = p_learned[..., :-1] ** alpha * p_clip ** (1 - alpha)
    expected = (1 - p_learned[..., -1:]) * mix / mix.sum(-1, keepdim=True)
    assert torch.allclose(result[..., :-1], expected, atol=1e-6)
    assert torch.allclose(result.sum(-1), torch.ones(2, 7, dtype=torch.float64), atol=1e-6)


def test_constants_added_to_the_logits_change_nothing():
    learned, clip = logits()
    base = geometric_ensemble(learned, clip, 0.6)
    assert torch.allclose(base, geometric_ensemble(learned + 3, clip, 0.6), atol=1e-5)
    assert torch.allclose(base, geometric_ensemble(learned, clip - 7, 0.6), atol=1e-5)


def test_one_class_and_a_thousand_classes():
    for classes in (1, 1000):
        result = geometric_ensemble(*logits(classes), alpha=0.6)
        assert result.shape[-1] == classes + 1
        assert torch.allclose(result.exp().sum(-1), torch.ones(2, 7), atol=1e-4)


def test_void_near_one_keeps_finite_logs():
    learned = torch.zeros(1, 1, 4)
    learned[..., -1] = 200.0
    result = geometric_ensemble(learned, torch.randn(1, 1, 3), 0.6)
    assert torch.isfinite(result).all()
    assert result[..., -1].item() == pytest.approx(0, abs=1e-6)


def test_mask_pooling_equals_a_brute_force_mean():
    features, masks = torch.randn(2, 5, 6, 8), torch.randn(2, 4, 12, 16)
    pooled = mask_pool(features, masks)
    small = F.interpolate(masks, size=(6, 8), mode="bilinear", align_corners=False)
    for b in range(2):
        for q in range(4):
            cells = [features[b, :, y, x] for y in range(6) for x in range(8) if small[b, q, y, x] > 0]
            assert torch.allclose(pooled[b, q], torch.stack(cells).mean(0), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_empty_mask_pools_to_zero_with_finite_gradient(dtype):
    features = torch.randn(1, 3, 4, 4, dtype=dtype, requires_grad=True)
    masks = torch.full((1, 2, 4, 4), -1.0)
    masks[0, 1, 0, 0] = 1
    pooled = mask_pool(features, masks)
    pooled.sum().backward()
    assert pooled[0, 0].abs().max() == 0
    assert torch.allclose(pooled[0, 1].float(), features[0, :, 0, 0].float())
    assert torch.isfinite(features.grad).all()


def test_weights_of_seen_and_unseen_classes_are_fc_clips_formula():
    """FC-CLIP, eq. 7, whose exponents are those of CLIP: alpha of seen and beta of unseen classes, among the objects."""
    learned, clip = logits()
    seen, alpha, beta = torch.tensor([1, 0, 1, 1, 0, 0]).double(), 0.4, 0.8
    p_in, p_out = learned.double()[..., :-1].softmax(-1), clip.double().softmax(-1)
    mixed = (p_in ** (1 - alpha) * p_out**alpha).log() * seen + (p_in ** (1 - beta) * p_out**beta).log() * (1 - seen)
    void = learned.double().softmax(-1)[..., -1:]
    expected = torch.cat([mixed.softmax(-1) * (1 - void), void], -1)
    weights = torch.where(seen > 0, 1 - alpha, 1 - beta).float()
    assert torch.allclose(geometric_ensemble(learned, clip, weights).exp().double(), expected, atol=1e-6)
