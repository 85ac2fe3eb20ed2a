"""SegKC: what the networks teach each other, and what inference needs."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dearli_d2.checkpoint import export, load_weights
from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.engine.cutmix import CutMix
from dearli_d2.engine.optimizer import parameter_groups
from dearli_d2.engine.strong_views import StrongViews
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, WeightsError
from dearli_d2.methods.segkc.model import Consultation
from dearli_d2.modeling import build_model
from dearli_d2.modeling.per_pixel.dpt_segmenter import DPTSegmenter
from dearli_d2.predict import Predictor
from dearli_d2.structures import Targets
from tests.conftest import SSL, train_until

ALONE = "MODEL.META_ARCHITECTURE", "DPTSegmenter"


@pytest.fixture
def segkc(mini_config):
    """segkc(*overrides): the miniworld config, unlabelled images from the first step."""
    return lambda *overrides: mini_config(*SSL, "SSL.CONFIDENCE", "0.1", *overrides, file="segkc.yaml")


def image(size=64):
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8)


def stripes(classes=(1, 5, 12), size=64, valid=None):
    """One horizontal stripe a class."""
    masks = torch.zeros(len(classes), size, size, dtype=torch.bool)
    for i, rows in enumerate(torch.arange(size).chunk(len(classes))):
        masks[i, rows] = True
    return Targets(torch.tensor(classes), masks, torch.ones(size, size).bool() if valid is None else valid)


def labeled(classes=(1, 5, 12)):
    return {"image": image(), "targets": stripes(classes), "inside": torch.ones(64, 64).bool()}


def unlabeled(of_senior=(0, 3), of_junior=(4, 2)):
    return {**labeled(of_senior), "senior_targets": stripes(of_junior)}


def with_open_gate(model):
    torch.nn.init.constant_(model.senior.consultation.gate, 0.7)
    return model


# ---------------------------------------------------------------------------------------------- what inference needs


def test_the_junior_needs_no_senior_at_inference(segkc):
    model = build_model(segkc()).eval()
    inputs = [{"image": image(50), "height": 90, "width": 70}]
    before = model(inputs)[0]["sem_seg"]
    del model.senior
    assert torch.equal(model(inputs)[0]["sem_seg"], before)
    assert before.shape == (16, 90, 70)


def test_an_exported_junior_predicts_bit_by_bit_the_same(segkc, tmp_path):
    cfg = segkc("SOLVER.MAX_ITER", "2", "MODEL.DPT.NORM", "BN", "INPUT.MIN_SIZE_TEST", "0")
    DualStreamTrainer(cfg).train()
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    small = tmp_path / "junior.pth"
    assert main(["checkpoint", "export", "--weights", path, "--out", str(small), "--which", "junior"]) == 0
    content = torch.load(small, weights_only=True)
    assert not any("senior" in name for name in content["model"])
    assert "SENIOR" not in content["config"]
    assert "DEVICE: auto" in small.with_suffix(".yaml").read_text()  # another machine may have no GPU
    alone_config = get_config(small.with_suffix(".yaml"))
    alone, whole = Predictor(alone_config, small), Predictor(cfg, path)
    assert type(alone.model) is DPTSegmenter
    picture = image(45).permute(1, 2, 0).numpy()
    assert np.array_equal(alone(picture).semantic, whole(picture).semantic)
    for inputs in ([{"image": image()}], [{"image": image()[:, :33]}]):
        assert torch.equal(alone.model(inputs)[0]["sem_seg"], whole.model(inputs)[0]["sem_seg"])


def test_export_of_a_run_without_a_junior_is_an_error(segkc, tmp_path, capsys):
    cfg = segkc(*ALONE, "SOLVER.MAX_ITER", "1", "DATASETS.UNLABELED", "()")
    DualStreamTrainer(cfg).train()
    with pytest.raises(WeightsError, match="no checkpoint of a SegKC run"):
        export(f"{cfg.OUTPUT_DIR}/model_final.pth", tmp_path / "j.pth", "junior")
    assert not list(tmp_path.glob("j.*"))
    command = ["checkpoint", "export", "--which", "junior", "--weights", f"{cfg.OUTPUT_DIR}/model_final.pth", "--out"]
    assert main([*command, str(tmp_path / "j.pth")]) == 2
    assert "SegKC" in capsys.readouterr().err


def test_the_senior_can_be_read_for_a_diagnosis(segkc):
    model, reader = build_model(segkc()), build_model(segkc("MODEL.SEGKC.READ", "senior"))
    reader.load_state_dict(model.state_dict())
    inputs = [{"image": image()}]
    junior, senior = (m.eval()(inputs)[0]["sem_seg"] for m in (model, reader))
    images = model.preprocess(inputs).tensor
    both = [F.interpolate(x, size=(64, 64), mode="bilinear").softmax(1)[0] for x in model.both_logits(images)]
    assert torch.allclose(junior, both[0], atol=1e-5)
    assert torch.allclose(senior, both[1], atol=1e-5)
    assert not torch.allclose(junior, senior, atol=1e-2)


# ---------------------------------------------------------------------------------------------- who teaches whom


def test_distillation_reaches_the_junior_alone(segkc):
    model = with_open_gate(build_model(segkc()).train())
    model({"labeled": [labeled()], "unlabeled": [unlabeled()]})["loss_kd"].backward()
    assert all(p.grad is None for p in model.senior.parameters())
    assert all(p.grad is not None for p in (*model.backbone.parameters(), *model.head.parameters()))


@pytest.mark.parametrize("grad", [False, True])
def test_the_seniors_losses_reach_the_junior_only_if_asked(segkc, grad):
    model = with_open_gate(build_model(segkc("MODEL.SEGKC.CONSULT_GRAD", str(grad))).train())
    losses = model({"labeled": [labeled()], "unlabeled": [unlabeled()]})
    (losses["loss_sup_senior"] + losses["unlabeled_loss_con_senior"]).backward()
    reached = any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    assert reached == grad
    assert all(p.grad is not None for p in model.senior.parameters() if p.requires_grad)


def test_labels_cross(segkc, monkeypatch):
    """Each network's labels go to the other: what the senior says changes the junior's loss alone, and the reverse."""
    model = build_model(segkc())
    samples = [{"image": image()}, {"image": image()}]
    labels = model.cross_labels(samples)
    model.eval()
    junior, senior = model.both_logits(model.preprocess(samples).tensor)
    for name, logits in (("targets", senior), ("senior_targets", junior)):
        probability, label = F.interpolate(logits, size=(64, 64), mode="bilinear").softmax(1).max(1)
        for target, p, best in zip(labels[name], probability, label, strict=True):
            assert torch.equal(target.valid, p >= model.confidence)
            assert torch.equal(target.semantic(), torch.where(p >= model.confidence, best, 255))
    model.train()
    known, base = [labeled()], unlabeled()
    changed = {"targets": "junior", "senior_targets": "senior"}
    for key, learner in changed.items():
        losses = [model({"labeled": known, "unlabeled": [x]}) for x in (base, {**base, key: stripes((9, 8))})]
        for name in losses[0]:
            same = torch.equal(losses[0][name], losses[1][name])
            assert same == (name != f"unlabeled_loss_con_{learner}"), name


def test_pseudo_labels_have_no_gradient_and_leave_the_mode_alone(segkc):
    model = build_model(segkc()).train()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    model.cross_labels([{"image": image()}])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    broken = [{"image": torch.zeros(2, 64, 64, dtype=torch.uint8)}]  # of two channels
    with pytest.raises(RuntimeError):
        model.cross_labels(broken)
    assert model.training


def test_running_statistics_see_labelled_and_strong_images_once(segkc):
    cfg = segkc("MODEL.DPT.NORM", "BN", "SOLVER.MAX_ITER", "1")
    trainer = DualStreamTrainer(cfg)
    norm = trainer.student.head.fuse["res2"].layers[2]
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, len(inputs[0]))))
    trainer.train()
    assert seen == [(False, 2), (True, 4)]  # weak views in eval mode, then 2 labelled and 2 strong ones
    counts = {int(b) for n, b in trainer.student.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {1}


def test_the_senior_starts_as_a_plain_network_and_then_consults(segkc):
    model = build_model(segkc()).eval()
    images = torch.randn(2, 3, 64, 64)
    plain = model.senior.head(model.senior.backbone(images))
    assert torch.equal(model.both_logits(images)[1], plain)
    with_open_gate(model)
    assert not torch.allclose(model.both_logits(images)[1], plain, atol=1e-3)
    without = build_model(segkc("MODEL.SEGKC.CONSULT", "False"))
    assert without.senior.consultation is None
    without.train()({"labeled": [labeled()]})["loss_sup_senior"].backward()
    model.train()
    model.senior.consultation.gate.data.zero_()
    model({"labeled": [labeled()]})["loss_sup_senior"].backward()
    assert model.senior.consultation.gate.grad.any()  # learns at once


def test_the_consultation_adds_the_gated_projection():
    part = Consultation(6, 4).double()
    torch.nn.init.constant_(part.gate, 0.7)
    own, junior = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 6, 4, 4).double()
    plain = torch.nn.functional.interpolate(part.project(junior), size=(8, 8), mode="bilinear")
    assert torch.allclose(part(own, junior), own + 0.7 * plain)
    part(own, junior).square().sum().backward()
    expected = (2 * (own + 0.7 * plain) * plain).sum()
    assert torch.allclose(part.gate.grad, expected)


def test_losses_are_halves_over_labelled_and_over_all_pixels(segkc):
    model = build_model(segkc("MODEL.DPT.NORM", "GN")).train()
    known, unknown = labeled(), unlabeled()
    known["targets"].masks[0] = False  # a third is not annotated
    known["targets"].valid[:22] = False
    unknown["inside"][:, 40:] = False  # padding
    unknown["targets"].valid[:10] = False  # below the confidence
    unknown["targets"].valid[:, 40:] = False
    losses = model({"labeled": [known], "unlabeled": [unknown]})
    images = model.preprocess([known, unknown]).tensor
    junior, senior = (F.interpolate(x, size=(64, 64), mode="bilinear").double() for x in model.both_logits(images))
    cross = {
        (who, i, key): F.cross_entropy(
            x[i : i + 1], [known, unknown][i][key].semantic()[None], ignore_index=255, reduction="sum"
        )
        for who, x in (("junior", junior), ("senior", senior))
        for i, key in ((0, "targets"), (1, "targets" if who == "junior" else "senior_targets"))
    }
    annotated, pixels = int((known["targets"].semantic() != 255).sum()), 64 * 40
    assert annotated == 42 * 64
    for who in ("junior", "senior"):
        key = "targets" if who == "junior" else "senior_targets"
        assert losses[f"loss_sup_{who}"].item() == pytest.approx(
            0.5 * cross[who, 0, "targets"].item() / annotated, rel=1e-4
        )
        assert losses[f"unlabeled_loss_con_{who}"].item() == pytest.approx(
            0.5 * cross[who, 1, key].item() / pixels, rel=1e-4
        )
    inside = torch.stack([known["inside"], unknown["inside"]])
    divergence = F.kl_div(
        (junior / 2).log_softmax(1), (senior / 2).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    assert losses["loss_kd"].item() == pytest.approx(4 * divergence[inside].mean().item(), rel=1e-4)
    assert set(model({"labeled": [known]})) == {"loss_sup_junior", "loss_sup_senior"}  # before SSL.START


def test_consistency_is_zero_where_nothing_is_confident(segkc):
    model = build_model(segkc()).train()
    model.confidence = 1.01
    labels = model.cross_labels([{"image": image()}])
    sample = {"image": image(), "inside": torch.ones(64, 64).bool(), **{name: part[0] for name, part in labels.items()}}
    losses = model({"labeled": [labeled()], "unlabeled": [sample]})
    for who in ("junior", "senior"):
        assert losses[f"unlabeled_loss_con_{who}"].item() == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_both_labels_are_mixed_alike():
    names = ("targets", "senior_targets")
    labels = {name: [stripes((c, c + 1)), stripes((c + 2, c + 3))] for c, name in zip((0, 8), names, strict=True)}
    views = StrongViews(CutMix(1.0), (), "cpu")
    inputs = []
    for width in (64, 40):
        inside = torch.zeros(64, 64).bool()
        inside[:, :width] = True
        inputs.append({"image": image(), "strong": image()[None], "inside": inside})
    for seed in range(5):
        mixed = views(inputs, labels, np.random.default_rng(seed))
        for i, sample in enumerate(mixed):
            pasted = (sample["image"] != inputs[i]["strong"][0]).any(0)
            for name in labels:
                expected = torch.where(pasted, labels[name][1 - i].semantic(), labels[name][i].semantic())
                assert torch.equal(sample[name].semantic(), expected)
            assert torch.equal(sample["inside"], torch.where(pasted, inputs[1 - i]["inside"], inputs[i]["inside"]))


def test_two_strong_views_share_labels_and_differ_in_the_mix(segkc):
    trainer = DualStreamTrainer(
        segkc("SSL.STRONG_VIEWS", "2", "SSL.CUTMIX", "1.0", "MODEL.DPT.FEATURE_DROPOUT", "True", "SOLVER.MAX_ITER", "1")
    )
    trainer.train()
    samples = trainer.batch["unlabeled"]
    assert len(samples) == 4
    for first, second in zip(samples[:2], samples[2:], strict=True):
        assert first["file_name"] == second["file_name"]
        assert first["pseudo_label"] is second["pseudo_label"]
        assert not torch.equal(first["image"], second["image"])


# ---------------------------------------------------------------------------------------------- networks


def test_a_pair_of_different_families_with_dinov2(segkc):
    """Patch 14 and stride 32: crops are multiples of both, inference of the junior's alone."""
    vit = ("MODEL.BACKBONE.ARCH", "vit_small_patch14_dinov2", "MODEL.BACKBONE.LAYERS", "(2, 5, 8, 11)")
    model = build_model(segkc(*vit))
    assert model.training_divisor == 14 * 16  # the ConvNeXt has stride 32
    assert model.divisor == 14
    with pytest.raises(ConfigError, match=r"CROP_SIZE 64 is no multiple of 224.*nearest are 224"):
        model.check_training(segkc(*vit))
    assert model.eval()([{"image": image(20)}])[0]["sem_seg"].shape == (16, 20, 20)


def test_learning_rates_of_backbones_and_heads(segkc):
    cfg = segkc("SOLVER.BASE_LR", "0.0002", "SOLVER.BACKBONE_MULTIPLIER", "0.025")
    model = build_model(cfg)
    rates = {name: group["lr"] for group in parameter_groups(cfg, model) for name in group["names"]}
    assert set(rates) == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        tower = name.startswith(("backbone.", "senior.backbone."))
        assert rate == pytest.approx(5e-6 if tower else 2e-4), name
    layers = "MODEL.BACKBONE.ARCH", "vit_tiny_patch16_224", "MODEL.BACKBONE.LAYERS", "(2, 5, 8, 11)"
    cfg = segkc(*layers, "SOLVER.BASE_LR", "0.0002", "SOLVER.BACKBONE_MULTIPLIER", "0.025")
    rates = {n: g["lr"] for g in parameter_groups(cfg, build_model(cfg)) for n in g["names"]}
    assert rates["backbone.pyramid.stages.0.0.weight"] == rates["head.classifier.weight"] == 2e-4
    assert rates["backbone.model.model.blocks.0.norm1.weight"] == pytest.approx(5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_agree_with_fp32_under_autocast(segkc, dtype):
    model = with_open_gate(build_model(segkc("MODEL.DPT.NORM", "GN")).train())
    streams = {"labeled": [labeled()], "unlabeled": [unlabeled()]}
    full = model(streams)
    with torch.autocast("cpu", dtype=dtype):
        half = model(streams)
    for name, loss in full.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(loss.item(), rel=0.05, abs=2e-3), name


# ---------------------------------------------------------------------------------------------- training


def test_a_run_resumes_bit_by_bit_and_scores_its_pseudo_labels(segkc, tmp_path):
    options = "SOLVER.MAX_ITER", "4", "SSL.CUTMIX", "1.0", "SSL.MONITOR_PERIOD", "2", "SSL.MONITOR_IMAGES", "2"
    whole = DualStreamTrainer(segkc(*options, "OUTPUT_DIR", str(tmp_path / "whole")))
    assert whole.teacher is None
    whole.train()
    assert "pseudo_label/mIoU" in (tmp_path / "whole" / "metrics.json").read_text()
    cfg = segkc(*options, "OUTPUT_DIR", str(tmp_path / "parts"))
    train_until(cfg, 3)
    resumed = DualStreamTrainer(cfg, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    one, two = (torch.load(tmp_path / n / "model_final.pth", weights_only=True) for n in ("whole", "parts"))
    assert "teacher" not in one
    assert all(torch.equal(tensor, two["model"][name]) for name, tensor in one["model"].items())
    assert set(resumed.batch["unlabeled"][0]) >= {"targets", "senior_targets"}


def test_a_resumed_run_has_the_unlabelled_images_that_it_had(segkc, tmp_path):
    without = segkc("SOLVER.MAX_ITER", "1", "DATASETS.UNLABELED", "()", "OUTPUT_DIR", str(tmp_path / "without"))
    DualStreamTrainer(without).train()
    with pytest.raises(ConfigError, match="without unlabelled images at iteration 1, after SSL.START 0"):
        DualStreamTrainer(segkc("OUTPUT_DIR", without.OUTPUT_DIR), resume=True)
    taught = segkc("SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path / "taught"))
    DualStreamTrainer(taught).train()
    with pytest.raises(ConfigError, match="resume it with its DATASETS.UNLABELED"):
        DualStreamTrainer(segkc("DATASETS.UNLABELED", "()", "OUTPUT_DIR", taught.OUTPUT_DIR), resume=True)


def test_the_junior_alone_learns_from_an_ema_teacher_too(segkc):
    trainer = DualStreamTrainer(segkc(*ALONE, "SOLVER.MAX_ITER", "2"))
    trainer.train()
    assert trainer.teacher is not None
    assert set(trainer.student.losses(trainer.batch)) == {"loss_sup", "unlabeled_loss_con"}


def test_two_equal_networks_are_allowed_with_a_warning(segkc, caplog):
    same = ("MODEL.SENIOR.BACKBONE.NAME", "TimmBackbone", "MODEL.SENIOR.BACKBONE.ARCH", "resnet10t",
            "MODEL.SENIOR.BACKBONE.WEIGHTS", "", "MODEL.SENIOR.DIM", "32")  # fmt: skip
    cfg = segkc(*same)
    model = build_model(cfg)
    with caplog.at_level(logging.WARNING):
        model.check_training(cfg)
    assert "same network" in caplog.text
    own, other = model.backbone.state_dict(), model.senior.backbone.state_dict()
    assert any(not torch.equal(own[n], other[n]) for n in own)  # different starts
    caplog.clear()
    build_model(segkc()).check_training(segkc())
    assert "same network" not in caplog.text


def test_weights_without_a_senior_do_not_load_into_a_pair(segkc, tmp_path):
    alone = build_model(segkc(*ALONE))
    torch.save({"model": alone.state_dict()}, tmp_path / "alone.pth")
    with pytest.raises(WeightsError, match=r"senior\.backbone"):
        load_weights(build_model(segkc()), tmp_path / "alone.pth")


VIT = "MODEL.BACKBONE.ARCH", "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.SEGKC.READ", "both"), "READ is 'both'"),
        (("MODEL.SEGKC.KD_TEMPERATURE", "0.0"), "KD_TEMPERATURE"),
        (("MODEL.SEGKC.KD_WEIGHT", "-1.0"), "KD_WEIGHT"),
        (("MODEL.DPT.NORM", "LN"), "NORM is 'LN'"),
        (("TEST.WEIGHTS", "teacher"), "no EMA teacher"),
        (("SSL.TEACHER_WEIGHTS", "x.pth"), "no EMA teacher"),
        (("TEST.PANOPTIC_ON", "True"), "SegKC segments semantically"),
        (("SSL.STRONG_VIEWS", "3"), "STRONG_VIEWS"),
        ((*VIT, "MODEL.BACKBONE.LAYERS", "(2, 5, 8)"), "LAYERS"),
        ((*VIT, "MODEL.BACKBONE.LAYERS", "(5, 2, 8, 11)"), "LAYERS is .*from low to high"),
        (("MODEL.SENIOR.BACKBONE.LAYERS", "(2, 5, 8, 11)"), "SENIOR.BACKBONE.LAYERS.*TimmBackbone"),
        (
            ("MODEL.SENIOR.BACKBONE.CHECKPOINT_BLOCKS", "True", "MODEL.SENIOR.BACKBONE.NAME", "SwinBackbone"),
            "SENIOR.*CHECKPOINT_BLOCKS is for",
        ),
        (
            ("MODEL.SENIOR.BACKBONE.CHECKPOINT_BLOCKS", "True", "MODEL.SENIOR.BACKBONE.FREEZE", "True"),
            "SENIOR.*CHECKPOINT_BLOCKS saves nothing",
        ),
        (("MODEL.BACKBONE.LEVEL_DIMS", "(1, 2)"), "LEVEL_DIMS"),
    ],
)
def test_impossible_values_are_config_errors(segkc, overrides, message):
    with pytest.raises(ConfigError, match=message):
        segkc(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*VIT, "MODEL.BACKBONE.LAYERS", "(2, 5, 8, 12)"), "has the blocks 0 to 11"),
        (("MODEL.BACKBONE.LAYERS", "(0, 1, 2, 3)"), "resnet10t is no plain ViT"),
        (("MODEL.BACKBONE.NAME", "build_resnet_backbone"), "needs res2, res3, res5 too"),
    ],
)
def test_backbones_without_the_asked_layers_are_errors(segkc, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_model(segkc(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("ARCH", "vit_none"), "MODEL.SENIOR.BACKBONE.ARCH: timm has no model"),
        (("WEIGHTS", "none.pth"), "MODEL.SENIOR.BACKBONE.WEIGHTS: 'none.pth' is no file"),
    ],
)
def test_errors_of_the_senior_name_its_keys(segkc, overrides, message):
    values = {"NAME": "TimmBackbone", "ARCH": "resnet10t", "WEIGHTS": "", overrides[0]: overrides[1]}
    cfg = segkc(*(x for key, value in values.items() for x in (f"MODEL.SENIOR.BACKBONE.{key}", value)))
    with pytest.raises((ConfigError, WeightsError), match=message):
        build_model(cfg)
