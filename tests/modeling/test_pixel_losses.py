"""DyCE and the losses it is compared with, against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dearli_d2.config.schema import schema
from dearli_d2.errors import ConfigError
from dearli_d2.methods.segkc.losses import distillation_loss
from dearli_d2.modeling.per_pixel import losses as pixel_losses
from dearli_d2.modeling.per_pixel.losses import (
    LOSSES,
    PixelLoss,
    consistency_loss,
    cross_entropy_loss,
    dual_cross_entropy_loss,
    dual_focal_loss,
    dyce_loss,
    focal_loss,
    hard_targets,
    pixel_cross_entropy,
    summed_loss,
    supervised_loss,
)


def batch(classes=4, size=9, ignored=0.2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, size, size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (2, size, size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    return logits.to(dtype), target


def by_hand(logits, target, hard_fraction, omega):
    """Loss and its gradient, pixel by pixel in float64."""
    rows = logits.double().permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    labels = target.flatten().tolist()
    probability = [torch.softmax(row, 0) for row in rows]
    losses = {i: -float(probability[i][y].log()) for i, y in enumerate(labels) if y != 255}
    count = max(1, round(hard_fraction * len(losses)))
    hard = sorted(losses, key=losses.get, reverse=True)[:count]
    loss, gradient = 0.0, torch.zeros_like(rows)
    for i in hard:
        of_class = sum(labels[j] == labels[i] for j in hard)
        weight = count**-omega * of_class ** (omega - 1)
        loss += weight * losses[i]
        gradient[i] = weight * (probability[i] - F.one_hot(torch.tensor(labels[i]), len(rows[0])))
    batch, classes, height, width = logits.shape
    return loss, gradient.view(batch, height, width, classes).permute(0, 3, 1, 2)


@pytest.mark.parametrize("omega", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("hard_fraction", [0.05, 0.2, 1.0])
def test_dyce_and_its_gradient_equal_the_closed_form(hard_fraction, omega):
    logits, target = batch()
    logits.requires_grad_()
    loss = dyce_loss(logits, target, hard_fraction, omega)
    loss.backward()
    expected, gradient = by_hand(logits.detach(), target, hard_fraction, omega)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(logits.grad.double(), gradient, atol=1e-6)


def test_gradient_equals_finite_differences():
    """In float64; the step is too small to change which pixels are hard."""
    logits, target = batch(dtype=torch.float64, size=4)
    _, gradient = by_hand(logits, target, 0.3, 0.5)
    step = 1e-6
    for index in ((0, 1, 2, 3), (1, 0, 0, 1), (1, 3, 3, 2), (0, 2, 1, 1)):
        moved = [logits.clone() for _ in range(2)]
        moved[0][index] -= step
        moved[1][index] += step
        low, high = (by_hand(m, target, 0.3, 0.5)[0] for m in moved)
        assert (high - low) / (2 * step) == pytest.approx(float(gradient[index]), abs=1e-7)


def test_omega_one_over_all_pixels_is_cross_entropy():
    logits, target = batch()
    expected = F.cross_entropy(logits, target, ignore_index=255)
    assert torch.allclose(dyce_loss(logits, target, 1.0, 1.0), expected, rtol=1e-6)
    assert torch.allclose(cross_entropy_loss(logits, target), expected, rtol=1e-6)


def test_omega_zero_over_all_pixels_is_the_sum_of_class_means():
    logits, target = batch()
    losses = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
    expected = sum(losses[target == c].mean() for c in range(4))
    assert torch.allclose(dyce_loss(logits, target, 1.0, 0.0), expected, rtol=1e-6)


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
def test_every_pixel_twice_changes_nothing(omega):
    logits, target = batch(size=10, ignored=0.0)
    twice = dyce_loss(logits.repeat(2, 1, 1, 1), target.repeat(2, 1, 1), 0.2, omega)
    assert torch.allclose(twice, dyce_loss(logits, target, 0.2, omega), rtol=1e-5)


def test_a_rarer_class_weighs_more_per_pixel():
    logits = torch.zeros(1, 2, 4, 8, requires_grad=True)
    per_pixel = []
    for columns in (4, 2):  # of class 1
        target = torch.zeros(1, 4, 8, dtype=torch.int64)
        target[..., :columns] = 1
        (gradient,) = torch.autograd.grad(dyce_loss(logits, target, 1.0, 0.5), logits)
        per_pixel.append(float(gradient[0, 1, 0, 0].abs()))
    assert per_pixel[1] == pytest.approx(per_pixel[0] * 2**0.5, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_to_learn_is_zero_with_a_graph(name):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = PixelLoss(name, 3)(logits, torch.full((1, 4, 4), 255))
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_have_no_influence(name):
    logits, target = batch()
    changed = torch.where((target == 255)[:, None], 50 * torch.randn(logits.shape), logits)
    loss = PixelLoss(name, 4)
    assert torch.equal(loss(logits, target), loss(changed, target))


def test_an_ignored_pixel_is_never_hard_not_even_among_perfect_ones():
    target = torch.randint(0, 3, (1, 6, 6))
    logits = 1e4 * torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2).float()
    target[0, :3] = 255
    assert dyce_loss(logits, target, 1.0).item() == 0


def test_one_valid_pixel_is_always_hard():
    logits = torch.randn(1, 3, 4, 4)
    target = torch.full((1, 4, 4), 255)
    target[0, 2, 1] = 1
    expected = F.cross_entropy(logits[:, :, 2, 1], torch.tensor([1]))
    assert torch.allclose(dyce_loss(logits, target, 0.01, 0.5), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_full(name):
    logits, target = batch(size=16)
    loss = PixelLoss(name, 4)
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(half, target)
    assert result.dtype == torch.float32
    assert torch.allclose(result, loss(half.float(), target), rtol=1e-3)


def reference(logits, target, of_pixel):
    """Mean of a function of (probabilities, class) over valid pixels, in float64."""
    rows = logits.double().permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    pairs = [(row.softmax(0), y) for row, y in zip(rows, target.flatten().tolist(), strict=True) if y != 255]
    return sum(float(of_pixel(p, y)) for p, y in pairs) / len(pairs)


def test_focal_and_dual_losses_equal_their_formulas():
    logits, target = batch()
    wrong = lambda p, y: torch.cat([p[:y], p[y + 1 :]])  # noqa: E731
    cases = {
        focal_loss: lambda p, y: -((1 - p[y]) ** 2) * p[y].log(),
        dual_cross_entropy_loss: lambda p, y: -p[y].log() + (1 + wrong(p, y)).log().sum(),
        dual_focal_loss: lambda p, y: -p[y].log() + (1 - p[y]) + (wrong(p, y) - (1 - wrong(p, y)).log()).sum(),
    }
    for function, formula in cases.items():
        assert float(function(logits, target)) == pytest.approx(reference(logits, target, formula), rel=1e-5)


def test_weighted_cross_entropy_is_torchs_with_weights_of_inverse_frequency():
    logits, target = batch()
    loss = PixelLoss("weighted_ce", 4)
    loss.weigh(torch.tensor([1000.0, 10.0, 100.0, 0.0]))
    assert float(loss.class_weight[1] / loss.class_weight[0]) == pytest.approx(100)
    assert loss.class_weight[3] == loss.class_weight[1]  # no pixel: as the rarest
    assert float(loss.class_weight[:3].mean()) == pytest.approx(1)
    expected = F.cross_entropy(logits, target, loss.class_weight, ignore_index=255)
    assert torch.allclose(loss(logits, target), expected, rtol=1e-5)
    assert "class_weight" in loss.state_dict()


def test_the_config_knows_the_losses():
    assert tuple(LOSSES) == schema()["MODEL.SEMIDAVIL.LOSS"].options
    with pytest.raises(ConfigError, match="dice"):
        PixelLoss("dice", 3)


# ------------------------------------------------------------------------------------- sums over chunks of images


@pytest.mark.parametrize("images", [1, 2, 5])
def test_a_summed_loss_holds_few_images_at_full_size(images, monkeypatch):
    monkeypatch.setattr(pixel_losses, "CHUNK_VALUES", images * 3 * 64 + 5)
    logits = torch.randn(5, 3, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (5, 8, 8))
    target[1:3, :5] = 255
    held = []

    def loss(full, target):
        held.append(full.shape)
        return pixel_cross_entropy(full, target)

    total = summed_loss(loss, (logits,), (target,))
    assert held == [(b, 3, 8, 8) for b in {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[images]]
    (gradient,) = torch.autograd.grad(total, logits)
    # what the backward pass needs was computed anew, except where all fits at once
    assert len(held) == {1: 10, 2: 6, 5: 1}[images]
    double = logits.detach().double().requires_grad_()
    full = F.interpolate(double, size=(8, 8), mode="bilinear")
    expected = F.cross_entropy(full, target, ignore_index=255, reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient.double(), torch.autograd.grad(expected, double)[0], atol=1e-5)


def test_losses_of_low_resolution_equal_those_of_full_resolution(monkeypatch):
    monkeypatch.setattr(pixel_losses, "CHUNK_VALUES", 1)
    teacher, student = torch.randn(2, 3, 4, 6, 5)
    target, inside = torch.randint(0, 4, (3, 13, 9)), torch.rand(3, 13, 9) < 0.8
    target[torch.rand(3, 13, 9) < 0.3] = 255
    theirs, own = (F.interpolate(x.double(), size=(13, 9), mode="bilinear") for x in (teacher, student))
    entropy = F.cross_entropy(own, target, ignore_index=255, reduction="sum")
    divergence = F.kl_div((own / 2).log_softmax(1), (theirs / 2).softmax(1), reduction="none").sum(1)[inside].mean()
    supervised = supervised_loss(student, target).item()
    assert supervised == pytest.approx((entropy / (target != 255).sum()).item(), rel=1e-5)
    consistent = consistency_loss(student, target, inside).item()
    assert consistent == pytest.approx((entropy / inside.sum()).item(), rel=1e-5)
    assert distillation_loss(teacher, student, inside, 2.0).item() == pytest.approx(4 * divergence.item(), rel=1e-5)


@pytest.mark.parametrize(("keep", "below"), [(1, 0.0), (30, 0.3), (10, 0.7), (300, 0.7), (1, 1.0)])
def test_hard_pixels_are_those_below_a_probability_and_the_hardest(keep, below):
    """Pixel by pixel: sorted by the probability of the true class."""
    logits, target = 3 * torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 9, 10))
    target[torch.rand(2, 9, 10) < 0.4] = 255
    full = F.interpolate(logits.double(), size=(9, 10), mode="bilinear").softmax(1)
    pixels = [i for i in np.ndindex(2, 9, 10) if target[i] != 255]
    pixels.sort(key=lambda i: full[i[0], target[i], i[1], i[2]].item())
    hard = {i for n, i in enumerate(pixels) if n < 2 * keep or full[i[0], target[i], i[1], i[2]] <= below}
    kept = hard_targets(logits, target, keep, below)
    assert {i for i in np.ndindex(2, 9, 10) if kept[i] != 255} == hard
    assert torch.equal(kept[kept != 255], target[kept != 255])


def test_where_no_pixel_is_annotated_none_is_hard():
    assert (hard_targets(torch.randn(1, 3, 2, 2), torch.full((1, 4, 4), 255), 5) == 255).all()


def test_distillation_is_kl_divergence_of_softened_distributions():
    teacher, student = torch.randn(2, 2, 5, 4, 3).double().float()
    teacher.requires_grad_()
    student.requires_grad_()
    inside = torch.ones(2, 4, 3).bool()
    inside[0, 0] = False
    loss = distillation_loss(teacher, student, inside, 2.0)
    expected = F.kl_div(
        (student.double() / 2).log_softmax(1), (teacher.double() / 2).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    assert loss.item() == pytest.approx(4 * expected[inside].mean().item(), rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert student.grad[:, :, 1:].any()
    assert not student.grad[0, :, 0].any()  # padding


def test_distillation_is_zero_for_equal_logits_and_up_to_a_constant():
    logits, inside = torch.randn(1, 5, 4, 4), torch.ones(1, 4, 4).bool()
    assert distillation_loss(logits, logits.clone(), inside, 2.0).item() == pytest.approx(0, abs=1e-6)
    shifted = logits + 3 * torch.randn(1, 1, 4, 4)
    assert distillation_loss(logits, shifted, inside, 2.0).item() == pytest.approx(0, abs=1e-5)
    assert distillation_loss(logits, torch.randn(1, 5, 4, 4), inside, 2.0) > 0.1


def test_temperature_squared_keeps_the_size_of_the_gradient():
    teacher, inside = 0.1 * torch.randn(1, 5, 8, 8), torch.ones(1, 8, 8).bool()
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        student = (0.1 * torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(1))).requires_grad_()
        distillation_loss(teacher, student, inside, temperature).backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    assert sizes[2] == pytest.approx(sizes[0], rel=0.1)
