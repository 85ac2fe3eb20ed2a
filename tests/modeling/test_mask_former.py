"""Mask2Former and M2F-Lang as whole models, on the tiny CLIP."""

from __future__ import annotations

import pytest
import torch

from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.errors import ConfigError
from dearli_d2.modeling import build_model
from dearli_d2.structures import Targets


@pytest.fixture
def lang(mini_config):
    return build_model(mini_config())


def images(count=2, size=(64, 64)):
    return [{"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)} for _ in range(count)]


def training_batch(make_targets, counts=(3, 2)):
    return [
        {**x, "targets": make_targets(n, classes=16, seed=n)} for x, n in zip(images(len(counts)), counts, strict=True)
    ]


@pytest.mark.parametrize("file", ["m2f_lang.yaml", "m2f.yaml"])
@pytest.mark.parametrize("counts", [(3, 2), (0, 0)])
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(mini_config, make_targets, file, counts):
    model = build_model(mini_config(file=file)).train()
    sum(model(training_batch(make_targets, counts)).values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if name.startswith("backbone"):
            assert not parameter.requires_grad, name


def test_frozen_backbone_has_no_state_change_after_train(lang, make_targets):
    before = {k: v.clone() for k, v in lang.backbone.state_dict().items()}
    lang.train()
    lang(training_batch(make_targets))
    assert all(torch.equal(v, before[k]) for k, v in lang.backbone.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_agrees_with_fp32(lang, make_targets, dtype):
    lang.train()
    batch = training_batch(make_targets)
    totals = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            total = sum(lang(batch).values())
        lang.zero_grad()
        total.backward()
        assert all(torch.isfinite(p.grad).all() for p in lang.parameters() if p.grad is not None)
        totals.append(total.item())
    assert totals[1] == pytest.approx(totals[0], rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_classification_is_exact_under_autocast(lang, dtype):
    """Logits scaled by up to 100 are the same in mixed precision, given the same inputs."""
    outputs, dense, masks = torch.randn(1, 5, 64), torch.randn(1, 128, 16, 16), torch.randn(1, 5, 16, 16)
    expected = lang.class_logits(outputs), lang.zero_shot_logits({"clip_vis_dense": dense}, masks)
    with torch.autocast("cpu", dtype=dtype):
        ours = lang.class_logits(outputs), lang.zero_shot_logits({"clip_vis_dense": dense}, masks)
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_permuting_the_classes_permutes_the_outputs(lang):
    order = list(torch.randperm(16))
    lang.eval()
    tensor = lang.preprocess(images()).tensor
    with torch.no_grad():
        plain, masks = lang.predict(tensor)
        t = lang.taxonomy
        lang.set_taxonomy(Taxonomy(tuple(t.names[i] for i in order), t.thing_ids, t.dataset_ids, t.colors))
        permuted, same_masks = lang.predict(tensor)
    assert torch.allclose(permuted[..., :-1], plain[..., :-1][..., order], atol=1e-4)
    assert torch.allclose(permuted[..., -1], plain[..., -1], atol=1e-4)
    assert torch.equal(masks, same_masks)


def test_empty_mask_has_a_uniform_zero_shot_posterior(lang):
    features = lang.backbone(lang.preprocess(images(1)).tensor)
    masks = torch.full((1, 2, 32, 32), -1.0)
    masks[0, 1, :, 16:] = 1
    posterior = lang.zero_shot_logits(features, masks).softmax(-1)
    assert torch.allclose(posterior[0, 0], torch.full((16,), 1 / 16))
    assert posterior[0, 1].max() > 1.5 / 16


def test_empty_masks_have_the_posterior_of_a_zero_vector_where_asked_as_in_the_authors_code(lang, monkeypatch):
    features = lang.backbone(lang.preprocess(images(1)).tensor)
    masks = torch.full((1, 3, 32, 32), -1.0)
    masks[0, 1, :, 16:] = 1
    uniform = lang.zero_shot_logits(features, masks)
    monkeypatch.setattr(lang, "uniform_if_empty", False)
    found = lang.zero_shot_logits(features, masks)
    visual = lang.backbone.clip_model.visual
    zero = torch.zeros(1, features["clip_vis_dense"].shape[1], 1, 1)
    embedded = torch.nn.functional.normalize(visual.head(visual.trunk.forward_head(zero)), dim=-1)
    expected = lang.backbone.logit_scale() * lang.vocabulary.cosine(embedded)
    assert torch.allclose(found[0, ::2], expected.expand(2, -1), atol=1e-4)
    assert expected.std() > 0.1  # not uniform
    assert torch.equal(found[0, 1], uniform[0, 1])


def test_learned_temperature_is_at_most_100(lang):
    with torch.no_grad():
        lang.sem_seg_head.predictor.logit_scale.fill_(20.0)
    logits = lang.class_logits(torch.randn(1, 3, 64))
    assert logits.abs().max() <= 100.001


def test_output_has_the_asked_size_and_padding_does_not_show(lang):
    lang.eval()
    small = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        result = lang([{"image": small, "height": 80, "width": 112}])[0]
    assert result["panoptic_seg"][0].shape == (80, 112)
    assert result["sem_seg"].shape == (16, 80, 112)


@pytest.mark.parametrize("sizes", [[(64, 64)] * 2, [(50, 70)] * 2, [(50, 70), (64, 40)]])
def test_images_of_one_size_are_prepared_as_those_of_several(lang, sizes):
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    prepared = lang.preprocess([{"image": image} for image in images])
    assert all(side % 32 == 0 for side in prepared.tensor.shape[2:])
    assert prepared.image_sizes == sizes
    for row, image, (height, width) in zip(prepared.tensor, images, sizes, strict=True):
        assert torch.equal(row[:, :height, :width], (image - lang.pixel_mean) / lang.pixel_std)
        row[:, :height, :width] = 0
        assert not row.any()


def test_images_in_a_batch_do_not_see_each_other(lang):
    lang.eval()
    batch = images(3)
    with torch.no_grad():
        together, masks = lang.predict(lang.preprocess(batch).tensor)
        alone, mask = lang.predict(lang.preprocess(batch[1:2]).tensor)
    assert torch.allclose(together[1], alone[0], atol=1e-3)
    assert torch.allclose(masks[1], mask[0], atol=1e-3)


def test_loading_other_clip_weights_renews_the_text_embeddings(lang):
    first = lang.vocabulary.embeddings.clone()
    state = lang.state_dict()
    state["backbone.clip_model.text_projection"] = torch.randn_like(state["backbone.clip_model.text_projection"])
    lang.load_state_dict(state)
    assert not torch.allclose(first, lang.vocabulary.embeddings, atol=1e-3)


def test_linear_classifier_refuses_other_classes(mini_config):
    model = build_model(mini_config(file="m2f.yaml"))
    with pytest.raises(ConfigError, match="only a text classifier"):
        model.set_taxonomy(Taxonomy.from_text("cat, dog"))


def test_targets_check_their_shapes():
    with pytest.raises(ValueError, match="do not fit"):
        Targets(torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be bool"):
        Targets(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, 4))


def test_targets_as_a_class_map():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1:3], masks[2, 3, :2] = True, True, True  # the second row is in two of them
    labels = torch.tensor([7, 0, 3])
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[0, 0] = False
    expected = torch.tensor([[255, 7, 7, 7], [7] * 4, [0] * 4, [3, 3, 255, 255]])
    assert torch.equal(Targets(labels, masks, valid).semantic(), expected)
    assert Targets(labels, masks).semantic()[0, 0] == 7
    nothing = Targets(labels[:0], masks[:0])
    assert (nothing.semantic(ignore=9) == 9).all()


def test_names_of_a_file_are_read_by_every_method_and_go_into_its_checkpoint(mini_config, tmp_path):
    """By id, in any order; a prediction without the file then reads the same names."""
    from dearli_d2.data.catalog import taxonomy_of
    from dearli_d2.engine.trainer import DualStreamTrainer

    taxonomy = taxonomy_of("miniworld_train")
    lines = [f"{i}:{name} thing,{name}" for i, name in zip(taxonomy.dataset_ids, taxonomy.main_names, strict=True)]
    (tmp_path / "names.txt").write_text("\n".join(reversed(lines)))
    options = "MODEL.TEXT.CLASS_NAMES", str(tmp_path / "names.txt")
    expected = [f"{name} thing" for name in taxonomy.main_names]
    for file in ("m2f_lang.yaml", "hvl.yaml", "m2f.yaml", "semidavil.yaml"):
        assert build_model(mini_config(*options, file=file)).taxonomy.main_names == expected, file
    state = DualStreamTrainer(mini_config(*options)).state(0)
    assert [names[0] for names in state["taxonomy"]["names"]] == expected
