"""`dearli reproduce` on a small paper: stages in order, what is finished is not repeated, nothing foreign is overwritten."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dearli_d2.cli import main
from dearli_d2.engine.run_folder import FolderLock
from dearli_d2.errors import ConfigError
from dearli_d2.reproduction import run, show
from dearli_d2.reproduction.requirements import needs_of
from dearli_d2.reproduction.result import RESULT, Comparison, figure_of, finished
from dearli_d2.reproduction.settings import missing_data
from dearli_d2.reproduction.stages import Choice, steps_of
from dearli_d2.reproduction.state import Progress, progress_of, settings_of
from tests.conftest import REPO

papers = importlib.import_module("dearli_d2.reproduction.papers")  # the package has a function of that name

COST = SimpleNamespace(gpu_gib=1.5, hours={"A100": 2.0}, source="made up")  # counting operations takes seconds
TINY = {
    "SOLVER.MAX_ITER": 4, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.CHECKPOINT_PERIOD": 1, "SSL.START": 2, "SSL.IMS_PER_BATCH": 2,
    "SSL.MONITOR_PERIOD": 0, "SSL.PICTURE_PERIOD": 0, "INPUT.CROP_SIZE": 64, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "TEST.PICTURES": 1, "TEST.EVAL_PERIOD": 0, "DATASETS.TEST": "('miniworld_val@n4',)",
}  # fmt: skip
WARMUP = {
    key: value for key, value in TINY.items() if key.startswith(("SOLVER", "INPUT", "MODEL"))
} | {"DATASETS.TRAIN": "('miniworld_train@n4',)"}  # fmt: skip
PUBLISHED = "dearli/ade20k/dearli/1_128"  # a name of the list; the file is ours
PAPER = {
    "title": "A small paper", "url": "u", "hardware": "h", "spread": 1.0, "spread_source": "s", "seeds": 3,
    "tables": {"1": "One", "2": "Two"},
    "stages": {
        "masks": {"command": "masks generate --dataset miniworld_train@n4 --generator classical --out {out}", "gives": "DATASETS.MASKS"},
        "warmup": {"config": "miniworld/warmup.yaml", "set": WARMUP, "after": ["masks"], "gives": "MODEL.WEIGHTS"},
    },
    "rows": {
        "ladder": {
            "table": {"1": "DEARLi"}, "config": "miniworld/dearli.yaml", "set": TINY, "after": ["warmup"],
            "metric": "panoptic/PQ", "figures": {"0.01": 99.5}, "columns": "SOLVER.WEIGHT_DECAY", "checkpoint": PUBLISHED,
        },
        "ladder/large": {
            "table": {"1": "DEARLi, larger"}, "run_of": "ladder", "test": {"INPUT.MIN_SIZE_TEST": 64},
            "metric": ["semantic/mIoU", "semantic/IoU/sky"], "figures": {"0.01": [None, 12.0]},
        },
        "ladder/sky": {"table": {"2": "DEARLi"}, "run_of": "ladder", "metric": "semantic/IoU/sky", "figures": {"0.01": 50.0}},
        "other": {"table": {"2": "CPS [1]"}, "missing": "another method", "metric": "panoptic/PQ", "figures": {"0.01": 40.0, "0.05": 41.0}},
    },
}  # fmt: skip
ROW = "small/ladder/0.01"


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("papers")
    (folder / "small.yaml").write_text(yaml.safe_dump(PAPER, sort_keys=False))
    return folder


@pytest.fixture(autouse=True)
def _small_paper(paper, monkeypatch):
    monkeypatch.setattr(papers, "FOLDER", paper)
    monkeypatch.setattr(show, "cost_of", lambda cfg: COST)
    monkeypatch.chdir(REPO)


def in_process(calls: list[list[str]]):
    """Runs stages in this process, and notes them."""

    def run_dearli(words) -> int:
        calls.append(list(words))
        return main(list(words))

    return run_dearli


@pytest.fixture(scope="module")
def done(paper, tmp_path_factory):
    """The folder of a row that was run from nothing, and the commands."""
    out, calls = tmp_path_factory.mktemp("out"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(papers, "FOLDER", paper)
        patch.setattr(run, "run_dearli", in_process(calls))
        patch.setattr(show, "cost_of", lambda cfg: COST)
        assert main(["reproduce", ROW, "--out", str(out)]) == 0
    return out, calls


def result(out: Path, row: str = ROW) -> dict:
    return json.loads((out / row / "reproduction.json").read_text())


def note(folder: Path) -> dict:
    return json.loads((folder / "stage.json").read_text())


# ---------------------------------------------------------------------------------------------- a whole row


def test_stages_run_in_order_and_each_reads_what_the_one_before_made(done):
    out, calls = done
    assert [words[0] for words in calls] == ["masks", "train", "train"]
    masks, warmup = out / "stages/small/masks", out / "stages/small/warmup"
    assert calls[0][-1] == str(masks)
    assert ["DATASETS.MASKS", str(masks)] == calls[1][-4:-2]
    assert ["MODEL.WEIGHTS", str(warmup / "model_final.pth")] == calls[2][-4:-2]
    assert calls[2][-1] == str(out / ROW / "training")


def test_the_result_has_the_papers_figure_ours_and_the_way_to_it(done):
    out, _ = done
    found = result(out)
    source = out / ROW / "training/evaluation/miniworld_val@n4/results.json"
    ours = json.loads(source.read_text())["results"]["panoptic"]["PQ"]
    figure = found["figures"][0]
    assert (figure["paper"], figure["ours"], figure["within"]) == (99.5, ours, False)
    assert figure["difference"] == round(ours - 99.5, 2)
    assert "NOT within the spread of 1" in found["verdict"][0]
    assert [stage["name"] for stage in found["stages"]] == ["masks", "warmup", "training"]
    assert all(stage["seconds"] > 0 and len(stage["commands"]) == 1 for stage in found["stages"])
    assert found["papers_settings"]
    assert found["environment"]["dearli_d2"]


def test_the_page_shows_figures_commands_and_pictures(done):
    out, _ = done
    page = (out / ROW / "reproduction.html").read_text()
    for text in ("A small paper", "99.50", "not within the spread", "dearli masks generate", "the mean of 3 runs"):
        assert text in page
    pictures = [part.split('"')[0] for part in page.split('<img src="')[1:]]
    assert pictures
    assert all((out / ROW / name).is_file() for name in pictures)


def test_a_finished_row_is_not_run_again(done, monkeypatch, capsys):
    out, _ = done
    again: list[list[str]] = []
    monkeypatch.setattr(run, "run_dearli", in_process(again))
    assert main(["reproduce", "run", ROW, "--out", str(out)]) == 0
    assert again == []
    assert "NOT within" in capsys.readouterr().out


def test_a_row_of_the_same_training_adds_an_evaluation_with_its_own_settings(done, monkeypatch):
    out, _ = done
    calls: list[list[str]] = []
    monkeypatch.setattr(run, "run_dearli", in_process(calls))
    assert main(["reproduce", "small/ladder/large/0.01", "--out", str(out)]) == 0
    assert [words[0] for words in calls] == ["eval"]
    assert calls[0][calls[0].index("INPUT.MIN_SIZE_TEST") :][:2] == ["INPUT.MIN_SIZE_TEST", "64"]
    found = result(out, "small/ladder/large/0.01")
    assert [figure["metric"] for figure in found["figures"]] == ["semantic/mIoU", "semantic/IoU/sky"]
    assert "the paper prints none" in found["verdict"][0]


def test_a_row_without_settings_of_its_own_reads_the_trainings_last_evaluation(done, monkeypatch):
    out, _ = done
    monkeypatch.setattr(run, "run_dearli", lambda words: pytest.fail("nothing is left to do"))
    assert main(["reproduce", "small/ladder/sky/0.01", "--out", str(out)]) == 0
    scores = json.loads((out / ROW / "training/evaluation/miniworld_val@n4/results.json").read_text())["results"]
    assert result(out, "small/ladder/sky/0.01")["figures"][0]["ours"] == scores["semantic"]["per_class"]["sky"]["IoU"]


def test_the_published_checkpoint_is_evaluated_in_a_folder_of_its_own(done, monkeypatch, tmp_path):
    out, _ = done
    calls: list[list[str]] = []
    monkeypatch.setattr(run, "run_dearli", in_process(calls))
    monkeypatch.setenv("DEARLI_WEIGHTS", str(tmp_path))
    command = ["reproduce", ROW, "--official", "--out", str(tmp_path / "out")]
    assert main(command) == 2  # the file is not here
    assert calls == []
    file = tmp_path / f"{PUBLISHED}.pth"
    file.parent.mkdir(parents=True)
    file.symlink_to(out / ROW / "training/model_final.pth")
    assert main(command) == 0
    assert [words[0] for words in calls] == ["eval"]
    found = json.loads((tmp_path / "out" / ROW / "official/reproduction.json").read_text())
    assert found["official"]
    assert found["figures"][0]["ours"] == pytest.approx(result(out)["figures"][0]["ours"])


def test_tables_show_ours_behind_the_papers_figure(done, capsys):
    out, _ = done
    ours = result(out)["figures"][0]["ours"]
    assert main(["reproduce", "table", "small", "1", "--out", str(out)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("DEARLi "))
    assert float(re.search(r"99.5 \((\S+)\)", line)[1]) == pytest.approx(ours, abs=0.01)
    assert main(["reproduce", "table", "small", "2", "--format", "csv", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "small/other/0.05,CPS [1],0.05,panoptic/PQ,41.0,,,,," in lines
    assert main(["reproduce", "table", "small", "2", "--format", "markdown", "--out", str(out)]) == 0
    assert "| CPS [1]" in capsys.readouterr().out
    assert main(["reproduce", "table", "small", "9"]) == 2


def made_up_result(folder: Path, seed: int, ours: float | None, *overrides: str, official: bool = False) -> None:
    folder.mkdir(parents=True)
    figure = {"metric": "panoptic/PQ", "ours": ours}
    content = {
        "figures": [figure],
        "seed": seed,
        "overrides": overrides,
        "official": official,
        "papers_settings": not overrides,
    }
    (folder / RESULT).write_text(json.dumps(content))


def test_tables_show_the_mean_and_the_standard_error_of_seeds(tmp_path, capsys):
    row = tmp_path / ROW
    made_up_result(row / "official", 0, 90.0, official=True)
    assert finished(papers.find(ROW), tmp_path).figures == {"panoptic/PQ": 90.0}
    made_up_result(row / "seed_5", 5, 1.0, "SOLVER.BASE_LR", "1")
    assert finished(papers.find(ROW), tmp_path).own_settings
    made_up_result(row / "seed_1", 1, 50.0)
    assert finished(papers.find(ROW), tmp_path).errors == {}  # the overridden run is left out
    made_up_result(row / "seed_2", 2, 53.0)
    made_up_result(row / "seed_3", 3, 56.0)
    made_up_result(row / "again", 3, 0.0)
    (row / RESULT).write_text((row / "seed_3" / RESULT).read_text())  # the same seed once more is no new run
    found = finished(papers.find(ROW), tmp_path)
    assert (found.figures["panoptic/PQ"], found.seeds) == (53.0, 3)
    assert found.errors["panoptic/PQ"] == pytest.approx(3 / 3**0.5)
    assert run._over_seeds(papers.find(ROW), tmp_path) == [
        "mean of 3 seeds: panoptic/PQ 53.00, the paper 99.5: 46.50 lower, NOT within the spread of 1"
    ]
    assert main(["reproduce", "table", "small", "1", "--out", str(tmp_path)]) == 0
    assert "99.5 (53±1.73, 3 seeds)" in capsys.readouterr().out
    assert main(["reproduce", "table", "small", "1", "--format", "csv", "--out", str(tmp_path)]) == 0
    assert re.search(r"panoptic/PQ,99.5,53.0,False,False,1.73\d*,3$", capsys.readouterr().out, re.MULTILINE)


def damage(out: Path, what: str) -> None:
    if what == "masks":
        folder = out / "stages/small/masks"
        own = {"manifest.json", "stage.json", ".lock", "index.bin"}
        next(p for p in folder.rglob("*") if p.is_file() and p.name not in own and p.suffix != ".png").unlink()
    elif what == "weights":
        os.truncate(out / "stages/small/warmup/model_final.pth", 1000)
    else:
        shutil.rmtree(out / ROW / "training/evaluation")


@pytest.mark.parametrize(("what", "index"), [("masks", 0), ("weights", 1), ("scores", 2)])
def test_a_finished_stage_that_lost_files_is_not_finished_any_more(what, index, done, tmp_path):
    shutil.copytree(done[0], tmp_path / "out", dirs_exist_ok=True)
    steps = steps_of(papers.find(ROW), Choice(tmp_path / "out"))
    assert [progress_of(step) for step in steps] == [Progress.FINISHED] * 3
    damage(tmp_path / "out", what)
    expected = [Progress.FINISHED] * 3
    expected[index] = Progress.DAMAGED
    assert [progress_of(step) for step in steps] == expected


@pytest.mark.parametrize("what", ["masks", "scores"])
def test_lost_masks_and_scores_are_made_again(what, done, monkeypatch):
    out, before = done[0], result(done[0])["figures"][0]["ours"]
    damage(out, what)
    calls: list[list[str]] = []
    monkeypatch.setattr(run, "run_dearli", in_process(calls))
    assert main(["reproduce", ROW, "--out", str(out)]) == 0
    assert [words[0] for words in calls] == [{"masks": "masks", "scores": "train"}[what]]
    assert result(out)["figures"][0]["ours"] == pytest.approx(before)
    assert all(progress_of(step) is Progress.FINISHED for step in steps_of(papers.find(ROW), Choice(out)))


# ---------------------------------------------------------------------------------------------- what is refused


def test_other_overrides_in_a_folder_are_refused_and_named(done, monkeypatch, capsys):
    out, _ = done
    monkeypatch.setattr(run, "run_dearli", lambda words: pytest.fail("nothing may start"))
    assert main(["reproduce", ROW, "--out", str(out), "SOLVER.BASE_LR", "0.5"]) == 2
    assert "SOLVER.BASE_LR was not set and is 0.5" in capsys.readouterr().err
    # keys that no result depends on may change
    assert main(["reproduce", ROW, "--out", str(out), "DATALOADER.NUM_WORKERS", "1"]) == 0
    assert result(out)["papers_settings"]


def test_files_of_others_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "stages/small/masks").mkdir(parents=True)
    (tmp_path / "stages/small/masks/mine.txt").write_text("mine")
    assert main(["reproduce", ROW, "--out", str(tmp_path)]) == 2
    assert "holds files that no `dearli reproduce` has made" in capsys.readouterr().err


def test_a_process_that_was_killed_in_its_first_note_leaves_nothing_foreign(tmp_path):
    step = steps_of(papers.find(ROW), Choice(tmp_path))[0]
    (step.folder / ".reproduce").mkdir(parents=True)
    (step.folder / ".stage-0123abcd.json").write_text("{")
    assert progress_of(step) is Progress.TO_DO


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small/other/0.05"], "small/other/0.05 cannot be run: another method"),
        (["small/other/0.05", "--official"], "cannot be run"),
        (["small/ladder/large/0.01", "--official"], "no published checkpoint"),
        (["small/ladder/0.02"], "there is no row 'small/ladder/0.02'; did you mean small/ladder/0.01"),
        ([ROW, "--stage", "warm-up"], "there is no stage 'warm-up'; the stages are masks, warmup, training"),
        ([ROW, "--stage", "training"], "the stage training comes after masks, warmup"),
        ([ROW, "OUTPUT_DIR", "a"], "--out"),
        ([ROW, "SEED", "3"], "SEED is chosen by --seed 3"),
        ([ROW, "--seed", "3", "--official"], "there is no seed to choose"),
        ([ROW, "MODEL.WEIGHTS", "a.pth"], "MODEL.WEIGHTS cannot be overridden: an earlier stage gives it to training"),
        ([ROW, "SOLVER.MAX_ITR", "3"], "SOLVER.MAX_ITR"),
        ([ROW, "SOLVER.MAX_ITER"], "has no value"),
        ([ROW, "--num-gpus", "3"], "--num-gpus 3"),
    ],
)
def test_nothing_starts_when_something_is_wrong(words, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, "run_dearli", lambda words: pytest.fail("nothing may start"))
    assert main(["reproduce", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_that_is_missing_is_told_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(papers, "FOLDER", Path(papers.__file__).parents[1] / "assets" / "papers")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("DEARLI_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["reproduce", "dearli/ade20k/1_128", "--out", str(tmp_path / "out"), "SOLVER.BASE_LR", "-1"]) == 2
    told = capsys.readouterr().err
    for text in ("dearli weights get sam/vit_h", "SOLVER.BASE_LR"):
        assert text in told
    assert main(["reproduce", "dearli/ade20k/1_128", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    told = capsys.readouterr().err
    for text in (
        "dearli weights get sam/vit_h",
        "dearli weights get open_clip/convnext_base_w_320",
        "dearli prepare ade20k",
    ):
        assert text in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["fc_clip/ade20k/convnext_l", "mask2former/coco_panoptic/swin_t"])
def test_a_published_checkpoint_needs_no_weights_beside_it(name, monkeypatch, tmp_path):
    """It holds the backbone and the text encoder; lists of class names are files of their own."""
    monkeypatch.setattr(papers, "FOLDER", Path(papers.__file__).parents[1] / "assets" / "papers")
    experiment = papers.find(name)
    needs = needs_of(steps_of(experiment, Choice(tmp_path, official=True)))
    weights = {need.name for need in needs if need.role == "weights"}
    assert {n for n in weights if "/class_names/" not in n} == {experiment.checkpoint}


def test_a_dry_run_prints_commands_and_cost_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, "run_dearli", lambda words: pytest.fail("nothing may start"))
    assert main(["reproduce", ROW, "--dry-run", "--out", str(tmp_path / "out"), "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert text.count("to do") == 3
    assert "cost of training: 1.5 GiB; 2 h on one A100" in text
    assert "dearli train --config-file configs/miniworld/warmup.yaml --resume" in text
    assert not (tmp_path / "out").exists()


def test_keys_of_the_evaluation_go_to_the_last_training_alone(tmp_path):
    choice = Choice(tmp_path, overrides=("TEST.PICTURES", "3", "SOLVER.BASE_LR", "3"))
    warmup, training = steps_of(papers.find(ROW), choice)[1:]
    assert (warmup.pairs.get("TEST.PICTURES"), warmup.pairs["SOLVER.BASE_LR"]) == (None, "3")
    assert (training.pairs["TEST.PICTURES"], training.pairs["SOLVER.BASE_LR"]) == ("3", "3")


def test_a_command_that_reads_a_config_takes_the_overrides_too(monkeypatch, tmp_path):
    """Regions of other settings than the training's would be refused by it."""
    monkeypatch.setattr(papers, "FOLDER", Path(papers.__file__).parents[1] / "assets" / "papers")
    key = "MODEL.SPLIT.REGIONS.MIN_AREA"
    choice = Choice(tmp_path, overrides=(key, "0.2", "TEST.PICTURES", "3", "MODEL.DEVICE", "cpu"))
    regions, training = steps_of(papers.find("miniworld/split_matching"), choice)
    assert regions.command[-4:] == (key, "0.2", "MODEL.DEVICE", "cpu")
    assert training.pairs[key] == "0.2"
    assert settings_of(regions)["overrides"] == {key: "0.2"}
    masks, *_ = steps_of(papers.find("miniworld/dearli"), choice)
    assert key not in masks.command


def test_a_seed_has_a_folder_of_its_own_and_shares_the_stages_before(tmp_path):
    plain, third = (steps_of(papers.find("small/ladder/large/0.01"), Choice(tmp_path, seed=s)) for s in (None, 3))
    assert plain[:2] == third[:2]
    training, evaluation = third[2:]
    assert training.folder == tmp_path / ROW / "seed_3/training"
    assert evaluation.folder == tmp_path / "small/ladder/large/0.01/seed_3/evaluation"
    assert training.pairs["SEED"] == evaluation.pairs["SEED"] == "3"
    assert str(training.product) in evaluation.command


@pytest.mark.parametrize(("place", "text"), [("file", "is a file"), ("file/deeper", "is a file")])
def test_a_folder_that_cannot_be_is_told_with_all_that_is_missing(place, text, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(run, "run_dearli", lambda words: pytest.fail("nothing may start"))
    assert main(["reproduce", ROW, "--out", str(tmp_path / place), "SOLVER.BASE_LR", "-1"]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'file'} {text}; choose another --out" in told
    assert "SOLVER.BASE_LR" in told


# ---------------------------------------------------------------------------------------------- one stage, failures, locks


def test_a_stage_alone_and_one_that_fails(monkeypatch, capsys, tmp_path):
    calls: list[list[str]] = []
    monkeypatch.setattr(run, "run_dearli", in_process(calls))
    command = ["reproduce", ROW, "--out", str(tmp_path)]
    assert main([*command, "--stage", "masks"]) == 0
    assert [words[0] for words in calls] == ["masks"]
    monkeypatch.setattr(run, "run_dearli", lambda words: 3)
    assert main(command) == 3
    assert (
        "the stage warmup ended with status 3; when that is mended, the same command continues it"
        in capsys.readouterr().out
    )
    assert note(tmp_path / "stages/small/masks")["finished"]
    assert not note(tmp_path / "stages/small/warmup")["finished"]
    assert not (tmp_path / ROW / "training").exists()


def test_another_process_on_the_row_is_refused(monkeypatch, tmp_path, capsys):
    """A process holds the training; locks of one process do not keep each other out."""
    step = steps_of(papers.find("small/ladder/0.01"), Choice(tmp_path))[-1]
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from dearli_d2.engine.run_folder import FolderLock as L; "
         "lock = L(sys.argv[1]); print('held', flush=True); time.sleep(60)", str(step.folder / ".reproduce")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"):
            run._make(step)
    finally:
        holder.kill()
        holder.wait()


def test_a_shared_stage_is_waited_for(monkeypatch, tmp_path, capsys):
    step = steps_of(papers.find(ROW), Choice(tmp_path))[0]
    attempts = []

    def lock(folder):
        attempts.append(folder)
        if len(attempts) == 1:
            raise ConfigError(f"OUTPUT_DIR {folder} is in use by process 1")
        return FolderLock(folder)

    monkeypatch.setattr("dearli_d2.reproduction.state.FolderLock", lock)
    monkeypatch.setattr("dearli_d2.reproduction.state._POLL", 0.0)
    monkeypatch.setattr(run, "run_dearli", lambda words: 0)
    assert run._make(step) == 0
    assert len(attempts) == 2
    assert "waiting for another process" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- processes that end

RUNNER = """
import importlib, sys
from pathlib import Path
importlib.import_module("dearli_d2.reproduction.papers").FOLDER = Path(sys.argv[1])
from dearli_d2.cli import main
from dearli_d2.reproduction import show
from types import SimpleNamespace
show.cost_of = lambda cfg: SimpleNamespace(gpu_gib=1.5, hours={}, source="made up")
sys.exit(main(sys.argv[2:]))
"""


def runner(paper: Path, *words: str) -> subprocess.Popen:
    """`dearli` with the small paper, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(paper), *words], cwd=REPO, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": str(REPO)},
    )  # fmt: skip


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_row_goes_on_where_it_was_and_ends_with_the_same_figures(done, paper, tmp_path):
    whole, _ = done
    shutil.copytree(whole / "stages", tmp_path / "stages")  # finished; the folders may have moved
    words = ["reproduce", ROW, "--out", str(tmp_path)]
    first = runner(paper, *words)
    wait_for(lambda: (tmp_path / ROW / "training/last_checkpoint").is_file() or first.poll() is not None)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / ROW / "reproduction.json").exists()
    before = {name: note(tmp_path / "stages/small" / name) for name in ("masks", "warmup")}
    assert all(entry["finished"] for entry in before.values())
    second = runner(paper, *words)
    output = second.communicate()[0]
    assert second.returncode == 0, output
    assert {name: note(tmp_path / "stages/small" / name) for name in before} == before
    assert "resuming from" in (tmp_path / ROW / "training/log.txt").read_text()
    assert result(tmp_path)["figures"][0]["ours"] == pytest.approx(result(whole)["figures"][0]["ours"], abs=1e-3)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_command_ends_with_the_process_that_started_it(number, status, tmp_path):
    """Also if that is killed."""
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("of Linux alone")
    stub, pid = tmp_path / "python", tmp_path / "pid"
    stub.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60\n")
    stub.chmod(0o755)
    code = f"import sys; from dearli_d2.reproduction.process import run_dearli; sys.executable = {str(stub)!r}; run_dearli(['env'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPO, start_new_session=True, stderr=subprocess.DEVNULL
    )
    wait_for(pid.is_file)
    process.send_signal(number)
    assert process.wait(20) == status
    wait_for(lambda: not Path(f"/proc/{int(pid.read_text())}").exists(), 10)


# ---------------------------------------------------------------------------------------------- lists, figures


def test_the_list_has_every_row_once_a_table_and_takes_no_torch():
    code = """
import sys, time
from dearli_d2.cli import main
begin = time.process_time()
assert main(["reproduce", "list"]) == 0
assert "torch" not in sys.modules
assert time.process_time() - begin < 5, "slow"
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in found.splitlines() if line.startswith("  ") and "/" in line.split()[0]]
    folder = Path(papers.__file__).parents[1] / "assets" / "papers"
    wanted = [
        f"{path.stem}/{row.name}"
        for path in sorted(folder.glob("*.yaml"))
        for row in papers.read_paper(path).rows.values()
        for _ in row.table
    ]
    assert sorted(names) == sorted(wanted)


def test_a_list_of_a_pattern_shows_what_is_finished(done, capsys):
    out, _ = done
    assert main(["reproduce", "list", "0.01", "--paper", "small", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    ladder = next(line for line in text.splitlines() if line.strip().startswith("small/ladder "))
    assert "ready" in ladder
    assert f"0.01 {result(out)['figures'][0]['ours']:.1f}"[:6] in ladder
    assert "not run: another method" in text
    assert main(["reproduce", "list", "nothing"]) == 2
    assert main(["reproduce", "list", "--paper", "nothing"]) == 2


def test_show_has_all_on_one_screen(capsys, tmp_path):
    assert main(["reproduce", "show", ROW, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for part in (
        "Table 1 (One), row DEARLi",
        "panoptic/PQ 99.5",
        "dearli masks generate",
        "cost of",
        "4 images",
        "published",
    ):
        assert part in text
    assert main(["reproduce", "show", "small/other/0.05"]) == 0
    assert "another method" in capsys.readouterr().out


def test_missing_data_and_lists_are_named_without_reading_them(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    path = tmp_path / "partitions/ade20k/1_128/labeled.txt"
    partitions = f"dearli prepare partitions FOLDER ({path})"
    assert missing_data("ade20k_panoptic_train@1_128") == ["dearli prepare ade20k", partitions]
    file = tmp_path / "ADEChallengeData2016/ade20k_panoptic_train.json"
    file.parent.mkdir()
    file.write_text("{}")
    assert missing_data("ade20k_panoptic_train@1_128:unlabeled") == [partitions]
    path.parent.mkdir(parents=True)
    path.write_text("a")
    for name in ("ade20k_panoptic_train@1_128", "ade20k_panoptic_train@n100~2", "miniworld_train@0.1"):
        assert missing_data(name) == []
    assert missing_data("ade20k_panoptic_trian") == ["there is no data set ade20k_panoptic_trian"]


@pytest.mark.parametrize(
    ("ours", "paper_figure", "within", "text"),
    [
        (41.1, 41.6, True, "0.50 lower, within the spread of 0.5"),
        (42.11, 41.6, False, "0.51 higher, NOT within the spread of 0.5"),
        (41.0, None, None, "the paper prints none"),
        (None, 41.6, None, "no figure"),
    ],
)
def test_the_verdict_compares_with_the_spread(ours, paper_figure, within, text):
    comparison = Comparison("panoptic/PQ", paper_figure, ours, 0.5)
    assert comparison.within is within
    assert text in comparison.verdict


def test_figures_are_found_by_name_also_those_of_a_class():
    results = {"semantic": {"mIoU": 50.0, "per_class": {"traffic light": {"IoU": 40.0}, "wall": {"IoU": None}}}}
    assert figure_of(results, "semantic/mIoU", Path("r.json")) == 50.0
    assert figure_of(results, "semantic/IoU/traffic light", Path("r.json")) == 40.0
    assert figure_of(results, "semantic/IoU/wall", Path("r.json")) is None
    for metric in ("panoptic/PQ", "semantic/hIoU", "semantic/IoU/road"):
        with pytest.raises(ConfigError, match=f"r.json has no {metric}; it has semantic/mIoU, semantic/IoU/CLASS"):
            figure_of(results, metric, Path("r.json"))


# ---------------------------------------------------------------------------------------------- a row of each method, slowly

SHORT = (
    "SOLVER.MAX_ITER",
    "40",
    "SSL.START",
    "20",
    "SOLVER.CHECKPOINT_PERIOD",
    "10",
    "SSL.MONITOR_PERIOD",
    "0",
    "TEST.EVAL_PERIOD",
    "0",
)


def dearli(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dearli_d2", *words], cwd=REPO, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dearli", "hvl", "split_matching", "semidavil", "segkc"])
def test_a_row_of_each_method_from_nothing_killed_in_the_training_and_resumed(method, tmp_path):
    words = ["reproduce", "run", f"miniworld/{method}", *SHORT, "--out"]
    row = Path("miniworld") / method
    training = tmp_path / "out" / row / "training"
    first = dearli(*words, str(tmp_path / "out"))
    wait_for(lambda: (training / "last_checkpoint").is_file() or first.poll() is not None, 1200)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out" / row / "reproduction.json").exists()
    stages = [path.parent for path in (tmp_path / "out/stages").rglob("stage.json")]
    before = {stage: (stage / "stage.json").read_text() for stage in stages}
    second = dearli(*words, str(tmp_path / "out"))
    output = second.communicate()[0]
    assert second.returncode == 0, output
    assert {stage: (stage / "stage.json").read_text() for stage in stages} == before
    assert "resuming from" in (training / "log.txt").read_text()
    ours = result(tmp_path / "out", str(row))["figures"]
    assert all(figure["ours"] is not None for figure in ours)
    if method == "semidavil":  # bit by bit
        whole = dearli(*words, str(tmp_path / "whole"))
        whole.communicate()
        assert whole.returncode == 0
        assert [figure["ours"] for figure in result(tmp_path / "whole", str(row))["figures"]] == [
            f["ours"] for f in ours
        ]
