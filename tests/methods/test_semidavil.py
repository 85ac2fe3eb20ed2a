"""The SemiDAViL model on the tiny CLIP."""

from __future__ import annotations

import pytest
import torch

from dearli_d2.data.build import TrainingImages, build_labeled_mapper
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.compact import unpacked
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError
from dearli_d2.modeling import build_model
from dearli_d2.modeling.clip.text_tower import text_tower_of
from dearli_d2.modeling.per_pixel.losses import dyce_loss
from dearli_d2.structures import Targets
from tests.conftest import train_until

CAPTION = "a picture of grass and striped red"


def sample(targets=None, size=64):
    result = {"image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8), "caption": CAPTION, "file_name": "a"}
    return result if targets is None else {**result, "targets": targets}


def labels(classes=(1, 5, 12), size=64, valid=True):
    """One horizontal stripe a class."""
    masks = torch.zeros(len(classes), size, size, dtype=torch.bool)
    for i, rows in enumerate(torch.arange(size).chunk(len(classes))):
        masks[i, rows] = True
    return Targets(torch.tensor(classes), masks, torch.full((size, size), valid))


@pytest.mark.parametrize(
    "choice",
    [("HEAD", "upsample"), ("HEAD", "dpt"), ("HEAD", "mask2former"), ("ATTENTION", "wpct"), ("ATTENTION", "vlga")],
)
def test_every_head_and_attention_trains_every_parameter(semidavil, choice):
    model = build_model(semidavil(f"MODEL.SEMIDAVIL.{choice[0]}", choice[1])).train()
    torch.nn.init.normal_(model.guidance.project.weight, std=0.1)
    streams = {"source": [sample(labels())] * 2, "unlabeled": [sample(labels((0, 3)))]}
    losses = model(streams)
    assert set(losses) == {"loss_sup", "unlabeled_loss_con"}
    sum(losses.values()).backward()
    unused = {
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())
    }
    assert not unused
    used = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in used} == {"backbone", "head", "guidance"}
    assert not any("visual.head" in n for n in used)  # CLIP's own projection makes no dense features of a ConvNeXt
    assert model.eval()([sample(size=50)])[0]["sem_seg"].shape == (16, 50, 50)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", ["upsample", "dpt", "mask2former"])
def test_losses_agree_with_fp32_under_autocast(semidavil, head, dtype):
    model = build_model(semidavil("MODEL.SEMIDAVIL.HEAD", head)).train()
    torch.nn.init.normal_(model.guidance.project.weight, std=0.1)
    streams = {"source": [sample(labels())] * 2, "unlabeled": [sample(labels((0, 3)))]}
    full = model(streams)
    with torch.autocast("cpu", dtype=dtype):
        half = model(streams)
    for name, loss in full.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(loss.item(), rel=0.03), name


def test_supervised_loss_is_dyce_over_source_and_target_together(semidavil):
    model = build_model(semidavil()).train()
    streams = {"labeled": [sample(labels())], "source": [sample(labels((2, 7))), sample(labels((3,)))]}
    samples = [*streams["labeled"], *streams["source"]]
    images = model.preprocess(samples).tensor
    logits = torch.nn.functional.interpolate(model.logits(images, samples), size=(64, 64), mode="bilinear")
    target = torch.stack([x["targets"].semantic() for x in samples])
    assert torch.allclose(model(streams)["loss_sup"], dyce_loss(logits, target), rtol=1e-5)
    with_more = model({**streams, "unlabeled": [sample(labels((4, 6)))]})["loss_sup"]  # which has a loss of its own
    assert torch.allclose(with_more, dyce_loss(logits, target), rtol=1e-5)
    apart = [dyce_loss(logits[i : i + 1], target[i : i + 1]) for i in range(3)]
    assert not torch.allclose(sum(apart), model(streams)["loss_sup"], rtol=1e-2)


def test_consistency_is_zero_without_a_confident_pixel_and_the_mean_over_them_else(semidavil):
    model = build_model(semidavil()).train()
    image = sample(labels())
    unsure = {**image, "targets": labels(valid=False)}
    losses = model({"source": [image], "unlabeled": [unsure]})
    assert losses["unlabeled_loss_con"].item() == 0
    some = labels()
    some.valid[:40] = False
    logits = model.logits(model.preprocess([image]).tensor, [image])
    full = torch.nn.functional.interpolate(logits, size=(64, 64), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(full, some.semantic()[None], ignore_index=255)
    loss = model({"source": [image], "unlabeled": [{**image, "targets": some}]})["unlabeled_loss_con"]
    assert torch.allclose(loss, expected, rtol=1e-4)


def test_teacher_labels_confident_pixels_without_a_gradient(semidavil):
    cfg = semidavil("SSL.CONFIDENCE", "0.2")
    model = build_model(cfg)
    teacher = EMATeacher(model)
    inputs = [sample()]
    target = teacher.pseudo_label(inputs)[0]
    probability = teacher.model.scores(teacher.model.preprocess(inputs), inputs)[0]
    logits = teacher.model.logits(teacher.model.preprocess(inputs).tensor, inputs)
    full = torch.nn.functional.interpolate(logits, size=(64, 64), mode="bilinear")[0]
    assert torch.allclose(probability, full.softmax(0))
    confidence, label = probability.max(0)
    assert torch.equal(target.valid, confidence >= 0.2)
    assert torch.equal(target.semantic(), torch.where(confidence >= 0.2, label, 255))
    assert not any(p.requires_grad for p in teacher.model.parameters())
    shared = {id(p) for p in text_tower_of(model.backbone.clip_model).transformer.parameters()}
    assert shared <= {id(p) for p in teacher.model.parameters()}
    assert teacher.model.encoder is model.encoder


@pytest.mark.parametrize("blocks", [0, 2, -1])
def test_only_the_last_blocks_are_trained(semidavil, blocks):
    backbone = build_model(semidavil("MODEL.BACKBONE.TRAINABLE_BLOCKS", str(blocks))).backbone
    stages = backbone.clip_model.visual.trunk.stages
    trained = [all(p.requires_grad for p in stage.parameters()) for stage in stages]
    assert trained == ([True] * 4 if blocks < 0 else [False] * (4 - blocks) + [True] * blocks)
    assert next(backbone.clip_model.visual.trunk.stem.parameters()).requires_grad == (blocks < 0)
    assert not any(p.requires_grad for p in text_tower_of(backbone.clip_model).token_embedding.parameters())


@pytest.mark.parametrize(("name", "arch"), [("OpenCLIPViT", "ViT-B-32"), ("OpenCLIPConvNeXt", "miniworld-convnext")])
def test_towers_train_what_leads_to_the_dense_features(semidavil, name, arch):
    """The last blocks of a ViT too, without what only its class token and its feature pyramid need."""
    options = "MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.ARCH", arch, "MODEL.BACKBONE.WEIGHTS", ""
    model = build_model(semidavil(*options, "MODEL.BACKBONE.TRAINABLE_BLOCKS", "2", "MODEL.BACKBONE.PYRAMID_DIM", "8"))
    torch.nn.init.normal_(model.guidance.project.weight, std=0.1)
    model.train()({"source": [sample(labels())]})["loss_sup"].backward()
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert trained == {n for n, p in model.backbone.named_parameters() if p.grad is not None}
    assert not any(n.startswith("pyramid") for n in trained)
    if arch == "ViT-B-32":
        assert {n.split(".")[4] for n in trained if "resblocks" in n} == {"10", "11"}
        assert any("resblocks.11.mlp" in n for n in trained)
        assert any("resblocks.10.mlp" in n for n in trained)


@pytest.mark.parametrize("blocks", [0, 2, -1])
def test_a_vit_from_imagenet_trains_as_many_blocks_as_one_from_clip(semidavil, blocks):
    """What the ablation compares is the start weights, not how much is trained."""
    arch = "MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.BACKBONE.ARCH", "vit_tiny_patch16_224"
    part = "MODEL.BACKBONE.TRAINABLE_BLOCKS", str(blocks), "MODEL.BACKBONE.PYRAMID_DIM", "8"
    rest = "MODEL.BACKBONE.WEIGHTS", "", "MODEL.SEMIDAVIL.FEATURE", "res4", "MODEL.SEMIDAVIL.GUIDANCE", "False"
    model = build_model(semidavil(*arch, *part, *rest))
    trained = {n for n, p in model.backbone.model.named_parameters() if p.requires_grad}
    count = 12 if blocks < 0 else blocks
    assert {n.split(".")[2] for n in trained if ".blocks." in n} == {str(i) for i in range(12 - count, 12)}
    assert any("patch_embed" in n for n in trained) == (blocks < 0)
    model.train()({"source": [sample(labels())]})["loss_sup"].backward()
    assert trained == {n for n, p in model.backbone.model.named_parameters() if p.grad is not None}
    assert next(model.backbone.pyramid.stages["res4"].parameters()).grad is not None


def test_building_a_model_leaves_running_statistics_alone(semidavil):
    """What is not used is found by a probe through the backbone."""
    arch = "MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.BACKBONE.ARCH", "resnet18", "MODEL.BACKBONE.WEIGHTS", ""
    part = "MODEL.BACKBONE.TRAINABLE_BLOCKS", "-1", "MODEL.SEMIDAVIL.FEATURE", "res4"
    model = build_model(semidavil(*arch, *part, "MODEL.SEMIDAVIL.GUIDANCE", "False"))
    counted = [b for n, b in model.backbone.named_buffers() if n.endswith("num_batches_tracked")]
    assert counted
    assert not any(b.any() for b in counted)
    assert model.backbone.training
    layers = {n.split(".")[1] for n, p in model.backbone.named_parameters() if not p.requires_grad}
    assert layers == {"layer4"}  # comes after res4


def test_more_blocks_than_there_are_is_an_error(semidavil):
    with pytest.raises(ConfigError, match="has 4"):
        build_model(semidavil("MODEL.BACKBONE.TRAINABLE_BLOCKS", "9"))
    timm = "MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.SEMIDAVIL.GUIDANCE", "False"
    for arch, blocks, message in (("vit_tiny_patch16_224", "13", "has 12"), ("resnet18", "2", "is no plain ViT")):
        with pytest.raises(ConfigError, match=message):
            build_model(semidavil(*timm, "MODEL.BACKBONE.ARCH", arch, "MODEL.BACKBONE.TRAINABLE_BLOCKS", blocks))


def test_without_labelled_target_images_it_trains_and_resumes(semidavil):
    """Plain unsupervised adaptation: source and unlabelled target alone."""
    options = "DATASETS.TRAIN", "()", "DATASETS.SOURCE", "('miniworld_train@0.05',)", "SSL.CONFIDENCE", "0.1"
    trainer = DualStreamTrainer(semidavil(*options, "SOLVER.MAX_ITER", "2"))
    trainer.train()
    assert set(trainer.batch) == {"source", "unlabeled"}
    assert all("caption" in x for stream in trainer.batch.values() for x in stream)
    assert trainer.taxonomy.main_names[0] == "striped red"
    again = DualStreamTrainer(semidavil(*options, "SOLVER.MAX_ITER", "4"), resume=True)
    assert again.start_iter == 2


def test_three_streams_resume_bit_by_bit(semidavil, tmp_path):
    options = "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SSL.CONFIDENCE", "0.1", "SSL.CUTMIX", "1.0"
    DualStreamTrainer(semidavil(*options, "OUTPUT_DIR", str(tmp_path / "whole"))).train()
    cfg = semidavil(*options, "OUTPUT_DIR", str(tmp_path / "parts"))
    train_until(cfg, 3)
    resumed = DualStreamTrainer(cfg, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    whole, parts = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "parts"))
    for which, other in ((whole["model"], parts["model"]), (whole["teacher"]["model"], parts["teacher"]["model"])):
        assert all(torch.equal(tensor, other[name]) for name, tensor in which.items())
    assert set(resumed.batch) == {"labeled", "source", "unlabeled"}


def test_weights_of_a_weighted_loss_come_from_source_and_target_annotations(semidavil):
    cfg = semidavil("MODEL.SEMIDAVIL.LOSS", "weighted_ce")
    model = build_model(cfg)
    assert (model.loss.class_weight == 1).all()
    model.check_images(TrainingImages(cfg))
    pixels = torch.zeros(16)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.SOURCE):
        for d in dataset_dicts(name):
            for segment in d["segments_info"]:
                pixels[segment["category_id"]] += segment["area"]
    expected = 1 / pixels
    assert torch.allclose(model.loss.class_weight, expected / expected.mean(), rtol=1e-4)


def test_captions_of_unlabelled_images_are_checked_too(semidavil, monkeypatch):
    cfg = semidavil()
    model = build_model(cfg)
    asked = []
    monkeypatch.setattr(model.encoder, "tokens", lambda caption, owner: asked.append(owner))
    model.check_images(TrainingImages(cfg))
    assert len(asked) == 200 + 1000  # source, and all night scenes
    assert len(set(asked)) == 1200


def test_source_images_are_scaled_on_their_own(semidavil):
    cfg = semidavil("INPUT.SOURCE_SCALE_RANGE", "(0.25, 0.25)", "INPUT.SCALE_RANGE", "(1.0, 1.0)")
    d = dataset_dicts("miniworld_train@0.05")[0]
    covered = [
        float(unpacked(build_labeled_mapper(cfg, scales)(d))["targets"].valid.float().mean())
        for scales in (cfg.INPUT.SOURCE_SCALE_RANGE, ())
    ]
    assert covered == pytest.approx([1 / 16, 1.0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.SEMIDAVIL.LOSS", "dice"), "LOSS is 'dice'"),
        (("MODEL.SEMIDAVIL.HEAD", "linear"), "HEAD"),
        (("MODEL.SEMIDAVIL.CAPTIONS", "none"), "CAPTIONS"),
        (("MODEL.SEMIDAVIL.OMEGA", "1.5"), "OMEGA"),
        (("MODEL.SEMIDAVIL.HARD_FRACTION", "0.0"), "HARD_FRACTION"),
        (("TEST.PANOPTIC_ON", "True"), "segments semantically"),
        (("SSL.MIX", "mixup"), "SSL.MIX"),
        (("MODEL.BACKBONE.TRAINABLE_BLOCKS", "-2"), "TRAINABLE_BLOCKS"),
        (("MODEL.BACKBONE.FREEZE", "True"), "TRAINABLE_BLOCKS"),
        (("MODEL.BACKBONE.NAME", "build_resnet_backbone"), "TRAINABLE_BLOCKS"),
        (("INPUT.SOURCE_SCALE_RANGE", "(2.0, 1.0)"), "SOURCE_SCALE_RANGE"),
        (("SOLVER.SCHEDULE", "cosine"), "SOLVER.SCHEDULE"),
    ],
)
def test_impossible_values_are_config_errors(semidavil, overrides, message):
    with pytest.raises(ConfigError, match=message):
        semidavil(*overrides)


def test_a_map_that_the_backbone_lacks_is_an_error(semidavil):
    with pytest.raises(ConfigError, match="FEATURE res9"):
        build_model(semidavil("MODEL.SEMIDAVIL.FEATURE", "res9"))
