"""The EMA teacher: closed form, shared frozen modules, burn-in, state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dearli_d2.engine.teacher import EMATeacher, build_labeler, frozen_modules
from dearli_d2.modeling import build_model
from dearli_d2.modeling.labeler import SelfLabeler
from tests.conftest import SSL


class Frozen(nn.Sequential):
    """Stays in eval mode, as the project's frozen backbones do."""

    def train(self, mode: bool = True):
        return super().train(False)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Frozen(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        self.half_frozen = nn.Linear(3, 3).requires_grad_(False)  # frozen, but follows train(): not shared
        self.head = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("constant", torch.ones(1), persistent=False)
        self.train()


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.norm.running_mean.copy_(torch.randn(2, generator=generator))
        model.norm.num_batches_tracked.fill_(seed)


def test_closed_form_after_n_updates():
    student = Small()
    teacher = EMATeacher(student, decay=0.8)
    expected, history = None, []
    for step in range(12):
        randomise(student, step)
        teacher.update(student)
        weight = student.head.weight.detach().double()
        gamma = min(1 - 1 / (step + 1), 0.8)
        expected = weight if expected is None else gamma * expected + (1 - gamma) * weight
        history.append(weight)
        torch.testing.assert_close(teacher.model.head.weight.double(), expected, rtol=1e-6, atol=1e-6)
        if step < 5:  # while 1 - 1 / (t + 1) is the smaller one, the teacher is the plain mean
            torch.testing.assert_close(expected, torch.stack(history).mean(0))
        assert torch.equal(teacher.model.norm.running_mean, student.norm.running_mean)
        assert teacher.model.norm.num_batches_tracked == step


def test_the_first_update_copies_the_student():
    student = Small()
    teacher = EMATeacher(student)
    randomise(student, 7)
    assert not torch.equal(teacher.model.head.weight, student.head.weight)
    teacher.update(student)
    assert torch.equal(teacher.model.head.weight, student.head.weight)
    assert teacher.model.head.weight.data_ptr() != student.head.weight.data_ptr()


def test_burn_in_keeps_the_start_weights_and_ends_as_the_student():
    student = Small()
    teacher = EMATeacher(student, decay=0.9, burn_in=3)
    start = teacher.model.head.weight.clone()
    randomise(student, 1)
    for _ in range(3):
        teacher.update(student)
        assert torch.equal(teacher.model.head.weight, start)
    teacher.update(student)
    copied = student.head.weight.detach().clone()
    assert torch.equal(teacher.model.head.weight, copied)
    randomise(student, 2)
    teacher.update(student)  # no ramp: the average of few steps would not be slow
    torch.testing.assert_close(teacher.model.head.weight, 0.9 * copied + 0.1 * student.head.weight.detach())


def test_without_a_ramp_the_start_weights_fade_as_the_decay_says():
    """0.999 a step leaves 0.905 of them after 100 steps, 0.368 after 1000 (DEARLi's stage 3 after the warm-up)."""
    student = Small()
    teacher = EMATeacher(student, decay=0.999, ramp=False)
    with torch.no_grad():
        teacher.model.head.weight.fill_(1)
        student.head.weight.zero_()
    for step, left in ((100, 0.905), (1000, 0.368)):
        while teacher.updates < step:
            teacher.update(student)
        assert teacher.model.head.weight.max().item() == pytest.approx(left, abs=5e-4)


def test_exactly_the_frozen_modules_are_shared():
    student = Small()
    teacher = EMATeacher(student)
    assert frozen_modules(student) == [student.backbone]
    assert teacher.model.backbone is student.backbone
    for name in ("half_frozen", "head", "norm"):
        mine, theirs = getattr(teacher.model, name), getattr(student, name)
        assert mine is not theirs
        assert {p.data_ptr() for p in mine.parameters()}.isdisjoint(p.data_ptr() for p in theirs.parameters())
    assert set(teacher.own_state()) == {n for n in student.state_dict() if not n.startswith("backbone.")}
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert student.head.weight.requires_grad


def test_the_dearli_model_shares_its_backbone_and_nothing_else(mini_config):
    model = build_model(mini_config())
    teacher = EMATeacher(model)
    own = {t.data_ptr() for t in model.state_dict().values()}
    shared = {n for n, t in teacher.model.state_dict().items() if t.data_ptr() in own}
    assert shared == {n for n in model.state_dict() if n.startswith("backbone.")}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    copied = sum(t.numel() for t in teacher.own_state().values())
    assert copied == trainable  # a copy of the 20 M that train, not of the 200 M


def test_teacher_does_not_change_when_the_student_trains_or_changes_mode(mini_config, make_targets):
    model = build_model(mini_config()).train()
    teacher = EMATeacher(model)
    inputs = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    results = []
    for mode in (True, False):
        model.train(mode)
        results.append(teacher.pseudo_label(inputs)[0])
        assert model.training is mode
        assert not teacher.model.training
    assert torch.equal(results[0].masks, results[1].masks)
    model.train()
    model([{"image": inputs[0]["image"], "targets": make_targets(2)}])["loss_ce"].backward()
    assert all(p.grad is None for p in teacher.model.parameters())


def test_state_round_trip_and_a_stranger_is_refused():
    student = Small()
    teacher = EMATeacher(student, decay=0.9)
    for step in range(3):
        randomise(student, step)
        teacher.update(student)
    other = EMATeacher(Small(), decay=0.9)
    other.load_state_dict(teacher.state_dict())
    assert other.updates == 3
    assert torch.equal(other.model.head.weight, teacher.model.head.weight)
    state = teacher.state_dict()
    del state["model"]["head.weight"]
    with pytest.raises(KeyError, match="teacher of another model"):
        other.load_state_dict(state)


def test_start_weights_leave_the_shared_part_alone(tmp_path):
    student = Small()
    teacher, other = EMATeacher(student), Small()
    randomise(other, 5)
    with torch.no_grad():
        other.backbone[0].weight.fill_(9)
    torch.save({"model": other.state_dict()}, tmp_path / "w.pth")
    teacher.load_weights(tmp_path / "w.pth")
    assert torch.equal(teacher.model.head.weight, other.head.weight)
    assert not (student.backbone[0].weight == 9).any()


def test_the_teacher_is_the_student_until_its_first_step_with_unlabelled_images():
    student = Small()
    teacher = EMATeacher(student, decay=0.5, ramp=False, start=2)
    for step in range(3):
        randomise(student, step)
        teacher.follow(student, step)
        assert torch.equal(teacher.model.head.weight, student.head.weight) == (step < 2)
    assert teacher.updates == 1


def test_a_model_declares_who_labels_its_unlabelled_images(mini_config):
    """The EMA teacher unless the model has a labeler of its own; without unlabelled images nobody."""
    dear, segkc = mini_config(*SSL, file="dear.yaml"), mini_config(*SSL, file="segkc.yaml")
    teacher = build_labeler(dear, build_model(dear))
    assert isinstance(teacher, EMATeacher)
    assert teacher.start == dear.SSL.START
    model = build_model(segkc)
    own = build_labeler(segkc, model)
    assert isinstance(own, SelfLabeler)
    assert (own.model, own.state_dict()) == (None, {})
    weak = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    labels, expected = own.label(weak), model.cross_labels(weak)
    assert set(labels) == {"targets", "senior_targets"}
    assert all(torch.equal(labels[name][0].masks, expected[name][0].masks) for name in expected)
    assert build_labeler(mini_config(file="m2f.yaml"), build_model(mini_config(file="m2f.yaml"))) is None


def test_an_update_walks_through_no_modules_and_finds_tensors_that_were_replaced(monkeypatch):
    student = Small()
    teacher = EMATeacher(student, decay=0.5, ramp=False)
    teacher.update(student)
    student.double(), teacher.model.double()  # new tensors: buffers are other objects, parameters have other memory
    student.norm.running_mean = torch.full((2,), 3.0, dtype=torch.float64)
    student.head.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    before = teacher.model.head.weight.clone()
    for walk in ("state_dict", "named_modules", "named_parameters", "parameters"):
        monkeypatch.setattr(nn.Module, walk, lambda *_, **__: pytest.fail("a walk through the modules"))
    teacher.update(student)
    assert torch.equal(teacher.model.norm.running_mean, student.norm.running_mean)
    torch.testing.assert_close(teacher.model.head.weight, (before + 1) / 2)
