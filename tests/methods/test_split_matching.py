"""Split Matching: the leak test, matching of two groups, losses, the auxiliary head, inference (spec's properties)."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dearli_d2.config import get_config
from dearli_d2.data.build import build_streams, labeled_dicts
from dearli_d2.data.catalog import PanopticSource, dataset_dicts, dataset_records, register, taxonomy_of
from dearli_d2.data.panoptic_png import ids_to_rgb
from dearli_d2.data.preparation import save_png, semantic_segments, write_panoptic_json
from dearli_d2.data.zero_shot import without_classes
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, DatasetError
from dearli_d2.evaluation.semantic import seen_and_unseen
from dearli_d2.methods.split_matching.matching import (
    FocalIoUMatcher,
    SplitCriterion,
    SplitMatcher,
    candidate_cosine,
    label_map,
    pixel_losses,
)
from dearli_d2.methods.split_matching.structures import SplitTargets
from dearli_d2.modeling import build_model
from dearli_d2.modeling.mask2former.losses import mask_iou, sigmoid_focal
from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput
from dearli_d2.structures import Targets

SEEN_QUERIES, CANDIDATES, NUM_SEEN, WIDTH = 6, 4, 5, 8


@pytest.fixture
def zero_shot(mini_config):
    fixed = ("INPUT.CROP_SIZE", "64", "DATASETS.TRAIN", "('miniworld_train@0.02',)")
    return lambda *overrides: mini_config(*fixed, *overrides, file="split_matching.yaml")


def split_targets(seen: int, regions: int, seed: int = 0, size: int = 16) -> SplitTargets:
    """Disjoint stripes: first the annotated ones, then the regions."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(size) * max(seen + regions, 1) // size
    masks = (owner == torch.arange(seen + regions)[:, None])[..., None].expand(-1, -1, size).clone()
    labels = torch.randperm(NUM_SEEN, generator=generator)[:seen]
    embeddings = F.normalize(torch.randn(regions, WIDTH, generator=generator), dim=-1)
    return SplitTargets(Targets(labels, masks[:seen]), Targets(torch.arange(regions), masks[seen:]), embeddings)


def predictions(targets, layers: int = 3) -> tuple[torch.Tensor, DecoderOutput]:
    """Logits with a column for each seen class and each image's own regions, padded at -inf."""
    batch, width = len(targets), max(len(t.embeddings) for t in targets)
    queries = SEEN_QUERIES + CANDIDATES
    logits = torch.randn(layers, batch, queries, NUM_SEEN + width)
    for index, target in enumerate(targets):
        logits[:, index, :, NUM_SEEN + len(target.embeddings) :] = -torch.inf
    output = DecoderOutput(
        torch.randn(layers, batch, queries, WIDTH),
        torch.randn(layers, batch, queries, 8),
        torch.randn(batch, 8, 16, 16),
    )
    return logits, output


def criterion(points: int = 400) -> SplitCriterion:
    matcher = FocalIoUMatcher(2.0, 5.0, 5.0, num_points=points)
    return SplitCriterion(NUM_SEEN, SplitMatcher(matcher, SEEN_QUERIES), num_points=points)


# ---------------------------------------------------------------------------------------------- losses


def test_losses_equal_their_definitions_in_float64():
    logits, targets = 3 * torch.randn(6, 40), (torch.rand(6, 40) > 0.6).float()
    x, t = logits.double(), targets.double()
    p = torch.sigmoid(x)
    pt, weight = torch.where(t > 0, p, 1 - p), torch.where(t > 0, 0.25, 0.75)
    assert torch.allclose(sigmoid_focal(logits, targets).double(), -weight * (1 - pt) ** 2 * pt.log(), atol=1e-5)
    overlap = (p * t).sum(1)
    assert torch.allclose(
        mask_iou(logits, targets).double(), 1 - (overlap + 1) / (p.sum(1) + t.sum(1) - overlap + 1), atol=1e-5
    )
    valid = (torch.rand(6, 40) > 0.5).float()
    cut = [mask_iou(a[v > 0][None], b[v > 0][None])[0] for a, b, v in zip(logits, targets, valid, strict=True)]
    assert torch.allclose(mask_iou(logits, targets, valid), torch.stack(cut), atol=1e-5)


def test_pairwise_costs_equal_a_loop():
    matcher = FocalIoUMatcher(2.0, 5.0, 3.0)
    logits, masks, valid = (
        torch.randn(2, 4, 30),
        (torch.rand(2, 3, 30) > 0.5).float(),
        (torch.rand(2, 30) > 0.3).float(),
    )
    for weight in (None, valid):
        cost = matcher.mask_cost(logits, masks, weight)
        for b in range(2):
            keep = torch.ones(30, dtype=torch.bool) if weight is None else weight[b] > 0
            for q in range(4):
                for n in range(3):
                    p, t = logits[b, q, keep].sigmoid(), masks[b, n, keep]
                    overlap, total = (p * t).sum(), p.sum() + t.sum()
                    dice, iou = 1 - (2 * overlap + 1) / (total + 1), 1 - (overlap + 1) / (total - overlap + 1)
                    assert float(cost[b, q, n]) == pytest.approx(float(5 * iou + 3 * dice), abs=1e-4)
    scores, labels = torch.randn(1, 4, 6), torch.tensor([[5, 0]])
    cost = matcher.class_cost(scores, labels)
    p = scores[0, :, 5].sigmoid()
    expected = 2 * (0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log())
    assert torch.allclose(cost[0, :, 0], expected, atol=1e-5)


def test_pixel_losses_are_cross_entropy_and_focal_of_labelled_pixels():
    logits, labels = torch.randn(2, 4, 5, 6), torch.randint(-1, 4, (2, 5, 6))
    p = logits.double().softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0][labels >= 0]
    assert float(pixel_losses(logits, labels)) == pytest.approx(float((-(1 + (1 - p) ** 2) * p.log()).mean()), rel=1e-5)
    assert pixel_losses(logits, labels * 0 - 1) == 0


def test_candidate_cosine_is_the_mean_over_matched_regions():
    targets = [split_targets(2, 3), split_targets(1, 0, 1), split_targets(0, 2, 2)]
    logits, output = predictions(targets)
    matches = criterion().matcher(logits, output, targets)
    loss = candidate_cosine(output.class_outputs, targets, matches)
    is_region = torch.tensor([0, 0, 1, 1, 1, 0, 1, 1]).bool()
    embeddings = torch.cat([t.embeddings for t in targets])
    for layer in range(3):
        vectors = output.class_outputs[layer, matches.image[is_region], matches.query[layer, is_region, 0]]
        expected = (1 - F.cosine_similarity(vectors.double(), embeddings.double())).mean()
        assert float(loss[layer]) == pytest.approx(float(expected), abs=1e-5)
    none = [split_targets(2, 0)]
    logits, output = predictions(none)
    assert (candidate_cosine(output.class_outputs, none, criterion().matcher(logits, output, none)) == 0).all()


# ---------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize(
    "counts", [[(3, 2), (2, 3)], [(3, 0), (0, 2)], [(2, 6), (0, 0)], [(0, 0), (0, 0)], [(5, 0), (4, 0)]]
)
def test_each_group_matches_its_own_kind(counts):
    targets = [split_targets(s, u, i) for i, (s, u) in enumerate(counts)]
    for seed in range(5):
        torch.manual_seed(seed)
        logits, output = predictions(targets)
        crit = criterion()
        losses, matches = crit(logits, output, targets), crit.matcher(logits, output, targets)
        assert all(torch.isfinite(v) for v in losses.values())
        row = 0
        for s, u in counts:
            seen, regions = slice(row, row + s), slice(row + s, row + s + u)
            assert (matches.query[:, seen] < SEEN_QUERIES).all()
            taken = matches.matched[:, regions, 0] > 0
            assert (matches.query[:, regions, 0][taken] >= SEEN_QUERIES).all()
            assert (taken.sum(1) == min(u, CANDIDATES)).all()  # more regions than queries: some go without
            row += s + u


def test_the_assignment_is_the_cheapest_of_each_group():
    from itertools import permutations

    targets = [split_targets(2, 2)]
    logits, output = predictions(targets)
    base, split = FocalIoUMatcher(num_points=300), SplitMatcher(FocalIoUMatcher(num_points=300), SEEN_QUERIES)
    torch.manual_seed(7)
    matches = split(logits, output, targets)
    torch.manual_seed(7)
    part = replace(output, mask_embeddings=output.mask_embeddings[:, :, :SEEN_QUERIES])
    cost = base.costs(logits[:, :, :SEEN_QUERIES], part, [targets[0].seen])
    for layer in range(3):
        cheapest = min(
            permutations(range(SEEN_QUERIES), 2), key=lambda p: float(cost[layer, 0, p[0], 0] + cost[layer, 0, p[1], 1])
        )
        assert matches.query[layer, :2, 0].tolist() == list(cheapest)


def test_permuted_candidates_permute_the_assignment():
    target = split_targets(2, 3)
    logits, output = predictions([target])
    order = torch.tensor([2, 0, 1])
    other = SplitTargets(
        target.seen, Targets(torch.arange(3), target.candidates.masks[order]), target.embeddings[order]
    )
    moved = torch.cat([logits[..., :NUM_SEEN], logits[..., NUM_SEEN:][..., order]], -1)
    results = []
    for scores, t in ((logits, target), (moved, other)):
        torch.manual_seed(1)
        results.append(criterion().matcher(scores, output, [t]).query[:, 2:, 0])
    assert torch.equal(results[0][:, order], results[1])


def test_losses_have_names_prefixes_of_their_group_and_weights():
    targets = [split_targets(2, 2), split_targets(1, 3, 1)]
    logits, output = predictions(targets)
    matcher = SplitMatcher(FocalIoUMatcher(num_points=200), SEEN_QUERIES)
    with_cosine = SplitCriterion(NUM_SEEN, matcher, cosine_weight=3.0, num_points=200)
    torch.manual_seed(0)
    losses = with_cosine(logits, output, targets, [("one_", 1), ("two_", 1)])
    kinds = ("loss_ce", "loss_mask", "loss_dice", "loss_cosine")
    assert set(losses) == {
        f"{group}{kind}{layer}" for group in ("one_", "two_") for kind in kinds for layer in ("_0", "_1", "")
    }
    assert all(loss.dim() == 0 for loss in losses.values())
    torch.manual_seed(0)
    matches = matcher(logits, output, targets)
    for index, group in enumerate(("one_", "two_")):
        part = output.images(index, index + 1), targets[index : index + 1], matches.images(index, index + 1, [4, 4])
        cosine = candidate_cosine(part[0].class_outputs, *part[1:])
        for layer, name in enumerate(("loss_cosine_0", "loss_cosine_1", "loss_cosine")):
            assert float(losses[group + name]) == pytest.approx(3 * float(cosine[layer]), rel=1e-5)


def test_class_targets_are_one_hot_and_padding_carries_no_loss():
    targets = [split_targets(2, 3), split_targets(1, 1, 1)]
    logits, output = predictions(targets)
    crit = criterion()
    torch.manual_seed(0)
    losses = crit(logits, output, targets)
    torch.manual_seed(0)
    matches = crit.matcher(logits, output, targets)
    wanted = torch.zeros_like(logits)
    labels = torch.cat([t.joint(NUM_SEEN).labels for t in targets])
    for layer in range(3):
        for image, label, query in zip(matches.image, labels, matches.query[layer, :, 0], strict=True):
            wanted[layer, image, query, label] = 1
    exists = torch.isfinite(logits)
    expected = torch.where(exists, sigmoid_focal(logits.masked_fill(~exists, 0.0), wanted), 0.0).sum((1, 2, 3)) / 7
    for layer, name in enumerate(("loss_ce_0", "loss_ce_1", "loss_ce")):
        assert float(losses[name]) == pytest.approx(float(2 * expected[layer]), rel=1e-4)


def test_with_all_pixels_annotated_the_losses_are_those_of_the_seen_queries():
    """Regions are none, and the candidate queries only learn to say no."""
    targets = [split_targets(3, 0), split_targets(2, 0, 1)]
    logits, output = predictions(targets)
    seen_only = DecoderOutput(
        output.class_outputs[:, :, :SEEN_QUERIES], output.mask_embeddings[:, :, :SEEN_QUERIES], output.mask_features
    )
    results = []
    for scores, out in ((logits, output), (logits[:, :, :SEEN_QUERIES], seen_only)):
        torch.manual_seed(2)
        results.append(criterion()(scores, out, targets))
    rest = sigmoid_focal(logits[:, :, SEEN_QUERIES:], torch.zeros_like(logits[:, :, SEEN_QUERIES:])).sum((1, 2, 3)) / 5
    for name, value in results[1].items():
        extra = 2 * float(rest[int(name[-1]) if name[-1].isdigit() else -1]) if name.startswith("loss_ce") else 0.0
        assert float(results[0][name]) == pytest.approx(float(value) + extra, rel=1e-4), name


def test_label_maps_tell_the_class_of_each_pixel():
    target = split_targets(2, 2)
    joint = replace(target.joint(NUM_SEEN), valid=torch.ones(16, 16, dtype=torch.bool))
    joint.valid[:, 8:] = False
    labels = label_map([joint], (8, 8))[0]
    assert labels[0, 0] == target.seen.labels[0]
    assert labels[7, 0] == NUM_SEEN + 1
    assert (labels[:, 4:] == -1).all()


# ---------------------------------------------------------------------------------------------- the leak test


def gradients(cfg, trainer_taxonomy=None):
    """Losses and gradients of one training step."""
    torch.manual_seed(0)
    model = build_model(cfg, trainer_taxonomy).train()
    batch = next(build_streams(cfg))
    torch.manual_seed(1)
    losses = model(batch)
    sum(losses.values()).backward()
    return {k: float(v) for k, v in losses.items()}, [p.grad for p in model.parameters() if p.grad is not None]


def assert_same(a, b):
    assert a[0] == b[0]
    assert len(a[1]) == len(b[1]) > 50
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


def test_names_of_unseen_classes_change_nothing_in_a_training_step(zero_shot):
    cfg = zero_shot()
    taxonomy = taxonomy_of("miniworld_train")
    first = gradients(cfg, taxonomy)
    names = list(taxonomy.names)
    for name in cfg.DATASETS.UNSEEN_CLASSES:
        # the ids are known by name, so the name in the list stays; its synonyms are what the text tower would read too
        index = taxonomy.main_names.index(name)
        names[index] = (name, "a zebra", "purple box")
    assert_same(first, gradients(cfg, taxonomy.with_names(names)))
    seen = [("something else",) if n[0] == "sky" else n for n in taxonomy.names]
    other = gradients(cfg, taxonomy.with_names(seen))
    assert other[0] != first[0]  # names of seen classes do matter


@pytest.fixture
def made_up(tmp_path):
    """Eight images of four classes; "b" and "d" are unseen. `make(swap)` also swaps the labels of b and d."""

    def make(name: str, swap: bool) -> str:
        root, rng, records = tmp_path / name, np.random.default_rng(0), []
        categories = [{"id": i, "name": n, "isthing": 0} for i, n in enumerate(("class a", "b", "c", "d"))]
        for i in range(8):
            semantic = np.kron(rng.integers(0, 4, (4, 4)), np.ones((16, 16), int)).astype(np.uint8)
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            (tmp_path / "images").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.jpg", quality=95)
            if swap:
                semantic = np.array([0, 3, 2, 1], np.uint8)[semantic]
            ids, segments = semantic_segments(semantic, categories, Path(f"{i}.png"))
            save_png(root / f"{i}.png", ids_to_rgb(ids))
            records.append({"stem": str(i), "height": 64, "width": 64, "segments_info": segments})
        write_panoptic_json(root / "labels.json", records, categories)
        register(name, PanopticSource(tmp_path / "images", root / "labels.json", root))
        return name

    return make


def test_labels_of_unseen_classes_change_nothing_in_a_training_step(zero_shot, made_up):
    options = ("MODEL.NUM_CLASSES", "4", "DATASETS.UNSEEN_CLASSES", "('b', 'd')")
    results = []
    for name, swap in (("leak_one", False), ("leak_two", True)):
        cfg = zero_shot(*options, "DATASETS.TRAIN", f"('{made_up(name, swap)}',)")
        assert any(s["category_id"] in (1, 3) for d in dataset_dicts(cfg.DATASETS.TRAIN[0]) for s in d["segments_info"])
        results.append(gradients(cfg))
    assert_same(*results)


def test_unseen_labels_are_gone_when_read_and_refused_if_not(zero_shot):
    cfg = zero_shot()
    dicts = labeled_dicts(cfg)
    assert {s["category_id"] for d in dicts for s in d["segments_info"]}.isdisjoint((3, 8, 15))
    whole = dataset_records("miniworld_train@0.02")
    assert any(s["category_id"] in (3, 8, 15) for d in whole for s in d["segments_info"])
    assert not any("sem_seg_file_name" in d for d in without_classes(whole, (3,)))
    from dearli_d2.data.build import build_labeled_mapper

    bad = next(d for d in whole if any(s["category_id"] == 15 for s in d["segments_info"]))
    with pytest.raises(DatasetError, match=r"hold the unseen class \d+; training on it is refused"):
        build_labeled_mapper(cfg)(bad)


def test_no_checkpoint_is_chosen_by_a_score_that_knows_unseen_classes(zero_shot, repo):
    for metric in ("semantic/hIoU", "semantic/mIoU", "semantic/sIoU"):
        with pytest.raises(ConfigError, match="would choose a checkpoint with annotations of unseen classes"):
            zero_shot("TEST.BEST_METRIC", metric)
    for path in (repo / "configs").glob("*_zero_shot/split*.yaml"):
        assert not get_config(path, ["MODEL.DEVICE", "cpu"]).TEST.BEST_METRIC


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("('sand', 'cheese')", "no class is called 'cheese'"),
        (str(tuple(taxonomy_of("miniworld_train").main_names)), "names 16 of 16 classes"),
        ("()", "needs DATASETS.UNSEEN_CLASSES"),
    ],
)
def test_impossible_splits_are_errors(zero_shot, names, message):
    with pytest.raises(ConfigError, match=message):
        build_model(zero_shot("DATASETS.UNSEEN_CLASSES", names))


# ---------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("MODEL.SPLIT.MFE_WEIGHT", "0.0"),
        ("MODEL.SPLIT.CANDIDATE_QUERIES", "0"),
        ("MODEL.SPLIT.COSINE_WEIGHT", "0.0"),
        ("MODEL.SPLIT.CANDIDATE_EMBEDDING", "dense_mlp", "MODEL.SPLIT.MFE_NORM", "NONE"),
        ("MODEL.SPLIT.CANDIDATE_EMBEDDING", "dense", "MODEL.SPLIT.MFE_NORM", "BN"),
        ("SOLVER.AMP.ENABLED", "True"),
    ],
)
def test_every_trainable_tensor_gets_a_gradient(zero_shot, overrides):
    cfg = zero_shot(*overrides)
    model = build_model(cfg).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED):
        losses = model(next(build_streams(cfg)))
    assert all(torch.isfinite(v) for v in losses.values())
    assert ("loss_mfe" in losses) == (cfg.MODEL.SPLIT.MFE_WEIGHT > 0)
    assert ("loss_cosine" in losses) == (cfg.MODEL.SPLIT.CANDIDATE_QUERIES > 0 and cfg.MODEL.SPLIT.COSINE_WEIGHT > 0)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("norm", "kinds"), [("GN", {"GroupNorm"}), ("BN", {"RankBatchNorm"}), ("NONE", set())])
def test_normalisation_of_the_auxiliary_head_is_a_key(zero_shot, norm, kinds):
    head = build_model(zero_shot("MODEL.SPLIT.MFE_NORM", norm)).enhancement
    assert {type(m).__name__ for m in head.modules() if "Norm" in type(m).__name__} == kinds
    assert all((block[0].bias is None) == bool(kinds) for block in head.blocks)


def test_class_embeddings_of_regions_are_a_key(zero_shot):
    """The same regions, embedded by CLIP's view of each, by the mean of its dense features, and by an MLP of that mean."""
    found = {}
    for kind in ("cls", "dense", "dense_mlp"):
        torch.manual_seed(0)
        model = build_model(zero_shot("MODEL.SPLIT.CANDIDATE_EMBEDDING", kind)).eval()
        images = torch.randint(0, 256, (1, 3, 128, 128), generator=torch.Generator().manual_seed(1)).float()
        everywhere = torch.ones(1, 128, 128, dtype=torch.bool)
        (regions,) = model.finder(images, everywhere)
        found[kind] = regions, model._candidate_classes(regions.embeddings)
    cls, dense, mlp = (found[kind][0] for kind in ("cls", "dense", "dense_mlp"))
    assert torch.equal(cls.cells, dense.cells)
    assert torch.equal(dense.embeddings, mlp.embeddings)
    assert not torch.allclose(cls.embeddings, dense.embeddings, atol=0.05)
    features = model.language.embed_dense(model.language.encode((images - model.finder.mean) / model.finder.std))
    for number, embedding in enumerate(dense.embeddings, start=1):
        mean = features[0, :, dense.cells == number].mean(1)
        assert torch.allclose(embedding, mean / mean.norm(), atol=1e-4)
    assert found["dense"][1] is dense.embeddings
    assert not torch.allclose(found["dense_mlp"][1], mlp.embeddings, atol=0.05)
    assert torch.allclose(found["dense_mlp"][1].norm(dim=-1), torch.ones(len(mlp)), atol=1e-5)


def test_the_auxiliary_head_takes_no_part_in_inference(zero_shot):
    model = build_model(zero_shot()).eval()
    inputs = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    scores = model(inputs)[0]["sem_seg"]
    scores.sum().backward()
    assert all(p.grad is None for p in model.enhancement.parameters())
    without = copy.deepcopy(model)
    without.enhancement = None
    assert torch.equal(without(inputs)[0]["sem_seg"], scores)


def test_random_queries_are_the_same_every_time_and_can_be_left_out(zero_shot):
    model = build_model(zero_shot()).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first = model.network(images)
        torch.manual_seed(99)
        assert torch.equal(first.mask_embeddings, model.network(images).mask_embeddings)
        assert first.mask_embeddings.shape[2] == 10 + 30
        model.options = replace(model.options, random_seed=1)
        assert not torch.equal(first.mask_embeddings, model.network(images).mask_embeddings)
        model.options = replace(model.options, random_queries=0)
        plain = model.sem_seg_head(model.backbone(images))
        assert torch.equal(plain.mask_embeddings, model.network(images).mask_embeddings)
    given = build_model(zero_shot("MODEL.SPLIT.RANDOM_QUERIES", "4000"))._random_queries(1)
    learned = model.sem_seg_head.predictor.query_feat.weight
    assert given.content.shape == (1, 4000, 64)
    assert torch.allclose(given.content[0].std(0).mean(), learned.std(0).mean(), rtol=0.3)


def test_all_classes_compete_at_inference_and_seen_ones_can_be_lowered(zero_shot):
    model = build_model(zero_shot()).eval()
    inputs = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "height": 50, "width": 70}]
    with torch.no_grad():
        scores = model(inputs)[0]["sem_seg"]
        model.options = replace(model.options, seen_penalty=1000.0)
        lowered = model(inputs)[0]["sem_seg"]
    assert scores.shape == (16, 50, 70)
    assert set(lowered.argmax(0).unique().tolist()) <= set(model.unseen)
    assert torch.allclose(scores[list(model.unseen)], lowered[list(model.unseen)])


def test_ensembling_with_clip_is_the_geometric_mean_and_off_by_default(zero_shot):
    assert build_model(zero_shot()).ensemble_alpha == 1
    model = build_model(zero_shot("MODEL.ENSEMBLE.AT_INFERENCE", "True")).eval()
    assert model.ensemble_alpha == 0.6
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain, masks = model.predict(images, 1.0)
        mixed, same = model.predict(images, 0.3)
        posterior = model._zero_shot(images, masks, model.text(tuple(range(16))))
        assert torch.allclose(model.predict(images, 0.999999)[0].sigmoid(), plain.sigmoid(), atol=1e-4)
    assert torch.equal(masks, same)
    assert torch.allclose(posterior.sum(-1), torch.ones(2, 40), atol=1e-5)
    expected = plain.double().sigmoid() ** 0.3 * posterior.double() ** 0.7
    assert torch.allclose(mixed.double().sigmoid(), expected, atol=1e-5)


def test_a_plain_backbone_learns_beside_a_frozen_clip(zero_shot):
    options = ("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.BACKBONE.ARCH", "resnet10t", "MODEL.BACKBONE.WEIGHTS", "",
               "MODEL.BACKBONE.FREEZE", "False")  # fmt: skip
    with pytest.raises(ConfigError, match="needs an OpenCLIP backbone"):
        zero_shot(*options)
    text = ("MODEL.TEXT.ENCODER", "miniworld-convnext", "MODEL.TEXT.WEIGHTS", "shipped")
    cfg = zero_shot(*options, *text)
    model = build_model(cfg).train()
    sum(model(next(build_streams(cfg))).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in model.language_model.parameters())
    with pytest.raises(ConfigError, match="frozen CLIP model"):
        build_model(zero_shot("MODEL.BACKBONE.FREEZE", "False"))


def test_training_with_a_cache_equals_training_without_and_resumes(zero_shot, tmp_path):
    from dearli_d2.methods.split_matching.make_regions import fill

    fill(zero_shot(), tmp_path / "cache", (0, 1), 8, 0)
    states = []
    for name, cache in (("online", ""), ("cached", str(tmp_path / "cache"))):
        cfg = zero_shot("MODEL.SPLIT.REGIONS.CACHE", cache, "OUTPUT_DIR", str(tmp_path / name), "SOLVER.MAX_ITER", "3")
        trainer = DualStreamTrainer(cfg)
        trainer.train()
        states.append(trainer.student.state_dict())
    for key, value in states[0].items():
        assert torch.allclose(value.float(), states[1][key].float(), atol=1e-4), key
    with pytest.raises(ConfigError, match="was made with settings"):
        DualStreamTrainer(
            zero_shot("MODEL.SPLIT.REGIONS.CACHE", str(tmp_path / "cache"), "MODEL.SPLIT.REGIONS.FUSION", "0.5",
                      "OUTPUT_DIR", str(tmp_path / "other"))
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the metric


def test_harmonic_mean_of_a_hand_made_confusion_matrix():
    matrix = np.array([[6, 2, 0, 0], [0, 8, 0, 0], [0, 4, 4, 0], [0, 0, 0, 0]])
    scores = seen_and_unseen(matrix, {2, 3})  # class 3 is not in the ground truth
    seen, unseen = 100 * (6 / 8 + 8 / 14) / 2, 100 * 4 / 8
    assert scores["sIoU"] == pytest.approx(seen)
    assert scores["uIoU"] == pytest.approx(unseen)
    assert scores["hIoU"] == pytest.approx(2 * seen * unseen / (seen + unseen))
    matrix[2] = [0, 8, 0, 0]
    assert seen_and_unseen(matrix, {2, 3})["hIoU"] == 0
    assert seen_and_unseen(np.array([[0, 5], [5, 0]]), {1})["hIoU"] == 0
