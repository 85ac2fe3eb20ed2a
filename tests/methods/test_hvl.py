"""HVL: textual queries, their exchange with the pixels, presence, matching, losses (spec's properties)."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dearli_d2.config import get_config
from dearli_d2.data.catalog import taxonomy_of
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.errors import ConfigError
from dearli_d2.methods.hvl.model import check_query_memory
from dearli_d2.methods.hvl.textual_matcher import TextualMatcher
from dearli_d2.methods.hvl.textual_queries import (
    PixelTextExchange,
    background_classes,
    diversity_loss,
    presence_of_cells,
    presence_of_logits,
    presence_of_targets,
)
from dearli_d2.methods.hvl.vision_language import masked_regions, region_losses
from dearli_d2.modeling import build_model
from dearli_d2.modeling.mask2former.mask_losses import PointMaskLosses
from dearli_d2.modeling.mask2former.matcher import HungarianMatcher
from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput
from dearli_d2.structures import Targets

K, LEVELS = 16, 3


@pytest.fixture
def hvl_config(mini_config):
    fixed = ("SSL.START", "0", "SSL.PICTURE_PERIOD", "0", "SSL.MONITOR_PERIOD", "0")
    return lambda *overrides: mini_config(*fixed, *overrides, file="hvl.yaml")


@pytest.fixture
def hvl(hvl_config):
    return build_model(hvl_config())


def semantic_targets(seed: int, size: int = 64, classes: int = K) -> Targets:
    """Stripes of four different classes."""
    labels = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))[:4]
    rows = torch.arange(size) // (size // 4)
    return Targets(labels, (rows == torch.arange(4)[:, None])[..., None].expand(-1, -1, size).clone())


def samples(count: int, offset: int = 0, size: int = 64) -> list[dict]:
    generator = torch.Generator().manual_seed(offset)
    return [
        {
            "image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator),
            "targets": semantic_targets(offset + i, size),
        }
        for i in range(count)
    ]


def both_streams() -> dict[str, list[dict]]:
    return {"labeled": samples(2), "unlabeled": samples(2, 7)}


def awaken(model) -> None:
    """Gives the parts that start at zero random weights, as after training."""
    for name, parameter in model.named_parameters():
        if "exchange" in name and (name.endswith("out_proj.weight") or "linear2" in name):
            torch.nn.init.normal_(parameter, std=0.1)


# ---------------------------------------------------------------------------------------------- queries and presence


def test_diversity_of_orthogonal_and_of_equal_levels():
    basis = torch.eye(8)[:3]
    assert diversity_loss(basis[:, None].repeat(1, 5, 1)) == 0
    assert diversity_loss(torch.randn(1, 5, 8).repeat(3, 1, 1)) == pytest.approx(3)


def test_without_a_hierarchy_a_class_has_one_query_for_all_levels(hvl_config):
    model = build_model(hvl_config("MODEL.HVL.HIERARCHY", "False", "MODEL.HVL.DIVERSITY_WEIGHT", "0.0"))
    flat, text = model.generator, torch.randn(K, model.language.embedding_dim)
    queries = flat(text)
    assert queries.shape == (LEVELS, K, 64)
    assert torch.equal(queries[1:], queries[:1].expand(LEVELS - 1, -1, -1))
    assert not torch.equal(queries[0, 0], queries[0, 1])
    own = build_model(hvl_config()).generator
    assert not torch.allclose(own(text)[0], own(text)[1], atol=1e-2)
    assert len(list(own.parameters())) == LEVELS * len(list(flat.parameters()))


def test_zero_initialised_refinement_is_the_plain_pixel_decoder(hvl):
    images = torch.randn(2, 3, 64, 64)
    features, decoder = hvl.backbone(images), hvl.sem_seg_head.pixel_decoder
    queries = torch.randn(2, LEVELS, K, 64)
    exchange = hvl.exchange.start(queries, torch.zeros(2, K, dtype=torch.bool))
    plain, refined = decoder(features), decoder(features, exchange)
    for a, b in zip(
        [*plain.multi_scale, plain.mask_features], [*refined.multi_scale, refined.mask_features], strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)
    assert torch.equal(exchange.queries, queries)
    awaken(hvl)
    exchange = hvl.exchange.start(queries, torch.zeros(2, K, dtype=torch.bool))
    assert not torch.allclose(decoder(features, exchange).mask_features, plain.mask_features, atol=1e-3)
    assert not torch.allclose(exchange.queries, queries, atol=1e-3)


def test_levels_of_the_exchange_meet_only_their_own_pixels():
    exchange = PixelTextExchange(1, 16, heads=2, feedforward_dim=32)
    awaken_like = [p for n, p in exchange.named_parameters() if n.endswith("out_proj.weight") or "linear2.weight" in n]
    for parameter in awaken_like:
        torch.nn.init.normal_(parameter)
    tokens, queries, shapes = torch.randn(1, 4 + 16, 16), torch.randn(1, 2, 5, 16), [(2, 2), (4, 4)]
    none = torch.zeros(1, 5, dtype=torch.bool)

    def run(t, q):
        state = exchange.start(q, none)
        return state(0, t, shapes), state.queries

    pixels, text = run(tokens, queries)
    changed_tokens, changed_queries = tokens.clone(), queries.clone()
    changed_tokens[:, 4:] += 1
    assert torch.equal(run(changed_tokens, queries)[1][:, 0], text[:, 0])
    assert not torch.equal(run(changed_tokens, queries)[1][:, 1], text[:, 1])
    changed_queries[:, 1] += torch.randn(5, 16)
    assert torch.equal(run(tokens, changed_queries)[0][:, :4], pixels[:, :4])
    assert not torch.equal(run(tokens, changed_queries)[0][:, 4:], pixels[:, 4:])


def test_presence_by_threshold_keeps_the_best_class():
    logits = torch.tensor([[5.0, 4.0, 0.0], [0.0, 0.0, 30.0]])
    none = torch.zeros(3, dtype=torch.bool)
    presence = presence_of_logits(logits, 0.2, none)
    assert torch.allclose(presence[0], torch.tensor([1.0, torch.tensor(-1.0).exp(), 0.0]))
    assert presence[1].tolist() == [0, 0, 1]
    cells = torch.zeros(1, 100, 3)
    cells[0, :97, 0], cells[0, 97:, 2] = 20, 20  # class 2 in three cells of a hundred
    assert presence_of_cells(cells, 0.5, none)[0].tolist() == pytest.approx([1, 0, 1], abs=1e-5)


def test_background_is_always_present_and_hides_no_other_class():
    assert background_classes([("sky",), ("Background ",), ("sea", "background")]).tolist() == [False, True, True]
    background = torch.tensor([True, False, False])
    for best in (9.0, -9.0):  # whether its text fits best or worst
        logits = torch.tensor([[best, 3.0, 2.0]])
        expected = [1, 1, math.exp(-1)]
        assert presence_of_logits(logits, 0.05, background)[0].tolist() == pytest.approx(expected, rel=1e-4)
        cells = logits.expand(1, 50, 3)
        assert presence_of_cells(cells, 0.05, background)[0].tolist() == pytest.approx(expected, rel=1e-4)
    assert presence_of_targets([torch.tensor([2])], background).tolist() == [[1, 0, 1]]
    assert presence_of_logits(torch.tensor([[5.0]]), 0.5, torch.tensor([True])).tolist() == [[1]]


def test_a_model_knows_which_of_its_classes_is_background(hvl_config):
    known = taxonomy_of("miniworld_train")
    taxonomy = known.with_names([("background",), *known.names[1:]])
    model = build_model(hvl_config("MODEL.HVL.PRESENCE", "image", "MODEL.HVL.PRESENCE_THRESHOLD", "1.0"), taxonomy)
    presence = model.zero_shot_presence(model.preprocess(samples(2)).tensor)
    assert presence[:, 0].tolist() == [1, 1]
    assert presence.sum(1).tolist() == [2, 2]  # and the best object
    model.set_taxonomy(known)
    assert not model.background.any()


def test_presence_is_the_ground_truth_for_labels_and_clips_for_the_rest(hvl):
    images = hvl.preprocess(samples(3)).tensor
    targets = [s["targets"] for s in samples(3)]
    targets[1] = Targets(targets[1].labels[:0], targets[1].masks[:0])  # an all-ignore image
    presence = hvl.presence(images, targets, [True, True, False])
    guessed = hvl.zero_shot_presence(images)
    assert presence[0].nonzero()[:, 0].tolist() == sorted(targets[0].labels.tolist())
    assert torch.equal(presence[1:], guessed[1:])
    assert (presence.amax(1) == 1).all()
    for mode in ("image", "dense", "all"):
        hvl.options = replace(hvl.options, presence=mode, presence_threshold=1.0)
        guessed = hvl.zero_shot_presence(images)
        assert guessed.shape == (3, K)
        assert guessed.sum(1).tolist() == [K if mode == "all" else 1] * 3


def test_absent_classes_cannot_change_any_output(hvl):
    awaken(hvl)
    hvl.eval()
    features = hvl.backbone(torch.randn(2, 3, 64, 64))
    absent = torch.zeros(2, K, dtype=torch.bool)
    absent[0, 3:9], absent[1, :5] = True, True
    content = torch.randn(2, LEVELS, K, 64)
    changed = torch.where(absent[:, None, :, None], 50 * torch.randn_like(content), content)
    with torch.no_grad():
        a, b = (hvl.decode_present(features, c, absent) for c in (content, changed))
        changed[:, :, 12] += 1
        other = hvl.decode_present(features, changed, absent)
    for name in ("class_outputs", "mask_embeddings", "mask_features"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert not torch.equal(getattr(a, name), getattr(other, name)), name
    rows = a.absent[None, ..., None]
    assert (a.mask_embeddings.masked_select(rows) == 0).all()
    probability = a.class_outputs.softmax(-1)
    assert probability.masked_select(rows).view(-1, K + 1)[:, -1].min() > 0.999999
    assert a.absent[0].nonzero()[:, 0].tolist() == [level * K + k for level in range(LEVELS) for k in range(3, 9)]


def test_presence_scales_the_queries(hvl):
    features, queries = hvl.backbone(torch.randn(1, 3, 64, 64)), torch.randn(LEVELS, K, 64)
    presence = torch.rand(1, K)
    presence[0, :4] = 0
    with torch.no_grad():
        a = hvl.decode(features, presence, queries)
        b = hvl.decode_present(features, presence[0][None, None, :, None] * queries[None], presence == 0)
    assert torch.equal(a.class_outputs, b.class_outputs)
    assert a.absent[0].nonzero()[:, 0].tolist() == [level * K + k for level in range(LEVELS) for k in range(4)]


def test_permuted_classes_permute_the_outputs(hvl):
    awaken(hvl)
    hvl.eval()
    features, order = hvl.backbone(torch.randn(1, 3, 64, 64)), torch.randperm(K)
    presence, queries = (torch.rand(1, K) > 0.3).float(), torch.randn(LEVELS, K, 64)
    with torch.no_grad():
        a = hvl.decode(features, presence, queries)
        b = hvl.decode(features, presence[:, order], queries[:, order])
    moved = torch.cat([order + level * K for level in range(LEVELS)])
    moved = torch.cat([moved, torch.arange(LEVELS * K, a.absent.shape[1])])
    assert torch.allclose(a.mask_embeddings[:, :, moved], b.mask_embeddings, atol=1e-4)
    assert torch.allclose(a.class_outputs[:, :, moved], b.class_outputs, atol=1e-4)


def test_a_batch_of_different_presence_equals_the_images_one_by_one(hvl):
    awaken(hvl)
    hvl.eval()
    images, queries = torch.randn(3, 3, 64, 64), torch.randn(LEVELS, K, 64)
    presence = (torch.rand(3, K) > torch.tensor([[0.2], [0.5], [0.9]])).float()
    presence[:, 0] = 1
    with torch.no_grad():
        batch = hvl.decode(hvl.backbone(images), presence, queries)
        for i in range(3):
            alone = hvl.decode(hvl.backbone(images[i : i + 1]), presence[i : i + 1], queries)
            for name in ("mask_embeddings", "class_outputs"):
                # before and after the first layer; later a rounding may turn a pixel of an attention mask
                assert torch.allclose(getattr(batch, name)[:2, i], getattr(alone, name)[:2, 0], atol=1e-4), name


@pytest.mark.parametrize("joint", [True, False])
def test_groups_of_queries_see_each_other_only_in_the_joint_decoder(hvl, joint):
    hvl.options = replace(hvl.options, joint_decoder=joint)
    hvl.eval()
    features, queries = hvl.backbone(torch.randn(1, 3, 64, 64)), torch.randn(LEVELS, K, 64)
    with torch.no_grad():
        a = hvl.decode(features, torch.ones(1, K), queries).mask_embeddings[-1, 0, LEVELS * K :]
        b = hvl.decode(features, torch.ones(1, K), queries + torch.randn_like(queries)).mask_embeddings[
            -1, 0, LEVELS * K :
        ]
    assert torch.equal(a, b) != joint


# ---------------------------------------------------------------------------------------------- matching


def decoder_output(batch: int, free: int, classes: int = K) -> DecoderOutput:
    queries = LEVELS * classes + free
    return DecoderOutput(
        torch.randn(2, batch, queries, classes + 1), torch.randn(2, batch, queries, 8), torch.randn(batch, 8, 16, 16),
        torch.zeros(batch, queries, dtype=torch.bool),
    )  # fmt: skip


def test_fixed_matching_gives_each_class_its_own_queries_and_free_ones_any():
    matcher = TextualMatcher(HungarianMatcher(num_points=64), K, LEVELS)
    targets, output = [semantic_targets(0), semantic_targets(1)], decoder_output(2, 6)
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        output.mask_embeddings.normal_()
        matches = matcher(output.class_outputs, output, targets)
        labels = torch.cat([t.labels for t in targets])
        assert matches.query.shape == (2, 8, LEVELS + 1)
        assert torch.equal(matches.query[..., :LEVELS] % K, labels[None, :, None].expand(2, -1, LEVELS))
        assert torch.equal(matches.query[0, 0, :LEVELS] // K, torch.arange(LEVELS))
        free = matches.query[..., LEVELS]
        assert (free >= LEVELS * K).all()
        for rows in (slice(0, 4), slice(4, 8)):
            assert all(len(set(r.tolist())) == 4 for r in free[:, rows])
        seen |= {(int(label), int(query)) for label, query in zip(labels, free[0], strict=True)}
    assert len(seen) > 20  # no free query belongs to a class


def test_fixed_matching_is_what_hungarian_finds_when_costs_force_it():
    targets, output = [semantic_targets(0), semantic_targets(3)], decoder_output(2, 0)
    logits = torch.full((2, 2, K, K + 1), -30.0)
    logits[..., torch.arange(K), torch.arange(K)] = 30  # query k is sure of class k
    one_level = replace(output, mask_embeddings=output.mask_embeddings[:, :, :K], absent=output.absent[:, :K])
    hungarian = HungarianMatcher(class_weight=1e4, num_points=16)(logits, one_level, targets)
    fixed = TextualMatcher(HungarianMatcher(num_points=16), K, 1)(logits, one_level, targets)
    assert torch.equal(hungarian.query, fixed.query)
    assert torch.equal(hungarian.matched, fixed.matched)


def test_a_class_taken_for_absent_has_no_match():
    targets, output = [semantic_targets(0)], decoder_output(1, 2)
    gone = int(targets[0].labels[2])
    output.absent[0, [gone + level * K for level in range(LEVELS)]] = True
    matches = TextualMatcher(HungarianMatcher(num_points=16), K, LEVELS)(output.class_outputs, output, targets)
    assert matches.matched[:, :, :LEVELS].sum(-1)[0].tolist() == [LEVELS, LEVELS, 0, LEVELS]


def test_criterion_of_a_group_is_the_mean_over_its_queries():
    """Mask losses with three fixed queries a segment: the mean of the losses of each level alone."""
    losses = PointMaskLosses(num_points=4000, oversample_ratio=1, importance_sample_ratio=0)
    targets = [semantic_targets(0, 16)]
    output = decoder_output(1, 0)
    output = replace(output, mask_embeddings=output.mask_embeddings / 4)
    matcher = TextualMatcher(HungarianMatcher(num_points=16), K, LEVELS)
    matches = matcher(output.class_outputs, output, targets)
    bce, dice = losses(output, targets, matches)
    parts = [
        losses(output, targets, replace(matches, query=matches.query[..., [i]], matched=matches.matched[..., [i]]))
        for i in range(LEVELS)
    ]
    assert torch.allclose(bce, torch.stack([p[0] for p in parts]).mean(0), rtol=0.05)
    assert torch.allclose(dice, torch.stack([p[1] for p in parts]).mean(0), rtol=0.05)


def test_mask_losses_of_a_segment_are_the_mean_over_the_queries_it_has():
    """With its textual queries absent a segment's loss is that of its free query, not a quarter of it."""
    losses = PointMaskLosses(num_points=4000, oversample_ratio=1, importance_sample_ratio=0)
    targets = [semantic_targets(0, 16)]
    output = decoder_output(1, 6)
    output = replace(output, mask_embeddings=output.mask_embeddings / 4)
    output.absent[:, : LEVELS * K] = True
    matches = TextualMatcher(HungarianMatcher(num_points=16), K, LEVELS)(output.class_outputs, output, targets)
    assert matches.matched.sum(-1).unique().tolist() == [1]
    free = replace(matches, query=matches.query[..., -1:], matched=matches.matched[..., -1:])
    for loss, alone in zip(losses(output, targets, matches), losses(output, targets, free), strict=True):
        assert torch.allclose(loss, alone, rtol=0.05)
    nobody = replace(matches, matched=torch.zeros_like(matches.matched))
    assert all((loss == 0).all() for loss in losses(output, targets, nobody))


# ---------------------------------------------------------------------------------------------- vision-language


def test_only_the_hidden_region_enters_the_losses():
    features, reference = (F.normalize(torch.randn(2, 8, 4, 4), dim=1) for _ in range(2))
    text, label = F.normalize(torch.randn(5, 8), dim=-1), torch.tensor([1, 4])
    region = torch.zeros(2, 16, 16, dtype=torch.bool)
    region[0, :8, :4], region[1, 8:12, 8:] = True, True
    losses = region_losses(features, reference, region, label, text, 0.07)
    changed = features.clone()
    changed[0, :, 2:], changed[1, :, :2] = 0.3, 0.3
    assert torch.equal(torch.stack(losses), torch.stack(region_losses(changed, reference, region, label, text, 0.07)))
    cells = [(0, 0, 0), (0, 1, 0), (1, 2, 2), (1, 2, 3)]
    align = [F.cross_entropy(text @ features[b, :, y, x] / 0.07, label[b]) for b, y, x in cells]
    distance = [1 - features[b, :, y, x] @ reference[b, :, y, x] for b, y, x in cells]
    assert losses[0] == pytest.approx(float(sum(align) / 4), rel=1e-5)
    assert losses[1] == pytest.approx(float(sum(distance) / 4), rel=1e-5)
    assert region_losses(features, reference, region & False, label, text, 0.07) == (0, 0)


def test_hidden_regions_are_classes_of_middling_size():
    masks = torch.zeros(4, 40, 40, dtype=torch.bool)
    masks[0, :30], masks[1, 30:], masks[2, :2, :5], masks[3, 0, 0] = True, True, True, True  # 75, 25, 0.6, 0.06 %
    big = Targets(torch.tensor([7, 3, 5, 1]), masks)
    for seed in range(10):
        torch.manual_seed(seed)
        region, label = masked_regions([big, Targets(big.labels[:1], masks[:1]), Targets(big.labels[:0], masks[:0])])
        assert torch.equal(region[0], masks[1])
        assert label[0] == 3
        assert not region[1:].any()


def test_the_reference_encoder_has_no_gradient_and_does_not_change(hvl_config):
    model = build_model(hvl_config()).train()
    before = {k: v.clone() for k, v in model.reference_tower.state_dict().items()}
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.clip_model.visual.state_dict().items())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    sum(model({"labeled": samples(2)}).values()).backward()
    optimizer.step()
    assert not any(m.training for m in model.reference_tower.modules())
    assert all(p.grad is None for p in model.reference_tower.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.reference_tower.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in model.backbone.clip_model.visual.state_dict().items())
    teacher = EMATeacher(model)
    assert teacher.model.reference_tower is model.reference_tower  # shared, not copied


# ---------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize("streams", [{"labeled": samples(2)}, both_streams()], ids=["labels", "both"])
@pytest.mark.parametrize("amp", [False, True])
def test_every_trainable_tensor_gets_a_gradient_in_one_step(hvl_config, streams, amp):
    model = build_model(hvl_config()).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        losses = model(streams)
    assert all(torch.isfinite(v) for v in losses.values())
    extra = {"loss_diversity", "loss_prompt", "loss_align", "loss_consistency"}
    assert extra <= set(losses)
    assert ("unlabeled_loss_entropy" in losses) == ("unlabeled" in streams)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


PARTS_OFF = (
    "MODEL.HVL.TEXTUAL_QUERIES", "False", "MODEL.HVL.ENTROPY_WEIGHT", "0.0", "MODEL.MASK_FORMER.NUM_QUERIES", "25",
)  # fmt: skip


def test_with_its_parts_off_it_is_mask2former_bit_by_bit(hvl_config):
    cfg = hvl_config(*PARTS_OFF)
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.META_ARCHITECTURE = "MaskFormer"
    models = []
    for config in (cfg, plain):
        torch.manual_seed(3)
        models.append(build_model(config))
    assert [n for n, _ in models[0].named_parameters()] == [n for n, _ in models[1].named_parameters()]
    results = []
    for model in models:
        torch.manual_seed(5)
        losses = model.train()(both_streams())
        sum(losses.values()).backward()
        scores = model.eval()([{"image": samples(1)[0]["image"]}])[0]["sem_seg"]
        results.append((losses, scores, [p.grad for p in model.parameters() if p.grad is not None]))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert all(torch.equal(a, b) for a, b in zip(results[0][2], results[1][2], strict=True))


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        (("MODEL.HVL.REFINEMENT", "False"), "exchange"),
        (("MODEL.HVL.PROMPT_WEIGHT", "0.0"), "nothing"),
        (("MODEL.MASK_FORMER.NUM_QUERIES", "0"), "nothing"),
        (("MODEL.HVL.VL_WEIGHT", "0.0", "MODEL.BACKBONE.FREEZE", "True"), "reference_tower"),
        (("MODEL.HVL.PER_CLASS_PROMPTS", "True", "MODEL.HVL.INFERENCE", "argmax"), "nothing"),
    ],
)
def test_each_part_can_be_switched_off(hvl_config, overrides, unused):
    model = build_model(hvl_config(*overrides)).train()
    sum(model(both_streams()).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(unused in n for n, _ in model.named_parameters())
    output = model.eval()([{"image": samples(1)[0]["image"], "height": 50, "width": 70}])[0]
    assert output["sem_seg"].shape == (K, 50, 70)
    assert set(output) == {"sem_seg"}


def test_sliding_windows_of_the_whole_image_change_nothing(hvl_config):
    model = build_model(hvl_config()).eval()
    inputs = [{"image": samples(1, size=96)[0]["image"]}]
    whole = model(inputs)[0]["sem_seg"]
    model.read_out = replace(model.read_out, window=96, window_stride=64)
    assert torch.allclose(model(inputs)[0]["sem_seg"], whole, atol=1e-5)
    model.read_out = replace(model.read_out, window=64, window_stride=32)
    assert model([{**inputs[0], "height": 60, "width": 80}])[0]["sem_seg"].shape == (K, 60, 80)
    with pytest.raises(ConfigError, match="TEST.WINDOW gives semantic scores only"):
        hvl_config("MODEL.META_ARCHITECTURE", "MaskFormer", "DATASETS.UNLABELED", "()", "TEST.WINDOW", "64",
                   "TEST.PANOPTIC_ON", "True")  # fmt: skip


def test_pseudo_labels_are_semantic_and_cut_to_the_valid_pixels(hvl_config):
    model = build_model(hvl_config("SSL.CONFIDENCE", "0.09"))
    teacher, inputs = EMATeacher(model), [{"image": s["image"]} for s in samples(2)]
    inputs[1]["inside"] = torch.arange(64).expand(64, 64) < 40
    for target in teacher.pseudo_label(inputs):
        assert len(set(target.labels.tolist())) == len(target.labels)
        assert torch.equal(target.masks.any(0), target.valid)
        assert target.masks.sum(0).max() <= 1
    assert not target.valid[:, 40:].any()
    assert target.valid.any()


def test_a_pixel_that_no_mask_claims_has_no_pseudo_label(hvl_config, monkeypatch):
    model = build_model(hvl_config("SSL.CONFIDENCE", "0.8"))
    class_logits = torch.full((1, 1, K + 1), -10.0)
    class_logits[..., 3] = 10  # one query, sure of its class, on the left half
    masks = torch.full((1, 1, 16, 16), -4.0)
    masks[..., :8] = 8
    monkeypatch.setattr(model, "predict", lambda images: (class_logits, masks))
    (target,) = model.pseudo_label([{"image": samples(1)[0]["image"]}])
    assert target.labels.tolist() == [3]
    assert target.valid[:, :28].all()
    assert not target.valid[:, 36:].any()


def test_queries_are_made_from_what_l_anchor_holds(hvl_config):
    model = build_model(hvl_config()).eval()
    text, generated = model.embedded_names()
    assert torch.allclose(text, generated, atol=1e-6)  # at the start
    image = {"image": samples(1)[0]["image"]}
    before = model([image])[0]["sem_seg"]
    torch.nn.init.normal_(model.prompt_generator.mlp.layers[-1].weight, std=0.5)
    assert not torch.allclose(model([image])[0]["sem_seg"], before, atol=1e-3)


def test_a_plain_backbone_takes_its_text_from_a_clip_model_beside_it(hvl_config):
    options = (
        "MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.BACKBONE.ARCH", "resnet10t", "MODEL.BACKBONE.WEIGHTS", "",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="resnet10t|no text tower"):
        build_model(hvl_config(*options, "MODEL.HVL.VL_WEIGHT", "0.0"))
    text = ("MODEL.TEXT.ENCODER", "miniworld-convnext", "MODEL.TEXT.WEIGHTS", "shipped", "MODEL.HVL.VL_WEIGHT", "0.0")
    model = build_model(hvl_config(*options, *text)).train()
    own = build_model(hvl_config()).eval()
    images = samples(2)
    ours, theirs = (m.zero_shot_presence(m.preprocess(images).tensor) for m in (model, own))
    assert torch.allclose(ours, theirs, atol=1e-4)  # whatever the backbone's normalisation
    sum(model(both_streams()).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in model.language_model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("INPUT.TARGETS", "panoptic"), "segments semantically"),
        (("MODEL.CLASSIFIER", "text"), "linear classifier"),
        (("MODEL.BACKBONE.FREEZE", "True"), "MODEL.HVL.VL_WEIGHT trains the image tower"),
        (("MODEL.HVL.PRESENCE", "maybe"), "'image', 'dense' or 'all'"),
        (("MODEL.MASK_FORMER.HIDDEN_DIM", "32"), "MODEL.PIXEL_DECODER.DIM must equal"),
        (("MODEL.HVL.TEXTUAL_QUERIES", "False", "MODEL.MASK_FORMER.NUM_QUERIES", "0"), "needs MODEL.MASK_FORMER"),
        (("MODEL.HVL.HIERARCHY", "False"), "are equal: set MODEL.HVL.DIVERSITY_WEIGHT to 0"),
        (("MODEL.META_ARCHITECTURE", "MaskFormer"), "segments semantically"),
        (("MODEL.HVL.PRESENCE", "image", "MODEL.MASK_FORMER.NUM_QUERIES", "0"), "MODEL.HVL.PRESENCE to dense or all"),
        (
            ("DATALOADER.RARE_CLASS_TEMPERATURE", "0.0"),
            "RARE_CLASS_TEMPERATURE is 0.0; it must be a finite number, above 0",
        ),
    ],
)
def test_contradictions_are_config_errors(hvl_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        hvl_config(*overrides)


def test_published_settings_of_the_configs(repo):
    """Strong view and scales of SemiVL; ablations without free queries see every cell."""
    for path in sorted((repo / "configs").glob("*/hvl_*.yaml")):
        if path.parent.name == "camvid":
            continue
        cfg = get_config(path, ["MODEL.DEVICE", "cpu"])
        assert (tuple(cfg.SSL.JITTER), cfg.SSL.JITTER_PROBABILITY) == ((0.5, 0.5, 0.5, 0.25), 0.8), path
        scales = {"cityscapes": (0.6, 2.6), "coco_objects": (0.5, 1.9)}.get(path.parent.name, (0.5, 2.0))
        assert tuple(cfg.INPUT.SCALE_RANGE) == scales, path
        assert 2 * scales[1] * cfg.INPUT.CROP_SIZE <= cfg.INPUT.MAX_SIZE_TRAIN, path
        assert cfg.MODEL.MASK_FORMER.NUM_QUERIES == 100 or cfg.MODEL.HVL.PRESENCE == "dense", path


def test_taxonomies_with_one_name_twice_are_refused(hvl_config):
    names = tuple((f"class {i // 2}",) for i in range(K))
    taxonomy = Taxonomy(names, frozenset(), tuple(range(K)), tuple((0, 0, 0) for _ in names))
    with pytest.raises(ConfigError, match="two classes have the name 'class 0'"):
        build_model(hvl_config(), taxonomy)


def test_queries_that_cannot_fit_into_memory_are_refused_before_training(hvl_config):
    check_query_memory(hvl_config())
    with pytest.raises(ConfigError, match=r"16 classes x 3 levels and 16 free queries are 64: .* need about \d+ GiB"):
        check_query_memory(hvl_config("INPUT.CROP_SIZE", "200000"))


def test_training_resumes_and_its_teacher_labels_semantically(hvl_config):
    from dearli_d2.engine.trainer import DualStreamTrainer

    options = ("SOLVER.MAX_ITER", "4", "SSL.CONFIDENCE", "0.07", "SSL.CUTMIX", "1.0", "SSL.MONITOR_PERIOD", "2",
               "SSL.MONITOR_IMAGES", "2")  # fmt: skip
    cfg = hvl_config(*options)
    whole = DualStreamTrainer(cfg)
    whole.train()
    scores = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert any("pseudo_label/mIoU" in entry and entry["pseudo_label/coverage"] > 0 for entry in scores)
    for sample in whole.batch["unlabeled"]:
        labels = sample["targets"].labels.tolist()
        assert len(set(labels)) == len(labels)  # CutMix joins equal classes, things too
        assert sample["targets"].valid is not None
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000002.pth")
    resumed = DualStreamTrainer(cfg, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    for a, b in ((whole.student, resumed.student), (whole.teacher.model, resumed.teacher.model)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert "reference_tower" in " ".join(whole.student.state_dict())
