"""Dense language guidance, captions' features, and the SemiDAViL model on the tiny CLIP."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dearli_d2.data.build import build_labeled_mapper
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.engine.classmix import ClassMix
from dearli_d2.engine.cutmix import mix_images, mix_targets
from dearli_d2.engine.pseudo_labels import PseudoLabeler
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, DatasetError
from dearli_d2.modeling import build_model
from dearli_d2.modeling.language_guidance import CaptionEncoder, DenseLanguageGuidance
from dearli_d2.modeling.pixel_losses import dyce_loss
from dearli_d2.modeling.prompts import text_tower_of
from dearli_d2.structures import Targets

CAPTION = "a picture of grass and striped red"


@pytest.fixture
def semidavil(mini_config):
    """semidavil(*overrides): the miniworld config with the paper's values, unlabelled images from the first step."""
    paper = "SSL.LOSS_WEIGHT", "1.0", "MODEL.SEMIDAVIL.HARD_FRACTION", "0.2"
    options = (
        *paper,
        "SSL.START",
        "0",
        "SSL.IMS_PER_BATCH",
        "2",
        "SSL.SOURCE_IMS_PER_BATCH",
        "2",
        "SSL.PICTURE_PERIOD",
        "0",
    )
    return lambda *overrides: mini_config(*options, "SSL.MONITOR_PERIOD", "0", *overrides, file="semidavil.yaml")


def guidance(seed=0):
    torch.manual_seed(seed)
    module = DenseLanguageGuidance(12, 10, 8)
    torch.nn.init.normal_(module.project.weight)  # as after training
    return module, torch.randn(2, 12, 3, 5), torch.randn(2, 6, 10), torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool()


def sample(targets=None, caption=CAPTION, size=64):
    result = {"image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8), "caption": caption, "file_name": "a"}
    return result if targets is None else {**result, "targets": targets}


def labels(classes=(1, 5, 12), size=64, valid=True):
    """One horizontal stripe a class."""
    masks = torch.zeros(len(classes), size, size, dtype=torch.bool)
    for i, rows in enumerate(torch.arange(size).chunk(len(classes))):
        masks[i, rows] = True
    return Targets(torch.tensor(classes), masks, torch.full((size, size), valid))


# ---------------------------------------------------------------------------------------------- guidance


def test_attention_is_normalised_over_tokens_and_over_pixels():
    module, vision, text, present = guidance()
    over_tokens, over_pixels = module.attention(vision.flatten(2).transpose(1, 2), text, present)
    assert over_tokens.shape == over_pixels.shape == (2, 15, 6)
    assert torch.allclose(over_tokens.sum(2), torch.ones(2, 15))
    assert torch.allclose(over_pixels.sum(1), torch.ones(2, 6))
    assert not over_tokens[1, :, 4:].any()


def test_guidance_equals_its_equations():
    """Pixel by pixel and token by token, in float64."""
    module, vision, text, present = guidance()
    got = module(vision, text, present).double()
    module = module.double()
    for image in range(2):
        pixels = vision[image].double().flatten(1).T
        tokens = text[image][present[image]].double()
        key_v, value_v = module.vision_key(pixels), module.vision_value(pixels)
        key_t, value_t = module.text_key(tokens), module.text_value(tokens)
        affinity = torch.stack([torch.stack([v @ t / 8**0.5 for t in key_t]) for v in key_v])
        rows, columns = affinity.softmax(1), affinity.softmax(0)
        f_v = torch.stack([sum(row[j] * value_t[j] for j in range(len(tokens))) for row in rows])
        f_l = torch.stack([sum(columns[i, j] * value_v[i] for i in range(15)) for j in range(len(tokens))])
        expected = pixels + module.project(module.norm(f_v + rows @ f_l))
        assert torch.allclose(got[image].flatten(1).T, expected, atol=1e-5)


def test_padding_tokens_have_no_influence_bit_by_bit():
    module, vision, text, present = guidance()
    other = torch.where(present[..., None], text, 1e3 * torch.randn(text.shape))
    assert torch.equal(module(vision, text, present), module(vision, other, present))
    broken = torch.where(present[..., None], text, torch.nan)
    assert torch.equal(module(vision, text, present), module(vision, broken, present))


def test_the_order_of_tokens_does_not_matter():
    module, vision, text, present = guidance()
    order = torch.randperm(6)
    mixed = module(vision, text[:, order], present[:, order])
    assert torch.allclose(mixed, module(vision, text, present), atol=1e-5)


def test_guidance_starts_as_the_identity_and_learns_at_once():
    module, vision, text, present = guidance()
    fresh = DenseLanguageGuidance(12, 10, 8)
    result = fresh(vision, text, present)
    assert torch.equal(result, vision)
    (result * torch.randn(result.shape)).sum().backward()
    assert fresh.project.weight.grad.any()
    assert not torch.allclose(module(vision, text, present), vision)


def test_guidance_agrees_with_fp32_under_autocast():
    module, vision, text, present = guidance()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(vision, text, present)
    full = module(vision, text, present)
    assert (half - full).abs().max() < 0.05 * full.abs().max()


# ---------------------------------------------------------------------------------------------- captions


def test_token_features_are_those_of_the_text_tower_before_pooling(semidavil):
    model = build_model(semidavil())
    clip = model.backbone.clip_model
    short, long = "grass", "a picture of striped red and brick wall"
    features, present = model.encoder(clip, [long, short, long])
    assert present.sum(1).tolist() == [len(model.encoder.tokens(c)) for c in (long, short, long)]
    assert torch.equal(features[0], features[2])
    import open_clip

    for row, mask, caption in zip(features, present, (long, short, long), strict=True):
        end = int(mask.sum()) - 1  # the end token is what CLIP pools
        tower = getattr(clip, "text", clip)
        projection = tower.text_projection
        pooled = projection(row[end]) if isinstance(projection, torch.nn.Linear) else row[end] @ projection
        expected = clip.encode_text(open_clip.get_tokenizer("miniworld-convnext")([caption]))[0]
        assert torch.allclose(pooled, expected, atol=1e-4)
        assert not row[end + 1 :].any()


def test_a_mixed_image_is_described_by_both_captions(semidavil):
    cfg = semidavil("SSL.CUTMIX", "1.0", "SSL.CONFIDENCE", "0.0")
    model = build_model(cfg)
    labeler = PseudoLabeler(EMATeacher(model), ClassMix(1.0), (), "cpu")
    inputs = [{**sample(caption=c), "strong": sample()["image"]} for c in ("grass", "sky and sand", "water")]
    mixed = labeler(inputs, np.random.default_rng(0))  # a permutation that moves every image
    assert [x["caption"] if isinstance(x["caption"], str) else len(x["caption"]) for x in mixed] == [2, 2, 2]
    for x, own in zip(mixed, inputs, strict=True):
        first = x["caption"][0] if isinstance(x["caption"], tuple) else x["caption"]
        assert first == own["caption"]
    clip = model.backbone.clip_model
    both, present = model.encoder(clip, [("grass", "sky and sand"), "grass"])
    apart = [model.encoder(clip, [c])[0][0] for c in ("grass", "sky and sand")]
    assert torch.equal(both[0], torch.cat(apart))
    assert present.sum(1).tolist() == [len(both[0]), len(apart[0])]


def test_captions_are_encoded_once_and_again_after_other_weights(semidavil, monkeypatch):
    model = build_model(semidavil()).eval()
    calls = []
    encode = CaptionEncoder._encode
    monkeypatch.setattr(CaptionEncoder, "_encode", staticmethod(lambda *a: calls.append(1) or encode(*a)))
    teacher = copy.deepcopy(model)
    for _ in range(2):
        model([sample(), sample()])
        teacher([sample()])
    assert len(calls) == 1
    state = model.state_dict()
    name = next(n for n in state if "token_embedding" in n)
    before = model([{**sample(), "image": torch.zeros(3, 64, 64)}])[0]["sem_seg"]
    state[name] = torch.randn(state[name].shape)
    torch.nn.init.normal_(model.guidance.project.weight)
    state.update({n: t for n, t in model.state_dict().items() if n.startswith("guidance")})
    model.load_state_dict(state)
    assert not torch.equal(model([{**sample(), "image": torch.zeros(3, 64, 64)}])[0]["sem_seg"], before)
    assert len(calls) == 2


def test_a_caption_changes_the_prediction_only_with_guidance(semidavil):
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    inputs = [[{"image": image, "caption": caption}] for caption in ("grass", "striped red and sky")]
    model = build_model(semidavil()).eval()
    torch.nn.init.normal_(model.guidance.project.weight)
    assert not torch.equal(*(model(x)[0]["sem_seg"] for x in inputs))
    without = build_model(semidavil("MODEL.SEMIDAVIL.GUIDANCE", "False")).eval()
    assert torch.equal(*(without(x)[0]["sem_seg"] for x in inputs))
    assert not any("guidance" in n for n, _ in without.named_parameters())


def test_missing_and_unfit_captions_are_errors(semidavil):
    model = build_model(semidavil()).eval()
    with pytest.raises(DatasetError, match="has no caption.*class_names"):
        model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "file_name": "x.jpg"}])
    with pytest.raises(DatasetError, match="reads 24"):
        model([sample(caption="grass " * 40)])
    with pytest.raises(DatasetError, match="no text token"):
        model.encoder.tokens(" ")
    names = build_model(semidavil("MODEL.SEMIDAVIL.CAPTIONS", "class_names", "MODEL.SEMIDAVIL.GUIDANCE", "False"))
    assert names.encoder is None
    with pytest.raises(DatasetError, match="class_names"):  # 16 names are too long for the tiny text tower
        build_model(semidavil("MODEL.SEMIDAVIL.CAPTIONS", "class_names"))
    few = Taxonomy.from_text("grass, sky, sand")
    cfg = semidavil("MODEL.SEMIDAVIL.CAPTIONS", "class_names", "MODEL.NUM_CLASSES", "3")
    fixed = build_model(cfg, few).eval()
    assert fixed.captions_of(2, [{}, {"caption": "other"}]) == ["grass, sky, sand"] * 2


# ---------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("head", ["upsample", "dpt", "mask2former"])
def test_every_head_trains_every_parameter(semidavil, head):
    model = build_model(semidavil("MODEL.SEMIDAVIL.HEAD", head)).train()
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
        assert not any("resblocks.11.mlp" in n for n in trained)
        assert any("resblocks.10.mlp" in n for n in trained)


def test_building_a_model_leaves_running_statistics_alone(semidavil):
    """What is not used is found by a probe through the backbone."""
    blocks = (
        "MODEL.BACKBONE.TRAINABLE_BLOCKS",
        "-1",
        "MODEL.SEMIDAVIL.GUIDANCE",
        "False",
        "MODEL.SEMIDAVIL.FEATURE",
        "res4",
    )
    arch = "MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.BACKBONE.ARCH", "resnet18", "MODEL.BACKBONE.WEIGHTS", ""
    model = build_model(semidavil(*blocks, *arch))
    counted = [b for n, b in model.backbone.named_buffers() if n.endswith("num_batches_tracked")]
    assert counted
    assert not any(b.any() for b in counted)
    assert model.backbone.training
    layers = {n.split(".")[1] for n, p in model.backbone.named_parameters() if not p.requires_grad}
    assert layers == {"layer4"}  # comes after res4


def test_more_blocks_than_there_are_is_an_error(semidavil):
    with pytest.raises(ConfigError, match="has 4"):
        build_model(semidavil("MODEL.BACKBONE.TRAINABLE_BLOCKS", "9"))


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


def test_three_streams_resume_bit_by_bit(semidavil, tmp_path, monkeypatch):
    options = "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SSL.CONFIDENCE", "0.1", "SSL.CUTMIX", "1.0"
    DualStreamTrainer(semidavil(*options, "OUTPUT_DIR", str(tmp_path / "whole"))).train()
    step = DualStreamTrainer.run_step

    def stops(self):
        if self.iter == 3:
            raise KeyboardInterrupt
        step(self)

    cfg = semidavil(*options, "OUTPUT_DIR", str(tmp_path / "parts"))
    trainer = DualStreamTrainer(cfg)
    with monkeypatch.context() as patch:
        patch.setattr(DualStreamTrainer, "run_step", stops)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
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
    model.check_training(cfg)
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
    model.check_training(cfg)
    assert len(asked) == 200 + 1000  # source, and all night scenes
    assert len(set(asked)) == 1200


def test_source_images_are_scaled_on_their_own(semidavil):
    cfg = semidavil("INPUT.SOURCE_SCALE_RANGE", "(0.25, 0.25)", "INPUT.SCALE_RANGE", "(1.0, 1.0)")
    d = dataset_dicts("miniworld_train@0.05")[0]
    covered = [
        float(build_labeled_mapper(cfg, scales)(d)["targets"].valid.float().mean())
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
        (("MODEL.BACKBONE.NAME", "TimmBackbone"), "TRAINABLE_BLOCKS"),
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


# ---------------------------------------------------------------------------------------------- ClassMix


def test_classmix_pastes_whole_classes_of_the_partner_into_image_and_target():
    targets = [labels((1, 5, 12), 12), labels((2, 7), 12), labels((3,), 12)]
    images = torch.rand(3, 3, 12, 12)
    pasted = 0
    for seed in range(20):
        plan = ClassMix(0.7).plan_for(targets, np.random.default_rng(seed))
        mixed = mix_images(images, plan)
        for i, target in enumerate(mix_targets(targets, plan, ())):
            partner, region = plan.partner[i], plan.regions[i]
            if not plan.changes(i):
                assert torch.equal(mixed[i], images[i])
                continue
            pasted += 1
            taken = {
                int(c) for c, m in zip(targets[partner].labels, targets[partner].masks, strict=True) if region[m].any()
            }
            assert len(taken) == (len(targets[partner]) + 1) // 2
            expected = torch.where(region, targets[partner].semantic(), targets[i].semantic())
            assert torch.equal(target.semantic(), expected)
            assert torch.equal(mixed[i], torch.where(region, images[partner], images[i]))
    assert pasted > 15


def test_classmix_of_empty_targets_changes_nothing():
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(8, 8).bool())
    plan = ClassMix(1.0).plan_for([empty, empty], np.random.default_rng(0))
    assert not any(plan.changes(i) for i in range(2))
    assert mix_targets([empty, empty], plan, ())[0] is empty
