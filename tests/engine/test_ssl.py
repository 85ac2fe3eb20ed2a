"""Semi-supervised training: pseudo-labels, losses of both streams, the trainer, exact resume."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import ssl_camvid, study
from dearli_d2.checkpoint import load_weights
from dearli_d2.cli import main
from dearli_d2.data.build import build_streams
from dearli_d2.data.catalog import ImageFolder, annotated_dicts, dataset_dicts, register
from dearli_d2.engine.checkpoints import branch_off
from dearli_d2.engine.checks import check_run
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, WeightsError
from dearli_d2.modeling import build_model
from dearli_d2.structures import Targets
from tests.conftest import MINI_OVERRIDES, SSL, train_until
from tests.engine.test_trainer import kill_once_written, losses_of, start


def test_pseudo_labels_are_the_read_out_cut_to_valid_pixels(ssl_config):
    model = build_model(ssl_config("MODEL.ENSEMBLE.AT_INFERENCE", "False")).eval()  # alpha of inference is another
    valid = torch.zeros(64, 64, dtype=torch.bool)
    valid[:50, :40] = True
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    targets = model.pseudo_label([{"image": image, "inside": valid}, {"image": image}])
    from dearli_d2.modeling.mask2former.inference import panoptic_inference, resize_logits

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


def test_a_damaged_unlabelled_image_does_not_stop_training(ssl_config, tmp_path, caplog):
    files = [Path(d["file_name"]) for d in dataset_dicts("miniworld_train")[:4]]
    for path in files:
        shutil.copy(path, tmp_path)
    damaged = tmp_path / files[1].name
    damaged.write_bytes(damaged.read_bytes()[:-300])
    register("damaged_unlabeled", ImageFolder(tmp_path, "put images there"))
    streams = build_streams(ssl_config("DATASETS.UNLABELED", "('damaged_unlabeled',)", "SSL.START", "0"))
    shown = [sample["file_name"] for _ in range(6) for sample in next(streams)["unlabeled"]]
    assert {Path(f).name for f in shown} == {f.name for f in files} - {damaged.name}
    assert f"{damaged} cannot be read as an image" in caplog.text


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


def test_start_weights_of_the_teacher_survive_updates_and_resume(ssl_config, tmp_path):
    name, decay = "sem_seg_head.predictor.query_feat.weight", 0.9
    options = (
        "SSL.TEACHER_WEIGHTS",
        str(tmp_path / "start.pth"),
        "SSL.EMA_DECAY",
        str(decay),
        "SOLVER.CHECKPOINT_PERIOD",
        "1",
    )
    weights = build_model(ssl_config()).state_dict()
    weights[name] = torch.full_like(weights[name], 7.0)
    torch.save({"model": weights}, tmp_path / "start.pth")

    def config(folder: str):
        return ssl_config(*options, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / folder))

    once = DualStreamTrainer(config("once"))
    once.train()
    train_until(config("twice"), 1)
    twice = DualStreamTrainer(config("twice"), resume=True)
    assert twice.start_iter == 1
    twice.train()
    kept, again = (t.teacher.model.state_dict()[name] for t in (once, twice))
    assert kept.mean().item() == pytest.approx(7 * decay**2, abs=0.2)  # the student's own are about 0
    assert torch.equal(kept, again)


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


def test_pictures_and_scores_of_pseudo_labels_are_written(ssl_config, caplog):
    caplog.set_level("INFO")
    cfg = ssl_config(
        "SSL.PICTURE_PERIOD", "2", "SSL.MONITOR_PERIOD", "2", "SSL.MONITOR_IMAGES", "3", "SOLVER.MAX_ITER", "3"
    )  # fmt: skip
    DualStreamTrainer(cfg).train()
    folder = Path(cfg.OUTPUT_DIR)
    assert re.search(r"iteration 1: \d+ segments as pseudo-labels of 2 images", caplog.text)
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
    assert main(["checkpoint", "export", "--weights", str(path), "--out", str(small), "--which", "teacher"]) == 0
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
    with pytest.raises(ConfigError, match="without unlabelled images at iteration 1, after SSL.START 0"):
        DualStreamTrainer(ssl_config(), resume=True)
    taught = ssl_config("SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(Path(cfg.OUTPUT_DIR).parent / "taught"))
    DualStreamTrainer(taught).train()
    with pytest.raises(ConfigError, match="holds a run with unlabelled images"):
        DualStreamTrainer(mini_config("OUTPUT_DIR", taught.OUTPUT_DIR), resume=True)


def test_a_labels_only_run_goes_on_with_unlabelled_images_as_if_it_had_had_them(ssl_config, tmp_path):
    options = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SSL.START", "2", "SSL.EMA_DECAY", "0.5")
    trainers = {}
    for name, more in (("labels", ("DATASETS.UNLABELED", "()")), ("whole", ()), ("branch", ())):
        folder = tmp_path / name
        if name == "branch":
            branch_off(tmp_path / "labels", folder, 2)
        trainers[name] = DualStreamTrainer(ssl_config(*options, *more, "OUTPUT_DIR", str(folder)), resume=True)
        if name == "branch":
            student = trainers[name].student.state_dict()
            assert all(torch.equal(v, student[k]) for k, v in trainers[name].teacher.own_state().items())
        trainers[name].train()
    whole, branch = trainers["whole"], trainers["branch"]
    assert (whole.start_iter, branch.start_iter) == (0, 2)
    assert whole.teacher.updates == branch.teacher.updates == 2
    for expected, found in ((whole.student, branch.student), (whole.teacher.model, branch.teacher.model)):
        other = found.state_dict()
        assert all(torch.equal(v, other[k]) for k, v in expected.state_dict().items())
    labels = trainers["labels"].student.state_dict()
    assert not all(torch.equal(v, labels[k]) for k, v in branch.student.state_dict().items())


def test_a_row_of_a_study_goes_on_from_the_row_that_it_branches_from(tmp_path):
    options = [*MINI_OVERRIDES, *SSL, "SSL.START", "2", "TEST.PICTURES", "0"]
    labels = study.Row("labels only", "labels", "miniworld/dear.yaml", ("DATASETS.UNLABELED", "()"))
    branch = study.Row("semi-supervised", "ssl", "miniworld/dear.yaml", branches_from="labels")
    results = [study.train(row, 1, tmp_path, options, "miniworld_val@0.02") for row in (labels, branch)]
    log = (tmp_path / "ssl" / "seed_1" / "log.txt").read_text()
    assert "Starting training from iteration 2" in log
    assert all(0 <= study.panoptic("PQ")(r) <= 100 for r in results)


def test_a_study_refuses_rows_that_it_does_not_have(monkeypatch, capsys):
    # overrides behind --rows are no rows
    monkeypatch.setattr("sys.argv", ["study", "--rows", "labels_1_8", "SEED", "1"])
    with pytest.raises(SystemExit):
        study.main("", ssl_camvid.ROWS, ssl_camvid.METRICS, ssl_camvid.options_of_seed, "ssl_camvid")
    assert "invalid choice: 'SEED'" in capsys.readouterr().err


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
    assert not list(broken.glob(".model_*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.CLASSIFIER", "none"), "knows no classes"),
        (("DATASETS.MASKS", "x"), "belong together"),
        (("SSL.EMA_DECAY", "1.0"), "SSL.EMA_DECAY"),
        (("SSL.START", "5", "SSL.TEACHER_WEIGHTS", "x.pth"), "use one of them"),
        (("SSL.CUTMIX_AREA", "(0.5, 0.1)"), "SSL.CUTMIX_AREA"),
        (("SSL.CUTMIX_AREA", "(0.6, 0.9)", "SSL.CUTMIX_ASPECT", "(2.0, 3.0)"), "do not fit into the crop"),
        (("SSL.CUTMIX_AREA", "(1.0, 1.0)"), "do not fit into the crop"),
        (("TEST.WEIGHTS", "teacher", "DATASETS.UNLABELED", "()"), "there is no teacher"),
        (("TEST.WEIGHTS", "tutor"), "'student', 'teacher' or 'both'"),
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


@pytest.mark.parametrize(("images", "processes", "mix"), [(1, 1, "cutmix"), (2, 2, "classmix")])
def test_one_unlabelled_image_a_process_cannot_be_mixed_and_says_so(ssl_config, monkeypatch, images, processes, mix):
    options = ("SSL.IMS_PER_BATCH", str(images), "SSL.MIX", mix)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: processes)
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda data: [data] * processes)
    with pytest.raises(ConfigError, match=f"SSL.MIX {mix} needs two unlabelled images a process.*set SSL.CUTMIX 0.0"):
        DualStreamTrainer(ssl_config(*options))
    check_run(ssl_config(*options, "SSL.CUTMIX", "0.0"), resume=False)


def test_held_back_annotations_belong_to_the_unlabelled_images():
    dicts = annotated_dicts("miniworld_train@0.05:unlabeled")
    assert [d["image_id"] for d in dicts] == [d["image_id"] for d in dataset_dicts("miniworld_train@0.05:unlabeled")]
    assert all("pan_seg_file_name" in d for d in dicts)
