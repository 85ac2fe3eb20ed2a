"""Properties of the set criterion beyond its parity with Hugging Face's."""

from __future__ import annotations

import pytest
import torch

from dearli_d2.modeling.mask2former.criterion import SetCriterion
from dearli_d2.modeling.mask2former.losses import mask_bce, mask_dice, sample_points
from dearli_d2.modeling.mask2former.matcher import HungarianMatcher
from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput
from dearli_d2.structures import Targets


def build(classes=4, **options):
    return SetCriterion(classes, HungarianMatcher(num_points=64), num_points=64, **options)


def predictions(batch=2, queries=6, classes=4, layers=2, size=16):
    class_logits = torch.randn(layers, batch, queries, classes + 1, requires_grad=True)
    embeddings = torch.randn(layers, batch, queries, 8, requires_grad=True)
    features = torch.randn(batch, 8, size, size, requires_grad=True)
    return class_logits, DecoderOutput(class_logits, embeddings, features)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0), (8, 1)])
def test_no_segments_and_too_many_are_finite_and_reach_every_input(counts, make_targets):
    class_logits, output = predictions()
    losses = build()(class_logits, output, [make_targets(n, classes=4, seed=i) for i, n in enumerate(counts)])
    assert set(losses) == {f"loss_{k}{s}" for k in ("ce", "mask", "dice") for s in ("", "_0")}
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    for tensor in (class_logits, output.mask_embeddings, output.mask_features):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    if counts == (0, 0):
        assert losses["loss_mask"].item() == 0
        assert losses["loss_ce"].item() > 0  # only the no-object term


def test_perfect_prediction_has_almost_no_loss():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, 32:] = True, True
    features = torch.nn.functional.interpolate(masks[None].float(), size=(16, 16)) * 2 - 1
    embeddings = 60 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    logits = 30 * torch.eye(3)[[1, 0, 2]]
    output = DecoderOutput(logits[None, None], embeddings[None, None], features)
    losses = build(classes=2)(logits[None, None], output, [Targets(torch.tensor([1, 0]), masks)])
    assert float(losses["loss_ce"]) < 1e-4
    assert float(losses["loss_dice"]) < 0.35  # only points on the edge are soft
    wrong = build(classes=2)(logits[None, None], output, [Targets(torch.tensor([0, 1]), masks)])
    assert float(wrong["loss_ce"]) > 5


def test_padded_pixels_get_no_loss(make_targets):
    """Whatever stands in the padding of target or prediction changes no mask loss."""
    torch.manual_seed(0)
    class_logits, output = predictions(batch=1)
    valid = torch.ones(64, 64, dtype=torch.bool)
    valid[:, 40:] = False
    target = make_targets(3, classes=4)
    target.masks[:, :, 40:] = False
    flipped = target.masks.clone()
    flipped[:, :, 44:] = True
    results = []
    for masks in (target.masks, flipped):
        torch.manual_seed(1)
        losses = build()(class_logits, output, [Targets(target.labels, masks, valid)])
        results.append(torch.stack(list(losses.values())))
    assert torch.equal(*results)
    output.mask_features.grad = None
    results[0].sum().backward()
    assert float(output.mask_features.grad[..., 12:].abs().max()) == 0  # one stride beyond the last valid cell
    assert float(output.mask_features.grad[..., :9].abs().max()) > 0


def test_class_weight_zero_leaves_the_class_head_without_gradient(make_targets):
    class_logits, output = predictions()
    criterion = SetCriterion(4, HungarianMatcher(class_weight=0.0, num_points=64), class_weight=0.0, num_points=64)
    losses = criterion(class_logits, output, [make_targets(2), make_targets(1)])
    assert not any("loss_ce" in name for name in losses)
    sum(losses.values()).backward()
    assert class_logits.grad is None


def test_loss_is_divided_by_the_number_of_masks(make_targets):
    """Two equal images have the loss of one."""
    _, output = predictions(batch=1)
    class_logits = 20 * torch.eye(6, 5).expand(2, 1, 6, 5)  # leaves no doubt about the pairs
    target = Targets(torch.arange(3), make_targets(3).masks)
    twice = DecoderOutput(
        class_logits.repeat(1, 2, 1, 1),
        output.mask_embeddings.repeat(1, 2, 1, 1),
        output.mask_features.repeat(2, 1, 1, 1),
    )
    # with every candidate point taken the draws differ little
    options = {"num_points": 20000, "importance_sample_ratio": 0.0}
    criterion = SetCriterion(4, HungarianMatcher(class_weight=1e4, num_points=2000), **options)
    one = criterion(class_logits, output, [target])
    two = criterion(twice.class_outputs, twice, [target, target])
    for name in one:
        assert one[name].item() == pytest.approx(two[name].item(), rel=0.03), name


def test_point_losses_equal_their_definition():
    logits, targets = torch.randn(3, 40), (torch.rand(3, 40) > 0.5).float()
    valid = (torch.rand(3, 40) > 0.4).float()
    for row in range(3):
        x, t = logits[row, valid[row].bool()].double(), targets[row, valid[row].bool()].double()
        p = x.sigmoid()
        bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        assert float(mask_bce(logits, targets, valid)[row]) == pytest.approx(float(bce), rel=1e-5)
        assert float(mask_dice(logits, targets, valid)[row]) == pytest.approx(float(dice), rel=1e-5)


@pytest.mark.parametrize("points", [64, 75])  # logarithms of products of 64 factors, and of single factors
def test_gradient_of_the_cross_entropy_equals_that_of_pytorch(points):
    logits, targets = 20 * torch.randn(3, points), torch.rand(3, points)
    weight, upstream = (torch.rand(3, points) > 0.4).float(), torch.tensor([1.0, -2.0, 0.5])
    for valid in (None, weight):
        ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(theirs, targets.double(), reduction="none")
        share = torch.ones_like(loss) if valid is None else valid.double()
        expected = (loss * share).sum(-1) / share.sum(-1)
        found = mask_bce(ours, targets, valid)
        (found * upstream).sum().backward()
        (expected * upstream).sum().backward()
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-8)


def test_sampling_a_coordinate_map_returns_the_points():
    points = torch.rand(1, 50, 2) * 1.6 - 0.8
    y, x = torch.meshgrid((torch.arange(32) + 0.5) / 32, (torch.arange(48) + 0.5) / 48, indexing="ij")
    sampled = sample_points(torch.stack([x, y])[None], points)
    assert torch.allclose(sampled[0].T, (points[0] + 1) / 2, atol=1e-5)
