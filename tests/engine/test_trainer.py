"""The training loop: exact resume, bad losses, accumulation, parameter groups."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dearli_d2.config import get_config
from dearli_d2.engine.evaluation import evaluate
from dearli_d2.engine.optimizer import build_scheduler, parameter_groups
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, DatasetError, TrainingError
from dearli_d2.modeling import build_model
from dearli_d2.modeling.mask2former.segmenter import MaskFormerSegmenter
from dearli_d2.modeling.segmenter import LearningRate
from tests.conftest import MINI_OVERRIDES, REPO, train_until


def losses_of(folder: Path) -> dict[int, dict]:
    """Iteration to its logged losses; a repeated iteration (after a resume) must agree with itself."""
    result = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        if "total_loss" in entry:
            result[entry["iteration"]] = {k: v for k, v in entry.items() if "loss" in k or k == "grad_norm"}
    return result


SCRIPT = """
import sys
from dearli_d2.cli import main
from dearli_d2.engine import metrics
metrics.PERIOD = metrics.WINDOW = 1
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, *arguments: str, config: str = "m2f_lang.yaml", iterations: int = 8) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, "train", "--config-file", f"configs/miniworld/{config}", *arguments,
               *MINI_OVERRIDES, "SOLVER.MAX_ITER", str(iterations), "OUTPUT_DIR", str(folder)]  # fmt: skip
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_once_written(process: subprocess.Popen, path: Path) -> None:
    """Kill -9 as soon as `path` is there."""
    deadline = time.monotonic() + 120
    while not path.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() != 0


def test_resume_after_kill_9_repeats_the_losses_bit_by_bit(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(whole)
    assert process.wait() == 0, process.stderr.read()
    process = start(broken)
    kill_once_written(process, broken / "model_0000004.pth")
    before = losses_of(broken)
    process = start(broken, "--resume")
    assert process.wait() == 0, process.stderr.read()
    expected, resumed = losses_of(whole), losses_of(broken)
    assert sorted(expected) == list(range(8))
    merged = {**before, **resumed}
    # the kill may come between the checkpoint and the log line of its own iteration
    assert set(expected) - set(merged) <= {3}
    assert merged == {i: expected[i] for i in merged}
    assert any(i not in before or resumed[i] == before[i] for i in range(4, 8))
    a, b = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (whole, broken))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_run_is_not_overwritten_without_resume(mini_config):
    cfg = mini_config("SOLVER.MAX_ITER", "1")
    DualStreamTrainer(cfg).train()
    with pytest.raises(ConfigError, match="already holds a run; --resume continues it"):
        DualStreamTrainer(cfg)
    before = (Path(cfg.OUTPUT_DIR) / "model_final.pth").stat().st_mtime_ns
    few = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", "('miniworld_val@0.02',)", "TEST.PICTURES", "0"]
    DualStreamTrainer(
        mini_config(*few), resume=True
    ).train()  # complete: trains no more, but its evaluation may have been cut off
    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").stat().st_mtime_ns == before
    assert (Path(cfg.OUTPUT_DIR) / "evaluation" / "miniworld_val@0.02" / "results.json").is_file()


def test_losses_that_are_not_finite_are_skipped_then_stop_with_names_and_state(mini_config, monkeypatch):
    cfg = mini_config("SOLVER.MAX_ITER", "10", "SOLVER.MAX_BAD_STEPS", "2")
    trainer = DualStreamTrainer(cfg)
    before = {k: v.clone() for k, v in trainer.student.state_dict().items()}
    original = trainer.student.losses

    def broken(*args):
        losses = original(*args)
        return {**losses, "loss_dice": losses["loss_dice"] * float("nan")}

    monkeypatch.setattr(trainer.student, "losses", broken)
    with pytest.raises(
        TrainingError, match=r"3 steps in a row .* losses not finite: loss_dice; files: .*\.jpg"
    ) as caught:
        trainer.train()
    state = torch.load(Path(cfg.OUTPUT_DIR) / "bad_step.pth", weights_only=True)
    assert "bad_step.pth" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in state["model"].items())


@pytest.mark.parametrize("amp", [(), ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")])
def test_one_bad_step_is_survived(mini_config, monkeypatch, amp):
    trainer = DualStreamTrainer(mini_config("SOLVER.MAX_ITER", "3", *amp))
    original, calls = trainer.student.losses, []

    def once(*args):
        calls.append(1)
        losses = original(*args)
        return {k: v * (float("inf") if len(calls) == 2 else 1) for k, v in losses.items()}

    monkeypatch.setattr(trainer.student, "losses", once)
    trainer.train()
    assert len(calls) == 3
    assert trainer.guard.bad_steps == 0
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())


def test_accumulated_gradient_is_the_mean_of_the_batches(mini_config, monkeypatch):
    trainer = DualStreamTrainer(mini_config("SOLVER.ACCUMULATION_STEPS", "2", "SOLVER.MAX_ITER", "1"))
    weight = trainer.student.sem_seg_head.predictor.query_feat.weight
    factors, files, grads = [1.0, 3.0], [], {}
    monkeypatch.setattr(trainer.student, "losses", lambda *_: {"loss_x": factors.pop(0) * weight.sum()})
    monkeypatch.setattr(trainer, "clip_gradients", lambda: grads.update(x=weight.grad.clone()) or torch.tensor(1.0))
    original = trainer.guard.step
    monkeypatch.setattr(trainer.guard, "step", lambda *args: files.extend(args[-1]) or original(*args))
    trainer.train()
    assert torch.equal(grads["x"], torch.full_like(weight, 2.0))
    assert len(files) == 4  # two batches of two


def test_parameter_groups_follow_the_paper(repo):
    cfg = get_config(
        repo / "configs/miniworld/m2f_lang.yaml", ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE", "False"]
    )
    model = build_model(cfg)
    settings = {name: (g["lr"], g["weight_decay"]) for g in parameter_groups(cfg, model) for name in g["names"]}
    lr = cfg.SOLVER.BASE_LR
    assert settings["sem_seg_head.pixel_decoder.mask_features.weight"] == (lr, 0.05)
    assert settings["sem_seg_head.predictor.query_feat.weight"] == (lr, 0.0)
    assert settings["sem_seg_head.predictor.decoder_norm.bias"] == (lr, 0.0)
    assert settings["sem_seg_head.pixel_decoder.adapter_1.norm.weight"] == (lr, 0.0)
    assert settings["sem_seg_head.pixel_decoder.transformer.level_embed"] == (lr, 0.0)
    assert settings["void_embedding.weight"] == (lr, 0.0)
    assert settings["backbone.clip_model.visual.trunk.stages.0.blocks.0.mlp.fc1.weight"] == (
        pytest.approx(0.1 * lr),
        0.05,
    )
    assert set(settings) == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["hvl", "split_matching", "segkc", "semidavil", "dearli"])
def test_only_weights_and_biases_of_layers_decay(repo, name):
    """Prompt tokens, temperatures, gates, layer scales and a bias of all classes are pulled nowhere."""
    cfg = get_config(repo / f"configs/miniworld/{name}.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    parameters = dict(model.named_parameters())
    decay = {n: g["weight_decay"] for g in parameter_groups(cfg, model) for n in g["names"]}
    assert set(decay) == {n for n, p in parameters.items() if p.requires_grad}
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.MultiheadAttention)
    of_layers = {f"{prefix}.{n}" for prefix, m in model.named_modules() if isinstance(m, layers)
                 for n, _ in m.named_parameters(recurse=False)}  # fmt: skip
    free = set(decay) - of_layers
    assert all(decay[n] == 0 for n in free), [n for n in free if decay[n]]
    assert all(decay[n] == cfg.SOLVER.WEIGHT_DECAY > 0 for n in decay if n in of_layers)
    alone = {"hvl": "prompts.prompt", "split_matching": "class_bias", "segkc": "senior.consultation.gate"}
    assert alone.get(name, "sem_seg_head.predictor.query_feat.weight" if name == "dearli" else next(iter(free))) in free


def test_schedule_is_poly_after_warm_up(repo):
    cfg = get_config(repo / "configs/miniworld/m2f_lang.yaml", ["SOLVER.WARMUP_ITERS", "4", "SOLVER.MAX_ITER", "20"])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = build_scheduler(cfg, optimizer), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == pytest.approx((1 - 4 / 20) ** 0.9)
    assert rates[10] == pytest.approx(0.5**0.9)
    assert optimizer.param_groups[0]["lr"] == 0


def test_a_method_may_give_parameters_a_learning_rate_of_their_own(mini_config, monkeypatch):
    """Factor, delay and warm-up of `Segmenter.learning_rate` reach the optimiser; other parameters keep the run's."""
    slow = "sem_seg_head.predictor.query_feat.weight"
    rate = LearningRate(factor=0.5, delay=2, warmup=3)
    monkeypatch.setattr(
        MaskFormerSegmenter, "learning_rate", lambda self, name: rate if name == slow else LearningRate()
    )
    trainer = DualStreamTrainer(mini_config("SOLVER.MAX_ITER", "10", "SOLVER.WARMUP_ITERS", "1"))
    query = dict(trainer.student.named_parameters())[slow]
    own = next(g for g in trainer.optimizer.param_groups if any(p is query for p in g["params"]))
    other = next(g for g in trainer.optimizer.param_groups if g is not own)
    assert [len(own["params"]), own["initial_lr"]] == [1, pytest.approx(0.5 * trainer.cfg.SOLVER.BASE_LR)]
    rates = []
    for _ in range(8):
        rates.append((own["lr"] / own["initial_lr"], other["lr"] / other["initial_lr"]))
        trainer.optimizer.step()
        trainer.scheduler.step()
    poly = [(1 - t / 10) ** 0.9 for t in range(8)]
    start = [0, 0, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1]
    assert [a for a, _ in rates] == pytest.approx([f * p for f, p in zip(start, poly, strict=True)])
    assert [b for _, b in rates] == pytest.approx([f * p for f, p in zip([0.5] + [1] * 7, poly, strict=True)])


def test_the_model_knows_the_step_of_the_run_also_after_a_resume(mini_config, monkeypatch):
    seen = []
    monkeypatch.setattr(MaskFormerSegmenter, "set_progress", lambda self, step, total: seen.append((step, total)))
    cfg = mini_config("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "0")
    train_until(cfg, 3)
    DualStreamTrainer(cfg, resume=True).train()
    assert seen == [(0, 4), (1, 4), (2, 4), (2, 4), (3, 4)]


def test_exponential_schedule_decays_by_its_factor_in_every_tenth(repo):
    options = [
        "SOLVER.SCHEDULE",
        "exponential",
        "SOLVER.DECAY",
        "0.9",
        "SOLVER.MAX_ITER",
        "50",
        "SOLVER.WARMUP_ITERS",
        "1",
    ]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = build_scheduler(get_config(repo / "configs/miniworld/m2f_lang.yaml", options), optimizer), []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.5)
    assert [rates[i] for i in (5, 10, 45)] == pytest.approx([0.9, 0.81, 0.9**9])
    assert rates[7] == pytest.approx(0.9**1.4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains(mini_config, dtype):
    trainer = DualStreamTrainer(
        mini_config("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype, "SOLVER.MAX_ITER", "8")
    )
    before = trainer.student.sem_seg_head.predictor.query_feat.weight.clone()
    trainer.train()
    after = trainer.student.sem_seg_head.predictor.query_feat.weight
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    assert after.dtype == torch.float32


@pytest.mark.parametrize("amp", ["False", "True"])
def test_evaluation_is_in_fp32_unless_asked_for_whatever_training_is_in(mini_config, monkeypatch, amp):
    cfg = mini_config(
        "SOLVER.AMP.ENABLED", "True", "DATASETS.TEST", "('miniworld_val@n2',)", "TEST.PICTURES", "1", "TEST.AMP", amp
    )  # fmt: skip
    model, seen = build_model(cfg), []
    original = model.predict
    monkeypatch.setattr(model, "predict", lambda x: seen.append(torch.is_autocast_enabled("cpu")) or original(x))
    evaluate(cfg, model)
    assert seen == [amp == "True"] * 3  # two images, and the picture


def test_a_config_for_inference_only_does_not_train(repo, tmp_path):
    cfg = get_config(repo / "configs/coco_panoptic/m2f_r50.yaml", ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"])
    with pytest.raises(DatasetError, match="DATASETS.TRAIN names no data set"):
        DualStreamTrainer(cfg)


@pytest.mark.parametrize("metric", ["panoptic/PQ", ""])
def test_evaluation_during_training_writes_results_pictures_and_the_best(mini_config, metric):
    cfg = mini_config(
        "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "('miniworld_val@0.04',)", "TEST.EVAL_PERIOD", "1", "TEST.PICTURES", "2",
        "TEST.BEST_METRIC", metric,
    )  # fmt: skip
    DualStreamTrainer(cfg).train()
    folder = Path(cfg.OUTPUT_DIR)
    results = json.loads((folder / "evaluation/miniworld_val@0.04/results.json").read_text())
    assert results["iteration"] == 2
    assert set(results["results"]) == {"panoptic", "semantic"}
    assert set(results["results"]["panoptic"]["per_class"]["grass"]) == {"PQ", "SQ", "RQ"}
    images = json.loads((folder / "evaluation/miniworld_val@0.04/per_image.json").read_text())
    assert all({"image", "panoptic/PQ", "semantic/mIoU"} <= set(row) for row in images)
    pictures = {f"pictures/{p.name}" for p in (folder / "evaluation/miniworld_val@0.04/pictures").glob("*.png")}
    assert {row["picture"] for row in images if "picture" in row} == pictures  # none is left of the first evaluation
    scores = sorted((row["panoptic/PQ"], "picture" in row) for row in images)
    assert len(pictures) == 2
    assert scores[0][0] in [score for score, shown in scores if shown]
    assert scores[-1][0] in [score for score, shown in scores if shown]
    assert (folder / "model_best.pth").is_file() == bool(metric)
    assert list(folder.glob("events.out.tfevents.*"))
    state = torch.load(folder / "model_final.pth", weights_only=True)
    assert state["iteration"] == 2
    assert state["taxonomy"]["names"][0] == ["striped red"]
