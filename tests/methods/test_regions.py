"""Regions of un-annotated pixels: K-means, fusion, embeddings, cache, geometry (spec of Split Matching)."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from dearli_d2.cli import main
from dearli_d2.data.build import build_labeled_mapper, labeled_dicts
from dearli_d2.data.compact import unpacked
from dearli_d2.data.streams import seeded
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError
from dearli_d2.methods.split_matching.data import square, unannotated_pixels, whole_image
from dearli_d2.methods.split_matching.make_regions import fill
from dearli_d2.methods.split_matching.region_folder import RegionFolder
from dearli_d2.methods.split_matching.regions import (
    RegionSettings,
    candidate_masks,
    cluster,
    fuse,
    region_masks,
    window_seeds,
)
from dearli_d2.methods.split_matching.structures import Regions
from dearli_d2.modeling import build_model
from dearli_d2.modeling.clustering import cosine_kmeans
from tests.conftest import REPO


@pytest.fixture
def zero_shot(mini_config):
    fixed = ("INPUT.CROP_SIZE", "128", "DATASETS.TRAIN", "('miniworld_train@0.02',)")
    return lambda *overrides: mini_config(*fixed, *overrides, file="split_matching.yaml")


def blobs(batch: int, points: int, clusters: int, dim: int = 16, noise: float = 0.4) -> torch.Tensor:
    centres = torch.randn(batch, clusters, dim)
    noisy = centres.repeat_interleave(points // clusters, 1) + noise * torch.randn(batch, points, dim)
    return F.normalize(noisy, dim=-1)


@pytest.mark.parametrize("noise", [0.15, 0.6])
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_batched_kmeans_equals_scikit_learn_from_the_same_seeds(noise, iterations):
    points = blobs(4, 240, 6, noise=noise)
    seeds = points[:, ::20]
    assignment, centroids = cosine_kmeans(points, seeds, iterations)
    for b in range(4):
        options = {"n_init": 1, "algorithm": "lloyd", "max_iter": iterations, "tol": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it has not converged, as is wanted
            model = KMeans(12, init=seeds[b].numpy(), **options).fit(points[b].numpy())
        assert (assignment[b].numpy() == model.labels_).all()
        theirs = F.normalize(torch.from_numpy(model.cluster_centers_), dim=-1)
        assert torch.allclose(centroids[b], theirs, atol=1e-4)


def test_a_batch_is_clustered_as_its_images_one_by_one():
    points = blobs(3, 64, 4)
    seeds = points[:, ::8]
    assignment, centroids = cosine_kmeans(points, seeds)
    for b in range(3):
        alone = cosine_kmeans(points[b : b + 1], seeds[b : b + 1])
        assert torch.equal(assignment[b], alone[0][0])
        assert torch.allclose(centroids[b], alone[1][0], atol=1e-6)


def test_an_empty_cluster_keeps_its_centroid():
    points = blobs(1, 40, 2)
    far = -points[:, :1]
    _, centroids = cosine_kmeans(points, torch.cat([points[:, [0, 39]], far], 1), 5)
    assert torch.isfinite(centroids).all()
    assert torch.allclose(centroids.norm(dim=-1), torch.ones(1, 3), atol=1e-5)


def test_seeds_are_the_means_of_overlapping_windows():
    dense = torch.randn(2, 5, 8, 8)
    seeds = window_seeds(dense, 4)
    assert seeds.shape == (2, 9, 5)
    assert torch.allclose(seeds[1, 4], F.normalize(dense[1, :, 2:6, 2:6].mean((1, 2)), dim=0), atol=1e-6)


def test_fusion_is_idempotent_and_does_not_depend_on_the_order():
    torch.manual_seed(3)
    centroids = F.normalize(blobs(1, 24, 4)[0], dim=-1)
    areas = torch.rand(24)
    fused = fuse(centroids.clone(), areas / areas.sum(), 0.8, 0.0)
    assert 2 <= len(fused) < 24
    similarity = (fused @ fused.T).fill_diagonal_(-1)
    assert similarity.max() < 0.8
    again = fuse(fused.clone(), torch.ones(len(fused)), 0.8, 0.0)
    assert torch.equal(again, fused)
    order = torch.randperm(24)
    other = fuse(centroids[order].clone(), (areas / areas.sum())[order], 0.8, 0.0)
    assert (fused @ other.T).amax(1).min() > 1 - 1e-5
    assert len(other) == len(fused)


def test_small_and_empty_clusters_are_dropped_but_never_all():
    centroids = torch.eye(4)
    assert torch.equal(fuse(centroids.clone(), torch.tensor([0.5, 0.005, 0.0, 0.3]), 0.9, 0.01), centroids[[0, 3]])
    assert torch.equal(fuse(centroids.clone(), torch.full((4,), 0.005), 0.9, 0.01), centroids[:1])


def test_merged_clusters_are_area_weighted_means():
    pair = F.normalize(torch.tensor([[1.0, 0.2, 0.0], [1.0, -0.2, 0.0]]), dim=-1)
    fused = fuse(pair.clone(), torch.tensor([0.6, 0.2]), 0.9, 0.0)
    assert torch.allclose(fused, F.normalize(0.6 * pair[:1] + 0.2 * pair[1:], dim=-1), atol=1e-6)


def test_every_cell_goes_to_the_nearest_cluster_that_is_left():
    dense = F.normalize(torch.randn(1, 8, 4, 4), dim=1)
    dense[..., :2] = F.normalize(torch.ones(8), dim=0)[:, None, None]
    labels = cluster(dense, RegionSettings(windows=(2,), min_area=0.2))
    assert labels.shape == (1, 4, 4)
    assert labels.min() >= 1
    assert (labels[0, :, :2] == labels[0, 0, 0]).all()


def found(cfg, count: int = 4):
    model = build_model(cfg).eval()
    dicts = labeled_dicts(cfg)
    chosen = [d for d in dicts if unannotated_pixels(d).mean() > 0.05][:count]
    images, unannotated = (torch.stack(x) for x in zip(*(whole_image(d, 128) for d in chosen), strict=True))
    return model, chosen, images, unannotated


def test_regions_are_disjoint_unannotated_and_independent_of_the_batch(zero_shot):
    model, _, images, unannotated = found(zero_shot())
    regions = model.finder(images, unannotated)
    assert sum(len(r.embeddings) for r in regions) >= len(images)
    for index, r in enumerate(regions):
        masks = region_masks(r, unannotated[index])
        assert masks.sum(0).max() <= 1
        assert not (masks & ~unannotated[index]).any()
        assert (masks.flatten(1).float().mean(1) >= 0.01).all()
        assert torch.allclose(r.embeddings.norm(dim=-1), torch.ones(len(masks)), atol=1e-5)
        alone = model.finder(images[[index]], unannotated[[index]])[0]
        assert torch.equal(r.cells, alone.cells)
        assert torch.allclose(r.embeddings, alone.embeddings, atol=1e-5)
    turned = model.finder(images.flip(0), unannotated.flip(0))
    assert torch.equal(turned[0].cells, regions[-1].cells)


def test_a_fully_annotated_image_has_no_region(zero_shot):
    model, _, images, unannotated = found(zero_shot(), 2)
    unannotated[0] = False
    regions = model.finder(images, unannotated)
    assert len(regions[0].embeddings) == 0
    assert not regions[0].cells.any()
    assert len(regions[1].embeddings) > 0
    assert len(model.finder(images, unannotated & False)[1].embeddings) == 0


def test_regions_of_miniworld_are_its_unseen_classes(zero_shot):
    """They cover most of the unseen segments, and CLIP knows what they are."""
    from dearli_d2.data.catalog import dataset_dicts
    from dearli_d2.evaluation.semantic import read_semantic

    model, chosen, images, unannotated = found(zero_shot("DATASETS.TRAIN", "('miniworld_train@0.1',)"), 24)
    truth = {d["file_name"]: d for d in dataset_dicts("miniworld_train@0.1")}
    text = model.text(tuple(range(16))).embeddings
    hits = []
    for d, r, free in zip(chosen, model.finder(images, unannotated), unannotated, strict=True):
        masks, semantic = region_masks(r, free), read_semantic(truth[d["file_name"]])
        for unseen in model.unseen:
            segment = torch.from_numpy(semantic == unseen)
            if segment.float().mean() > 0.03:
                iou = (masks & segment).sum((1, 2)) / (masks | segment).sum((1, 2))
                best = int(iou.argmax())
                hits.append(bool(iou[best] > 0.5) and int((text @ r.embeddings[best]).argmax()) == unseen)
    assert len(hits) > 10
    assert np.mean(hits) > 0.7


@pytest.mark.parametrize("flip", ["none", "horizontal"])
def test_regions_move_with_the_image(zero_shot, flip):
    """Each pixel of the view knows the pixel of the whole image behind it."""
    cfg = zero_shot("INPUT.RANDOM_FLIP", flip, "INPUT.SCALE_RANGE", "(1.0, 1.6)", "INPUT.COLOR_AUG_SSD", "False",
                    "INPUT.CROP_SIZE", "96")  # fmt: skip
    mapper, d = build_labeled_mapper(cfg), labeled_dicts(cfg)[0]
    for seed in range(4):
        with seeded(seed):
            sample = unpacked(mapper(d))
        inside = sample["pixels"] >= 0
        source = sample["whole_image"].flatten(1)[:, sample["pixels"].clamp(min=0).long()]
        difference = (source.int() - sample["image"].int()).abs().float().mean(0)
        assert difference[inside].median() <= 12  # the view is resized smoothly
        annotated = ~sample["unannotated"].flatten()[sample["pixels"].clamp(min=0).long()]
        assert (annotated == sample["targets"].masks.any(0))[inside].float().mean() > 0.97
    cells = torch.arange(4, dtype=torch.uint8).view(2, 2)
    regions = Regions(cells, torch.eye(3), 128)
    masks = candidate_masks(regions, sample["pixels"], torch.zeros_like(inside))
    row, column = sample["pixels"] // 128 // 64, sample["pixels"] % 128 // 64
    for number in (1, 2, 3):
        assert torch.equal(masks[number - 1], inside & (row * 2 + column == number))


def test_the_cache_gives_what_training_would_compute_and_resumes(zero_shot, tmp_path, caplog):
    cfg = zero_shot()
    line = fill(cfg, tmp_path / "cache", (0, 1), 7, 2)
    assert "20 images done, 0 were there" in line
    assert len(list((tmp_path / "cache" / "pictures").iterdir())) >= 1
    model, chosen, images, unannotated = found(cfg, 3)
    folder = RegionFolder(tmp_path / "cache")
    for d, expected in zip(chosen, model.finder(images, unannotated), strict=True):
        cached = folder.read(d["file_name"])
        assert torch.equal(cached.cells, expected.cells)
        assert torch.allclose(cached.embeddings, expected.embeddings, atol=1e-5)
        assert cached.size == expected.size
    damaged = folder.path(chosen[0]["file_name"])
    damaged.write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert folder.read(chosen[0]["file_name"]) is None
    assert damaged.name in caplog.text
    assert "1 images done, 19 were there" in fill(cfg, tmp_path / "cache", (0, 1), 7, 0)
    assert folder.read(chosen[0]["file_name"]) is not None


def test_a_run_with_a_cache_can_be_resumed(zero_shot, tmp_path):
    """The cache belongs to CLIP's weights, which a resumed run has from its checkpoint."""
    cfg = zero_shot("MODEL.SPLIT.REGIONS.CACHE", str(tmp_path / "cache"), "SOLVER.MAX_ITER", "2")
    fill(cfg, tmp_path / "cache", (0, 1), 7, 0)
    DualStreamTrainer(cfg).train()
    longer = zero_shot("MODEL.SPLIT.REGIONS.CACHE", str(tmp_path / "cache"), "SOLVER.MAX_ITER", "3")
    trainer = DualStreamTrainer(longer, resume=True)
    assert trainer.start_iter == 2


def test_a_cache_of_other_settings_is_refused(zero_shot, tmp_path):
    cfg = zero_shot()
    fill(cfg, tmp_path, (0, 4), 8, 0)
    folder, model = RegionFolder(tmp_path), build_model(cfg)
    folder.check_settings(model.cache_settings(cfg))
    for key, value, name in (
        ("MODEL.SPLIT.REGIONS.FUSION", "0.5", "settings"),
        ("DATASETS.UNSEEN_CLASSES", "('sand',)", "unseen"),
        ("MODEL.BACKBONE.WEIGHTS", "", "clip_sha256"),
    ):
        other = zero_shot(key, value)
        with pytest.raises(ConfigError, match=f"was made with {name}"):
            folder.check_settings(build_model(other).cache_settings(other))
        with pytest.raises(ConfigError, match="choose another --out"):
            fill(other, tmp_path, (0, 4), 8, 0)
    with pytest.raises(ConfigError, match="holds no manifest.json"):
        RegionFolder(tmp_path / "none").check_settings({})


def test_the_command_line_makes_a_shard(zero_shot, tmp_path, capsys):
    config = str(REPO / "configs/miniworld/split_matching.yaml")
    arguments = [
        "regions",
        "--config-file",
        config,
        "--out",
        str(tmp_path),
        "--view",
        "0",
        "--device",
        "cpu",
        "--shard",
        "1/50",
    ]
    assert main([*arguments, "DATASETS.TRAIN", "('miniworld_train@0.1',)"]) == 0
    assert "16 images done" in capsys.readouterr().out  # a batch
    assert main([*arguments[:-1], "5", "DATASETS.TRAIN", "('miniworld_train@0.1',)"]) == 2
    assert (
        main(["regions", "--config-file", str(REPO / "configs/miniworld/m2f.yaml"), "--out", str(tmp_path / "x")]) == 2
    )


def test_squares_keep_labels_crisp():
    mask = np.zeros((10, 20), bool)
    mask[:5, 10:] = True
    assert np.array_equal(square(mask, 10), mask[:, ::2])
    assert square(np.zeros((10, 20, 3), np.uint8), 16).shape == (16, 16, 3)
