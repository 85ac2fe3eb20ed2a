"""A run that was interrupted anywhere ends as one that was not; one with other settings, classes or images is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from dearli_d2.data.catalog import taxonomy_of
from dearli_d2.data.taxonomy import Taxonomy, first_difference
from dearli_d2.engine import metrics, resume
from dearli_d2.engine.checkpoints import RunCheckpoints
from dearli_d2.engine.evaluation import RunEvaluation
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, DatasetError, WeightsError
from tests.conftest import MINI_OVERRIDES, REPO, SSL

TEST_SET = ("DATASETS.TEST", "('miniworld_val@0.02',)")
TIMES = ("time", "data_time", "eta_seconds")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """config(name, *overrides): four steps, a checkpoint and an evaluation after every second one."""
    from dearli_d2.config import get_config

    root = tmp_path_factory.mktemp("runs")
    fixed = (*MINI_OVERRIDES, *TEST_SET, "TEST.EVAL_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0")
    path = REPO / "configs/miniworld/m2f_lang.yaml"
    return lambda name, *overrides: get_config(path, [*fixed, "OUTPUT_DIR", str(root / name), *overrides])


class Kill(BaseException):
    """Ends a run as kill -9 does: nothing catches it."""


def train(cfg, scores: dict[int, float], kill_at: tuple[object, str, int] | None = None, continued: bool = False):
    """Trains with given scores in place of evaluations.

    Args:
        kill_at: (class, method, call): the run ends before that call of the method, from 0 on.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PERIOD", 2)
        patch.setattr(metrics, "WINDOW", 3)
        patch.setattr(
            "dearli_d2.engine.evaluation.evaluate", lambda cfg, model, done, label="": {"panoptic/PQ": scores[done]}
        )
        if kill_at is not None:
            owner, name, number = kill_at
            original, calls = getattr(owner, name), []

            def killed(*args, **options):
                calls.append(1)
                if len(calls) > number:
                    raise Kill
                return original(*args, **options)

            patch.setattr(owner, name, killed)
            with pytest.raises(Kill):
                DualStreamTrainer(cfg, resume=continued).train()
            return
        DualStreamTrainer(cfg, resume=continued).train()


def lines_of(cfg) -> list[dict]:
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(config):
    cfg = config("whole")
    train(cfg, {2: 40.0, 4: 35.0})
    return cfg


KILLS = {
    "in a step after an evaluation": (DualStreamTrainer, "run_step", 3),
    "between a checkpoint and its evaluation": (RunEvaluation, "scores", 0),
    "in an evaluation, after the best model is saved": (RunCheckpoints, "note_evaluation", 0),
    "between an evaluation and its line": (metrics.MetricsFile, "write", 0),
    "in the final evaluation": (RunEvaluation, "scores", 1),
    "after the final evaluation, before its line": (metrics.MetricsFile, "write", 1),
}


@pytest.mark.parametrize("case", KILLS)
def test_a_killed_run_ends_as_one_that_was_not(config, whole, case):
    """Lines of metrics.json, best model, evaluations, weights. The best score, of step 2, is never replaced by a lower one."""
    cfg, scores = config(case.replace(" ", "_")), {2: 40.0, 4: 35.0}
    train(cfg, scores, KILLS[case])
    train(cfg, scores, continued=True)
    assert [line["iteration"] for line in lines_of(whole)] == [1, 3]
    assert lines_of(cfg) == lines_of(whole)
    folder, expected = Path(cfg.OUTPUT_DIR), Path(whole.OUTPUT_DIR)
    for name in ("model_best.pth", "model_final.pth"):
        a, b = (torch.load(f / name, weights_only=True) for f in (folder, expected))
        assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
        assert a["iteration"] == b["iteration"] == {"model_best.pth": 2, "model_final.pth": 4}[name]
    assert RunCheckpoints(folder, 1).best_score() == 40.0
    assert json.loads((folder / "evaluated.json").read_text())["iteration"] == 4


def test_the_final_evaluation_that_was_cut_off_saves_the_best_model(config):
    cfg, scores = config("final"), {2: 40.0, 4: 45.0}
    train(cfg, scores, KILLS["in the final evaluation"])
    assert RunCheckpoints(cfg.OUTPUT_DIR, 1).best_score() == 40.0
    train(cfg, scores, continued=True)
    assert RunCheckpoints(cfg.OUTPUT_DIR, 1).best_score() == 45.0
    assert torch.load(Path(cfg.OUTPUT_DIR) / "model_best.pth", weights_only=True)["iteration"] == 4
    before = (Path(cfg.OUTPUT_DIR) / "model_best.pth").stat().st_mtime_ns, lines_of(cfg)
    train(cfg, {}, continued=True)  # complete and evaluated: nothing is left to do, no score is asked for
    assert ((Path(cfg.OUTPUT_DIR) / "model_best.pth").stat().st_mtime_ns, lines_of(cfg)) == before


def test_an_evaluation_repeated_with_a_slightly_lower_score_does_not_replace_the_best(config):
    """As on a GPU, whose results differ in the last digits."""
    cfg = config("noise")
    train(cfg, {2: 40.0}, KILLS["in an evaluation, after the best model is saved"])
    stamp = (Path(cfg.OUTPUT_DIR) / "model_best.pth").stat().st_mtime_ns
    train(cfg, {2: 39.999, 4: 39.998}, continued=True)
    assert (Path(cfg.OUTPUT_DIR) / "model_best.pth").stat().st_mtime_ns == stamp


def test_half_a_line_and_lines_of_lost_steps_are_taken_out(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iteration": 3}\n{"iteration": 5}\n{"itera')
    written = metrics.MetricsFile(path, 4)
    assert path.read_text() == '{"iteration": 1}\n{"iteration": 3}\n'
    assert written._last_write == 3
    written.close()
    metrics.MetricsFile(path, 0).close()
    assert path.read_text() == ""


def test_a_damaged_best_model_is_named_and_replaced(tmp_path, caplog):
    (tmp_path / "model_best.pth").write_bytes(b"half a file")
    with caplog.at_level("WARNING"):
        assert RunCheckpoints(tmp_path, 1).best_score() == -math.inf
    assert "model_best.pth cannot be read and will be replaced" in caplog.text


# ---------------------------------------------------------------------------------------------- settings


def saved(cfg, iteration: int = 2) -> dict:
    return {"config": cfg.dump(), "iteration": iteration}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", "5"),
        ("SOLVER.IMS_PER_BATCH", "4"),
        ("SOLVER.BASE_LR", "0.5"),
        ("SOLVER.ACCUMULATION_STEPS", "2"),
        ("DATASETS.TRAIN", "('miniworld_train@0.2',)"),
        ("MODEL.MASK_FORMER.NUM_QUERIES", "7"),
        ("MODEL.TEXT.TEMPLATES", "photo"),
        ("INPUT.CROP_SIZE", "96"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1.0"),
        ("MODEL.WEIGHTS", "other.pth"),
    ],
)
def test_a_run_with_other_settings_is_not_continued(config, key, value):
    cfg = config("x")
    with pytest.raises(ConfigError, match=f"holds a run with other settings: {key} was .*, is .*docs/resume.md"):
        resume.check_settings(saved(cfg), config("x", key, value), None)


def test_exported_weights_are_no_checkpoint_to_resume_from():
    with pytest.raises(
        WeightsError, match=r"m.pth cannot be resumed from: it lacks optimizer, scheduler, scaler, iteration"
    ):
        resume.check_complete({"model": {}, "config": ""}, Path("m.pth"))


def test_all_differing_settings_are_listed_with_both_values(config):
    with pytest.raises(
        ConfigError, match=r"SEED was 0, is 5; .*BASE_LR was 0.0005, is 0.5|BASE_LR was .*, is 0.5; .*SEED was 0, is 5"
    ):
        resume.check_settings(saved(config("x")), config("x", "SEED", "5", "SOLVER.BASE_LR", "0.5"), None)


FREE = ("OUTPUT_DIR", "elsewhere", "DATALOADER.NUM_WORKERS", "3", "SOLVER.CHECKPOINT_PERIOD", "9", "TEST.EVAL_PERIOD", "7",
        "TEST.PICTURES", "1", "SOLVER.KEEP_CHECKPOINTS", "5", "MODEL.DEFORM_ATTN_IMPL", "gather")  # fmt: skip


def test_settings_that_no_result_depends_on_may_change(config):
    resume.check_settings(saved(config("x")), config("x", *FREE), resume.scoring_settings(config("x")))


def test_a_run_that_was_moved_with_the_weights_that_it_began_with_is_the_same_run(config):
    def at(folder: str, weights: str):
        return config("x", "OUTPUT_DIR", f"{folder}/run", "MODEL.WEIGHTS", weights)

    resume.check_settings(saved(at("/old", "/old/warmup/m.pth")), at("/new/place", "/new/place/warmup/m.pth"), None)
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS was '/old/warmup/m.pth'"):
        resume.check_settings(saved(at("/old", "/old/warmup/m.pth")), at("/new/place", "/new/place/other/m.pth"), None)


def test_keys_of_other_methods_are_not_compared(config):
    cfg = config("x")
    resume.check_settings(
        saved(config("x", "MODEL.SENIOR.BACKBONE.ARCH", "resnet18", "MODEL.HVL.PROMPT_TOKENS", "4")), cfg, None
    )


def test_every_free_key_is_documented(repo):
    text = (repo / "docs/resume.md").read_text()
    assert [key for key in (*resume.FREE, resume._LENGTH) if key not in text] == []


def test_what_scores_depend_on_may_change_until_the_first_evaluation(config):
    cfg, other = config("x"), config("x", "TEST.OBJECT_THRESHOLD", "0.5", "DATASETS.TEST", "('miniworld_val',)")
    resume.check_settings(saved(cfg), other, None)
    with pytest.raises(
        ConfigError, match=r"DATASETS.TEST was \['miniworld_val@0.02'\], is .*OBJECT_THRESHOLD was 0.4, is 0.5"
    ):
        resume.check_settings(saved(cfg), other, resume.scoring_settings(cfg))


def test_a_longer_run_follows_the_new_schedule_and_says_so(config, caplog):
    with caplog.at_level("WARNING"):
        resume.check_settings(saved(config("x")), config("x", "SOLVER.MAX_ITER", "8"), None)
    assert "SOLVER.MAX_ITER was 4 and is 8: from iteration 2 on the learning rate follows the new length" in caplog.text


def test_unlabelled_images_may_come_until_their_first_step(config):
    without, ssl = config("x"), ("DATASETS.UNLABELED", "('miniworld_train@0.1:unlabeled',)", *SSL[2:])
    resume.check_settings(saved(without), config("x", *ssl, "SSL.START", "2", "SSL.EMA_DECAY", "0.5"), None)
    with pytest.raises(ConfigError, match="DATASETS.UNLABELED was"):
        resume.check_settings(saved(without), config("x", *ssl, "SSL.START", "1"), None)


def test_other_images_under_the_same_name_are_refused(config):
    cfg = config("x")
    data = resume.describe_data(cfg)
    resume.check_data(data, cfg)
    count, _ = data["TRAIN"]["miniworld_train@0.1"]
    for before, words in (
        ([count, "other"], "other images now"),
        ([count - 1, "other"], f"{count - 1} images when the run began"),
    ):
        with pytest.raises(DatasetError, match=f"DATASETS.TRAIN miniworld_train@0.1: .*{words}"):
            resume.check_data({"TRAIN": {"miniworld_train@0.1": before}}, cfg)


def test_a_refused_resume_leaves_the_run_as_it_was(config, whole):
    folder = Path(whole.OUTPUT_DIR)
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for overrides in (("SOLVER.BASE_LR", "0.5"), ("SEED", "3")):
        with pytest.raises(ConfigError, match=f"other settings: {overrides[0]} was"):
            DualStreamTrainer(config("whole", *overrides), resume=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        DualStreamTrainer(config("whole"))
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


# ---------------------------------------------------------------------------------------------- classes


CLASSES = Taxonomy((("road",), ("car", "automobile"), ("tree",)), frozenset({1}), (7, 8, 9), ((0, 0, 0),) * 3)


def changed(**parts) -> Taxonomy:
    return Taxonomy(**{**{k: getattr(CLASSES, k) for k in ("names", "thing_ids", "dataset_ids", "colors")}, **parts})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed(names=(("road",), ("tree",), ("car",))), "class 1 was 'car' (id 8, thing), is 'tree' (id 8, thing)"),
        (changed(dataset_ids=(7, 9, 8)), "class 1 was 'car' (id 8, thing), is 'car' (id 9, thing)"),
        (changed(thing_ids=frozenset()), "class 1 was 'car' (id 8, thing), is 'car' (id 8, stuff)"),
        (Taxonomy(CLASSES.names[:2], frozenset({1}), (7, 8), CLASSES.colors[:2]), "3 classes, not 2"),
        (changed(colors=((1, 1, 1),) * 3), None),
        (changed(names=(("road",), ("car",), ("tree",))), None),
    ],
)
def test_the_first_class_that_differs_is_named(other, words):
    assert first_difference(CLASSES, other) == words


def test_synonyms_count_where_training_goes_on():
    other = changed(names=(("road",), ("car",), ("tree",)))
    assert (
        first_difference(CLASSES, other, synonyms=True)
        == "class 1 was 'car, automobile' (id 8, thing), is 'car' (id 8, thing)"
    )


def test_a_run_is_not_continued_with_its_classes_in_another_order(config, whole, monkeypatch):
    known = taxonomy_of("miniworld_train")
    swapped = known.with_names([known.names[1], known.names[0], *known.names[2:]])
    for place in ("trainer", "evaluation"):
        monkeypatch.setattr(f"dearli_d2.engine.{place}.taxonomy_of", lambda name: swapped)
    with pytest.raises(
        DatasetError, match="other categories than the run in .* was made for: class 0 was 'striped red'"
    ):
        DualStreamTrainer(config("whole"), resume=True)
