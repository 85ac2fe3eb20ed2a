"""Semi-supervised training: views, pseudo-labels, losses of both streams, warm-up and its carry-over, exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dearli_d2.checkpoint import load_weights, main
from dearli_d2.data.build import build_streams, build_unlabeled_mapper
from dearli_d2.data.catalog import annotated_dicts, dataset_dicts
from dearli_d2.data.streams import seeded
from dearli_d2.data.views import StrongPhotometry
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, DatasetError, WeightsError
from dearli_d2.masks.classical import ClassicalGenerator
from dearli_d2.masks.generate import generate
from dearli_d2.masks.storage import MaskFolder
from dearli_d2.modeling import build_model
from dearli_d2.structures import Targets
from tests.engine.test_trainer import kill_once_written, losses_of, start

SSL = ("SSL.START", "0", "SSL.IMS_PER_BATCH", "2", "SSL.PICTURE_PERIOD", "0", "SSL.MONITOR_PERIOD", "0")


@pytest.fixture
def ssl_config(mini_config):
    return lambda *overrides, file="dear.yaml": mini_config(*SSL, *overrides, file=file)


# ---------------------------------------------------------------------------------------------- views


def test_weak_and_strong_view_are_aligned_pixel_by_pixel(ssl_config, tmp_path, monkeypatch):
    # every pixel of the image tells where it was; the strong part may change colours but must not move them
    ramp = np.stack([*np.meshgrid(np.arange(100), np.arange(90)), np.full((90, 100), 7)], -1).astype(np.uint8)
    mapper = build_unlabeled_mapper(ssl_config("INPUT.SCALE_RANGE", "(0.7, 1.8)", "INPUT.CROP_SIZE", "64"))
    monkeypatch.setattr("dearli_d2.data.mappers.read_image", lambda _: ramp)
    monkeypatch.setattr(mapper, "strong", lambda image: 255 - image)
    sizes = set()
    for seed in range(12):
        with seeded(seed):
            sample = mapper({"file_name": "x", "image_id": 1})
        valid = sample["valid"]
        assert torch.equal(sample["strong"][:, valid], 255 - sample["image"][:, valid])
        assert (sample["image"][:, ~valid] == 128).all()
        assert (sample["strong"][:, ~valid] == 128).all()
        sizes.add(int(valid.sum()))
    assert len(sizes) > 1  # some views are smaller than the crop


def test_strong_photometry_moves_nothing_and_changes_much():
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:40, 24:50] = (200, 90, 30)
    inside = np.zeros((64, 64), bool)
    inside[22:38, 26:48] = True  # away from the border, which blur softens
    outside = ~inside
    outside[15:45, 19:55] = False
    results = []
    for seed in range(20):
        with seeded(seed):
            strong = StrongPhotometry(blur_sigma=(0.1, 0.5))(image)
        assert strong.shape == image.shape
        assert strong.dtype == np.uint8
        assert np.ptp(strong[inside].astype(int), axis=0).max() <= 2  # one colour where there was one
        assert np.ptp(strong[outside].astype(int), axis=0).max() <= 2
        results.append(strong)
    grey = [(np.ptp(r.astype(int), axis=-1) == 0).all() for r in results]
    assert 0 < sum(grey) < 12
    assert len({r.tobytes() for r in results}) == 20


def test_photometry_repeats_with_its_seed_and_leaves_the_generators():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        with seeded(3, 4):
            results.append(StrongPhotometry()(image))
    assert np.array_equal(*results)
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_resume_at_the_same_samples_and_differ_from_each_other(ssl_config):
    cfg = ssl_config("DATASETS.UNLABELED", "('miniworld_train@0.05',)")  # the same images in both streams
    stream = build_streams(cfg)
    batches = [next(stream) for _ in range(4)]
    again = next(build_streams(cfg, start_iteration=3))
    for name in ("labeled", "unlabeled"):
        assert [x["file_name"] for x in again[name]] == [x["file_name"] for x in batches[3][name]]
        assert torch.equal(again[name][0]["image"], batches[3][name][0]["image"])
    assert torch.equal(again["unlabeled"][0]["strong"], batches[3]["unlabeled"][0]["strong"])
    order = {name: [x["file_name"] for b in batches for x in b[name]] for name in batches[0]}
    assert order["labeled"] != order["unlabeled"]


def test_a_source_stream_has_losses_of_its_own(ssl_config):
    cfg = ssl_config(
        "DATASETS.SOURCE", "('miniworld_night_train',)", "SSL.SOURCE_IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1"
    )
    trainer = DualStreamTrainer(cfg)
    trainer.train()
    assert set(trainer.batch) == {"labeled", "source", "unlabeled"}
    assert all("night" in x["file_name"] and "targets" in x for x in trainer.batch["source"])
    losses = trainer.student(trainer.batch)
    assert {"loss_ce", "source_loss_ce", "unlabeled_loss_ce"} <= set(losses)


def test_unlabelled_samples_carry_no_annotation(ssl_config):
    batch = next(build_streams(ssl_config("DATASETS.UNLABELED", "('miniworld_train',)")))
    assert set(batch["unlabeled"][0]) == {"image", "strong", "valid", "file_name", "image_id"}


# ---------------------------------------------------------------------------------------------- pseudo-labels


def test_pseudo_labels_are_the_read_out_cut_to_valid_pixels(ssl_config):
    model = build_model(ssl_config("MODEL.ENSEMBLE.AT_INFERENCE", "False")).eval()  # alpha of inference is another
    valid = torch.zeros(64, 64, dtype=torch.bool)
    valid[:50, :40] = True
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    targets = model.pseudo_label([{"image": image, "valid": valid}, {"image": image}])
    from dearli_d2.modeling.inference import panoptic_inference, resize_logits

    with torch.no_grad():
        logits, masks = model.predict(model.preprocess([{"image": image}]).tensor, 0.6)
    panoptic, segments = panoptic_inference(logits, resize_logits(masks, (64, 64)), model.taxonomy.thing_ids, 0.0, 0.8)[
        0
    ]
    assert segments
    for target, region in ((targets[0], valid), (targets[1], torch.ones_like(valid))):
        expected = {
            (s["category_id"], (((panoptic == s["id"]) & region).flatten()).numpy().tobytes())
            for s in segments
            if ((panoptic == s["id"]) & region).any()
        }
        assert {
            (int(c), m.flatten().numpy().tobytes()) for c, m in zip(target.labels, target.masks, strict=True)
        } == expected
    assert torch.equal(targets[0].valid, valid)
    assert targets[1].valid is None


def test_small_pseudo_segments_are_dropped(ssl_config):
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    torch.manual_seed(0)
    everything = build_model(ssl_config()).eval().pseudo_label([{"image": image}])[0]
    areas = everything.masks.flatten(1).sum(1)
    limit = int(areas.float().median()) + 1
    torch.manual_seed(0)
    some = build_model(ssl_config("SSL.MIN_AREA", str(limit))).eval().pseudo_label([{"image": image}])[0]
    assert len(some) == int((areas >= limit).sum()) < len(everything)


def test_alpha_of_pseudo_labels_and_of_inference_are_apart(ssl_config):
    model = build_model(ssl_config("MODEL.ENSEMBLE.IN_PSEUDO_LABELS", "False"))
    assert (model.pseudo_labeling.alpha, model.ensemble_alpha) == (1.0, 0.6)
    model = build_model(ssl_config("MODEL.ENSEMBLE.AT_INFERENCE", "False"))
    assert (model.pseudo_labeling.alpha, model.ensemble_alpha) == (0.6, 1.0)


def empty_targets(size: int = 64) -> Targets:
    return Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, size, size, dtype=torch.bool))


@pytest.mark.parametrize("empty", [(True, False), (False, True), (True, True)])
def test_images_without_pseudo_segments_train_and_reach_every_parameter(ssl_config, make_targets, empty):
    model = build_model(ssl_config()).train()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    batch = {
        "labeled": [{"image": image, "targets": make_targets(3)}],
        "unlabeled": [{"image": image, "targets": empty_targets() if e else make_targets(2)} for e in empty],
    }
    losses = model(batch)
    assert all(torch.isfinite(v) for v in losses.values())
    if all(empty):
        assert losses["unlabeled_loss_mask"] == 0
        assert losses["unlabeled_loss_dice"] == 0
        assert losses["unlabeled_loss_ce"] > 0  # the no-object term
    sum(v for k, v in losses.items() if k.startswith("unlabeled_")).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_each_stream_has_its_own_normaliser(ssl_config, make_targets):
    """Three labelled masks beside forty pseudo-masks: the labelled losses are those of the labelled images alone."""
    model = build_model(
        ssl_config("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "6000", "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "0.0")
    ).train()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    labeled = [{"image": image, "targets": make_targets(3)}]
    unlabeled = [{"image": image, "targets": make_targets(20, seed=i)} for i in range(2)]
    alone, both = model(labeled), model({"labeled": labeled, "unlabeled": unlabeled})
    apart = model(unlabeled)
    for name in alone:
        assert both[name].item() == pytest.approx(alone[name].item(), rel=0.03), name
        assert both[f"unlabeled_{name}"].item() == pytest.approx(apart[name].item(), rel=0.03), name


def test_loss_weight_scales_pseudo_losses_only(ssl_config, make_targets):
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    batch = {name: [{"image": image, "targets": make_targets(2)}] for name in ("labeled", "unlabeled")}
    results = []
    for weight in ("1.0", "0.25"):
        torch.manual_seed(0)
        results.append(build_model(ssl_config("SSL.LOSS_WEIGHT", weight)).train()(batch))
    for name, value in results[0].items():
        factor = 0.25 if name.startswith("unlabeled_") else 1.0
        assert results[1][name].item() == pytest.approx(factor * value.item(), rel=1e-5)


def test_padding_of_pseudo_labels_carries_no_loss(ssl_config):
    """Whatever the pseudo-label says on padded pixels, the losses are the same."""
    model = build_model(ssl_config()).train()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 5:30, 5:30] = True
    valid = torch.zeros(64, 64, dtype=torch.bool)
    valid[:, :40] = True
    results = []
    for padded in (False, True):
        filled = mask.clone()
        filled[:, :, 42:] = padded
        torch.manual_seed(1)
        targets = Targets(torch.tensor([3]), filled, valid)
        results.append(model({"labeled": [{"image": image, "targets": targets}]}))
    for name, value in results[0].items():
        assert results[1][name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("classes", [1, 1000])
def test_vocabulary_of_one_and_of_a_thousand_classes(ssl_config, make_targets, classes):
    from dearli_d2.data.taxonomy import Taxonomy

    taxonomy = Taxonomy.from_text(",".join(f"thing number {i}" for i in range(classes)))
    cfg = ssl_config("MODEL.NUM_CLASSES", str(classes), "DATASETS.TRAIN", "()", "DATASETS.UNLABELED", "()")
    model = build_model(cfg, taxonomy).train()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    losses = model([{"image": image, "targets": make_targets(2, classes=classes)}])
    assert all(torch.isfinite(v) for v in losses.values())
    target = EMATeacher(model).pseudo_label([{"image": image}])[0]
    assert ((target.labels >= 0) & (target.labels < classes)).all()
    assert target.masks.sum(0).max() <= 1


# ---------------------------------------------------------------------------------------------- the trainer


def test_teacher_runs_once_per_image_and_cutmix_is_in_the_batch(ssl_config, monkeypatch):
    trainer = DualStreamTrainer(ssl_config("SSL.CUTMIX", "1.0", "SOLVER.MAX_ITER", "2"))
    seen = []
    original = trainer.teacher.model.pseudo_label
    monkeypatch.setattr(
        trainer.teacher.model, "pseudo_label", lambda inputs: seen.append(len(inputs)) or original(inputs)
    )
    trainer.train()
    assert seen == [2, 2]
    pasted = [bool((s["image"].cpu() != s["weak"]).any()) for s in trainer.batch["unlabeled"]]
    assert all(pasted)
    assert trainer.teacher.updates == 2


def test_labels_only_until_the_start_then_the_teacher_begins_as_the_student(ssl_config, monkeypatch):
    trainer = DualStreamTrainer(ssl_config("SSL.START", "2", "SOLVER.MAX_ITER", "4"))
    name, seen = "sem_seg_head.predictor.query_feat.weight", []

    def look():
        student, teacher = trainer.student.state_dict()[name], trainer.teacher.model.state_dict()[name]
        seen.append(("unlabeled" in trainer.batch, torch.equal(student, teacher), trainer.teacher.updates))

    step = trainer.run_step
    monkeypatch.setattr(trainer, "run_step", lambda: (step(), look()))
    trainer.train()
    assert seen == [(False, True, 0), (False, True, 0), (True, True, 1), (True, False, 2)]
    cfg = ssl_config("SSL.START", "2")
    streams = [build_streams(cfg, start) for start in (0, 3)]
    late = [next(streams[0]) for _ in range(4)][3]
    assert [x["file_name"] for x in late["unlabeled"]] == [x["file_name"] for x in next(streams[1])["unlabeled"]]


def test_pictures_and_scores_of_pseudo_labels_are_written(ssl_config):
    cfg = ssl_config(
        "SSL.PICTURE_PERIOD", "2", "SSL.MONITOR_PERIOD", "2", "SSL.MONITOR_IMAGES", "3", "SOLVER.MAX_ITER", "3"
    )  # fmt: skip
    DualStreamTrainer(cfg).train()
    folder = Path(cfg.OUTPUT_DIR)
    names = sorted(p.name for p in (folder / "batches").iterdir())
    assert names == [f"{i:07d}_{kind}.png" for i in (0, 2) for kind in ("labeled", "unlabeled")]
    entries = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert any("pseudo_label/PQ" in entry for entry in entries)


def test_student_teacher_or_both_are_evaluated(ssl_config):
    cfg = ssl_config(
        "TEST.WEIGHTS", "both", "DATASETS.TEST", "('miniworld_val@0.02',)", "TEST.PICTURES", "0", "SOLVER.MAX_ITER", "3",
        "SSL.BURN_IN", "1",
    )  # fmt: skip
    trainer = DualStreamTrainer(cfg)
    trainer.train()
    folder = Path(cfg.OUTPUT_DIR) / "evaluation"
    assert (folder / "miniworld_val@0.02" / "results.json").is_file()
    assert (folder / "teacher" / "miniworld_val@0.02" / "results.json").is_file()
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    for which, expected in (("student", trainer.student), ("teacher", trainer.teacher.model)):
        model = build_model(cfg, load_backbone=False)
        load_weights(model, path, which=which)
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in model.state_dict().items())
    small = Path(cfg.OUTPUT_DIR) / "teacher.pth"
    assert main(["export", "--weights", str(path), "--out", str(small), "--which", "teacher"]) == 0
    exported = torch.load(small, weights_only=True)
    assert set(exported) == {"model", "taxonomy", "config"}
    assert all(torch.equal(v, exported["model"][k]) for k, v in trainer.teacher.model.state_dict().items())
    name = "sem_seg_head.predictor.query_feat.weight"
    assert not torch.equal(trainer.student.state_dict()[name], trainer.teacher.model.state_dict()[name])


def test_a_checkpoint_without_a_teacher_is_refused(mini_config, ssl_config):
    cfg = mini_config("SOLVER.MAX_ITER", "1")
    DualStreamTrainer(cfg).train()
    with pytest.raises(WeightsError, match="holds no teacher"):
        load_weights(build_model(cfg), Path(cfg.OUTPUT_DIR) / "model_final.pth", which="teacher")
    with pytest.raises(ConfigError, match="holds a run without a teacher"):
        DualStreamTrainer(ssl_config(), resume=True)


def test_resume_after_kill_9_repeats_losses_student_and_teacher_bit_by_bit(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"config": "dear.yaml", "iterations": 6}
    process = start(whole, *SSL, **options)
    assert process.wait() == 0, process.stderr.read()
    process = start(broken, *SSL, **options)
    kill_once_written(process, broken / "model_0000002.pth")
    # a kill while a checkpoint is written leaves a temporary file beside the previous one, which stays usable
    (broken / ".model_0000004-half.pth").write_bytes(b"half a file")
    process = start(broken, "--resume", *SSL, **options)
    assert process.wait() == 0, process.stderr.read()
    expected, resumed = losses_of(whole), losses_of(broken)
    assert sorted(expected) == list(range(6))
    assert resumed == {i: expected[i] for i in resumed}
    assert {4, 5} <= set(resumed)
    assert "unlabeled_loss_ce" in expected[5]
    a, b = (torch.load(f / "model_final.pth", weights_only=True) for f in (whole, broken))
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert a["teacher"]["updates"] == b["teacher"]["updates"] == 6
    assert all(torch.equal(v, b["teacher"]["model"][k]) for k, v in a["teacher"]["model"].items())


# ---------------------------------------------------------------------------------------------- warm-up


@pytest.fixture
def mask_folder(tmp_path):
    folder = MaskFolder(tmp_path / "masks")
    files = [d["file_name"] for d in dataset_dicts("miniworld_train@0.01")]
    generate(files, ClassicalGenerator(), folder)
    return folder


@pytest.fixture
def warmup_config(mini_config, mask_folder):
    def make(*overrides: str):
        return mini_config(
            "DATASETS.TRAIN", "('miniworld_train@0.01',)", "DATASETS.MASKS", str(mask_folder.folder), *overrides,
            file="warmup.yaml",
        )  # fmt: skip

    return make


def test_warm_up_has_mask_losses_only_and_no_class_head(warmup_config):
    trainer = DualStreamTrainer(warmup_config("SOLVER.MAX_ITER", "1"))
    names = [n for n, _ in trainer.student.named_parameters()]
    assert not any("class_embed" in n or ("logit_scale" in n and "backbone" not in n) or "void" in n for n in names)
    batch = next(trainer.stream)
    losses = trainer.student(batch)
    assert {n.rpartition("_")[0] if n[-1].isdigit() else n for n in losses} == {"loss_mask", "loss_dice"}
    sum(losses.values()).backward()
    for name, parameter in trainer.student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
    trainer.train()


def test_warm_up_targets_are_all_masks_as_class_zero(warmup_config, mask_folder):
    cfg = warmup_config("INPUT.CROP_SIZE", "128", "INPUT.SCALE_RANGE", "(1.0, 1.0)", "INPUT.RANDOM_FLIP", "none")
    sample = next(build_streams(cfg))["labeled"][0]
    masks = mask_folder.read(sample["file_name"])
    assert len(masks) > 8
    assert torch.equal(sample["targets"].masks, torch.from_numpy(masks))
    assert (sample["targets"].labels == 0).all()
    many = np.random.default_rng(0).random((53, 40, 30)) > 0.5  # more than one label image holds
    from dearli_d2.data.mappers import _transform_masks
    from dearli_d2.data.views import WeakGeometry

    with seeded(1):
        view = WeakGeometry(32, [1.2], 200)(np.zeros((40, 30, 3), np.uint8))
    expected = np.stack([view.transform.apply_segmentation(m.astype(np.uint8)) for m in many]).astype(bool)
    assert np.array_equal(_transform_masks(many, view.transform), expected)
    assert _transform_masks(many[:0], view.transform).shape == (0, *expected.shape[1:])


def test_warm_up_carries_over_exactly_the_decoder(warmup_config, ssl_config, tmp_path):
    cfg = warmup_config("SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "warm"))
    DualStreamTrainer(cfg).train()
    weights = tmp_path / "warm" / "model_final.pth"
    trainer = DualStreamTrainer(ssl_config("MODEL.WEIGHTS", str(weights)))
    warm = torch.load(weights, weights_only=True)["model"]
    fresh = {n for n in trainer.student.state_dict() if n not in warm}
    assert fresh == {
        *(f"sem_seg_head.predictor.class_embed.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
        "sem_seg_head.predictor.logit_scale",
        "void_embedding.weight",
    }
    for model in (trainer.student, trainer.teacher.model):  # both start from it
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in warm.items())
    report = load_weights(build_model(ssl_config()), weights, strict=False).carry_over()
    lines = report.splitlines()
    assert lines[0].startswith("  carried over: ")
    assert "sem_seg_head.pixel_decoder" in lines[0]
    assert "starts fresh: " in lines[1]
    assert "class_embed" in lines[1]
    assert "void_embedding" in lines[1]
    assert lines[2] == "  not used: nothing"


def test_masks_that_are_missing_stop_the_run_before_it_starts(warmup_config, mask_folder):
    with pytest.raises(DatasetError, match=r"990 of 1000 images have no masks.*python -m dearli_d2.masks generate"):
        DualStreamTrainer(warmup_config("DATASETS.TRAIN", "('miniworld_train',)"))
    with pytest.raises(DatasetError, match="holds no manifest.json"):
        DualStreamTrainer(warmup_config("DATASETS.MASKS", str(mask_folder.folder / "nowhere")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.CLASSIFIER", "none"), "knows no classes"),
        (("DATASETS.MASKS", "x"), "belong together"),
        (("SSL.EMA_DECAY", "1.0"), "SSL.EMA_DECAY"),
        (("SSL.START", "5", "SSL.TEACHER_WEIGHTS", "x.pth"), "use one of them"),
        (("SSL.CUTMIX_AREA", "(0.5, 0.1)"), "SSL.CUTMIX_AREA"),
        (("TEST.WEIGHTS", "teacher", "DATASETS.UNLABELED", "()"), "there is no teacher"),
        (("TEST.WEIGHTS", "tutor"), "'student' or 'teacher' or 'both'"),
    ],
)
def test_contradictions_are_config_errors(ssl_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        ssl_config(*overrides)


def test_missing_teacher_weights_and_odd_batches_are_errors(ssl_config, monkeypatch):
    with pytest.raises(ConfigError, match="SSL.TEACHER_WEIGHTS: no file nowhere.pth"):
        DualStreamTrainer(ssl_config("SSL.TEACHER_WEIGHTS", "nowhere.pth"))
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="SSL.IMS_PER_BATCH 3 is no multiple of the 2 processes"):
        DualStreamTrainer(ssl_config("SSL.IMS_PER_BATCH", "3"))


def test_held_back_annotations_belong_to_the_unlabelled_images():
    dicts = annotated_dicts("miniworld_train@0.05:unlabeled")
    assert [d["image_id"] for d in dicts] == [d["image_id"] for d in dataset_dicts("miniworld_train@0.05:unlabeled")]
    assert all("pan_seg_file_name" in d for d in dicts)
