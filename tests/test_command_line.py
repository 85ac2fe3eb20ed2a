"""The command `dearli` itself: quick help, completion, unknown words, KEY VALUE pairs, and the other doors to the same code."""

from __future__ import annotations

import logging
import os
import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dearli_d2 import runs
from dearli_d2.cli import base, dearli, main
from dearli_d2.cli.base import Group, Overrides, first_sentence
from dearli_d2.cli.predict import split_at_first_key
from dearli_d2.cli.train import train_net
from dearli_d2.methods.base import Method
from tests.conftest import MINI_OVERRIDES, REPO

CONFIG = str(REPO / "configs" / "miniworld" / "m2f_lang.yaml")


def leaves(group: click.Group = dearli, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """All commands that do something, by their words; scripts of `dearli prepare` by their group alone."""
    found = {}
    for name, command in group.commands.items():
        words = (*path, name)
        found |= leaves(command, words) if isinstance(command, click.Group) and command.commands else {words: command}
    return found


COMMANDS = leaves()


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m dearli_d2` in a process of its own."""
    command = [sys.executable, "-m", "dearli_d2", *arguments]
    return subprocess.run(
        command, cwd=REPO, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


# ---------------------------------------------------------------------------------------------- help


def test_help_and_completion_come_without_torch():
    words = [["--help"], *([*path, "--help"] for path in COMMANDS), ["completion", "bash"]]
    code = f"""
import sys
from dearli_d2.cli.base import run
from dearli_d2.cli import dearli
for words in {words}:
    assert run(dearli, words, "dearli") == 0, words
    heavy = {{"torch", "numpy", "detectron2"}} & {{name.partition(".")[0] for name in sys.modules}}
    assert not heavy or words == ["completion", "bash"], (words, heavy)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_help_takes_well_under_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shell("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.8


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_tells_what_each_option_means_and_shows_an_example(path):
    result = CliRunner().invoke(dearli, [*path, "--help"])
    assert result.exit_code == 0
    if path != ("completion",):
        assert re.search(rf"^    dearli {' '.join(path)}\b", result.output, re.MULTILINE), result.output
    options = [p for p in COMMANDS[path].params if isinstance(p, click.Option)]
    assert [p.name for p in options if not p.help and not p.hidden] == []
    assert ("KEY VALUE: " in result.output) == any(isinstance(p, Overrides) for p in COMMANDS[path].params)


def test_the_list_of_commands_shows_whole_sentences():
    result = CliRunner().invoke(dearli, ["--help"], terminal_width=200)
    for command in dearli.commands.values():
        line = f"  {command.name} .* {re.escape(first_sentence(command.help))}$"
        assert re.search(line, result.output, re.MULTILINE), result.output


# ---------------------------------------------------------------------------------------------- words that do not exist


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trian", "there is no command 'trian'; did you mean 'train'? (dearli --help explains it)"),
        ("checkpoint verfy", "there is no command 'verfy'; did you mean 'verify'? (dearli checkpoint --help explains it)"),
        ("prepare coco_stuf", "there is no command 'coco_stuf'; did you mean 'coco_stuff'?"),
        ("xyzzy", "there is no command 'xyzzy' (dearli --help explains it)"),
        ("train", "--config-file is missing (dearli train --help explains it)"),
        ("train --config-file a.yaml SEED 3 --resmue", "No such option.*--resmue.*--resume"),
        ("train --config-file a.yaml --num-gpus two", "Invalid value for '--num-gpus': 'two' is not a valid integer"),
        ("predict --opts SEED 3 a.jpg --config-file a.yaml --out o", "No such option.*--opts"),
        ("masks generate --out o", "give --dataset or --images (dearli masks generate --help explains it)"),
        ("masks view --masks m --out o --dataset a --images b", "give --dataset or --images, not both"),
        ("plan --config-file a.yaml --picture a.txt", "a.txt is no name of a picture"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_one_line_that_names_the_right_one(words, line, capsys):
    assert main(words.split()) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert re.search(line if ".*" in line else re.escape(line), output.err), output.err
    assert output.err.startswith("error: ")


def test_an_option_is_not_empty_but_a_value_of_the_config_may_be(monkeypatch, capsys):
    """As in `--weights "$(dearli weights path NAME)"` where there is no such file."""
    words = ["eval", "--config-file", CONFIG, "MODEL.WEIGHTS", ""]
    assert parsed(words, monkeypatch)["overrides"] == ("MODEL.WEIGHTS", "")
    assert main([*words[:3], "--weights", ""]) == 2
    assert capsys.readouterr().err == "error: --weights is empty (dearli eval --help explains it)\n"


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_wrong_words_that_a_command_finds_are_no_fault_of_the_program_though_a_log_is_open(tmp_path, capsys):
    log = logging.FileHandler(tmp_path / "log.txt")
    logging.getLogger("dearli_d2").addHandler(log)
    try:
        assert main(["suggest", str(tmp_path), "--labeled", "--by", "random"]) == 2
    finally:
        logging.getLogger("dearli_d2").removeHandler(log)
        log.close()
    assert "--labeled takes no --images" in capsys.readouterr().err
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def test_ctrl_c_is_a_line_and_a_status(monkeypatch, capsys):
    monkeypatch.setattr(base.Command, "invoke", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["env"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


def test_a_reader_that_ends_early_is_no_error():
    """As in `dearli keys | head -1`."""
    words = [sys.executable, "-m", "dearli_d2", "keys"]
    with subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 141)


# ---------------------------------------------------------------------------------------------- KEY VALUE


NEEDED = {
    "predict": ("a.jpg", "--out", "o"), "regions": ("--out", "o"), "verify": ("--weights", "w.pth"),
    "pseudo-label": ("output/run",), "suggest": ("output/run",), "serve": ("output/run",),
    "video": ("a.mp4", "--out", "o"), "export": ("--out", "o.onnx"), "zero-shot": ("--out", "o"), "run": ("miniworld/hvl",),
}  # fmt: skip
WITH_OVERRIDES = {path: c for path, c in COMMANDS.items() if any(isinstance(p, Overrides) for p in c.params)}


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict:
    """The parameters of a command line, which is not run."""
    seen = []
    monkeypatch.setattr(base.Command, "invoke", lambda self, ctx: seen.append(ctx.params))
    assert main(words) == 0
    return seen[0]


@pytest.mark.parametrize("path", WITH_OVERRIDES, ids=" ".join)
def test_pairs_stand_at_the_end_or_between_options_and_values_may_begin_with_a_dash(path, monkeypatch):
    needed = NEEDED.get(path[-1], ())
    config = ["--config-file", CONFIG] if "config_file" in {p.name for p in COMMANDS[path].params} else []
    pairs = ["MODEL.BACKBONE.TRAINABLE_BLOCKS", "-1", "SOLVER.BASE_LR", "1e-3", "DATASETS.TEST", "()"]
    end = parsed([*path, *config, *needed, *pairs], monkeypatch)
    between = parsed([*path, *needed, *pairs, *config], monkeypatch)
    assert end == between
    assert list(end.get("overrides") or split_at_first_key(end["words"])[1]) == pairs


def test_every_command_that_reads_a_config_takes_pairs():
    reading = {
        path for path, c in COMMANDS.items() if any(p.name in ("config_file", "run", "row_to_run") for p in c.params)
    }
    assert reading == set(WITH_OVERRIDES)
    assert len(reading) > 5


def test_what_is_a_file_is_an_image_and_what_begins_as_a_key_is_a_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("TEST").mkdir()
    words = ("IMG_01.JPG", "TEST", "day/b.png", "TEST.AMP", "True", "SEED", "3")
    assert split_at_first_key(words) == (["IMG_01.JPG", "TEST", "day/b.png"], ["TEST.AMP", "True", "SEED", "3"])
    assert split_at_first_key(("a.jpg",)) == (["a.jpg"], [])


# ---------------------------------------------------------------------------------------------- other doors


@pytest.fixture
def started(monkeypatch):
    """What a command starts, without starting it: job, config as text, processes."""
    seen = []

    def note(job, cfg, processes):
        partly = (job.func, job.keywords) if isinstance(job, partial) else job
        seen.append((partly, cfg.dump(), processes))
        return 0

    monkeypatch.setattr(runs, "start", note)
    return seen


@pytest.mark.parametrize(
    ("command", "options", "old"),
    [
        ("train", (), ()),
        ("train", ("--resume",), ("--resume",)),
        ("train", ("--num-gpus", "2", "--num-machines", "2", "--machine-rank", "1", "--dist-url", "tcp://10.0.0.1:29500"), ()),
        ("eval", (), ("--eval-only",)),
    ],
)  # fmt: skip
def test_train_net_starts_what_dearli_starts(started, command, options, old):
    rest = ("--config-file", CONFIG, *MINI_OVERRIDES, "MODEL.WEIGHTS", "a.pth")
    assert main([command, *options, *rest]) == 0
    assert base.run(train_net, [*(old or options), *rest], "train_net.py") == 0
    first, second = started
    assert first == second
    assert first[0] == ((runs.train, {"resume": "--resume" in options}) if command == "train" else runs.evaluate)


def test_weights_of_eval_are_model_weights(started):
    rest = ("--config-file", CONFIG, *MINI_OVERRIDES)
    assert main(["eval", "--weights", "a.pth", *rest]) == main(["eval", *rest, "MODEL.WEIGHTS", "a.pth"]) == 0
    assert started[0] == started[1]


@pytest.mark.parametrize("words", ["env", "predict", "masks generate", "masks view", "checkpoint verify"])
def test_the_first_names_of_public_commands_still_work(words):
    first, *rest = words.split()
    command = [sys.executable, "-W", "ignore", "-m", f"dearli_d2.{first}", *rest, "--help"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    same = CliRunner().invoke(dearli, [*words.split(), "--help"], prog_name="dearli").output
    assert result.stdout.split() == same.split()  # terminals differ in width


def test_a_script_of_datasets_is_the_command_of_its_name():
    outputs = []
    for start in (["datasets/prepare_coco.py"], ["-m", "dearli_d2", "prepare", "coco"]):
        result = subprocess.run(
            [sys.executable, "-W", "ignore", *start, "--help"], cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout.partition("\n")[2])
    assert outputs[0] == outputs[1]
    assert "train2017.zip" in outputs[0]


def test_splits_are_named_with_or_without_the_word_of_the_first_version(monkeypatch):
    new = parsed(["prepare", "coco_stuff", "val", "--workers", "2"], monkeypatch)
    assert parsed(["prepare", "coco_stuff", "--workers", "2", "--splits", "val"], monkeypatch) == new
    assert new == {"splits": ("val",), "workers": 2, "incomplete": False}
    assert parsed(["prepare", "coco"], monkeypatch)["splits"] == ("train", "val")


def test_every_script_is_a_command_with_its_own_first_sentence():
    output = CliRunner().invoke(dearli, ["prepare", "--help"], terminal_width=200).output
    for path in (REPO / "datasets").glob("prepare_*.py"):
        sentence = re.match(r'#!.*\n"""([^.:\n]+)', path.read_text())[1]
        assert re.search(rf"^  {path.stem.removeprefix('prepare_')} +{re.escape(sentence)}", output, re.MULTILINE)


# ---------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("dearli pre", {"predict", "prepare"}),
        ("dearli prepare coco", {"coco", "coco_objects", "coco_stuff"}),
        ("dearli train --num", {"--num-gpus", "--num-machines"}),
        ("dearli masks generate --generator ", {"sam", "classical", "sa1b"}),
        ("dearli train --config-file a.yaml SOLVER.MAX_", {"SOLVER.MAX_ITER", "SOLVER.MAX_BAD_STEPS"}),
        ("dearli plan SEED 3 TEST.WEIGHTS ", {"student", "teacher", "both"}),
        ("dearli eval TEST.AMP ", {"True", "False"}),
        ("dearli predict photo.jpg TEST.WEIGHTS t", {"teacher"}),
    ],
)
def test_the_tab_key_completes_in_bash(tmp_path, typed, expected):
    program = tmp_path / "dearli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dearli_d2 "$@"\n')
    program.chmod(0o755)
    words = typed.split(" ")
    script = f"""
eval "$(dearli completion bash)"
COMP_WORDS=({" ".join(w or "''" for w in words)})
COMP_CWORD={len(words) - 1}
_dearli_completion dearli "{words[-1]}" "{words[-2]}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPO)}
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert set(result.stdout.split()) == expected, result.stderr


@pytest.mark.parametrize("kind", ["zsh", "fish"])
def test_other_shells_have_a_script(kind):
    result = shell("completion", kind)
    assert result.returncode == 0
    assert "_DEARLI_COMPLETE" in result.stdout


def test_without_a_checkout_the_configs_of_the_package_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = {"COMP_WORDS": "dearli train --config-file configs/miniworld/m2f", "COMP_CWORD": "3"}
    result = CliRunner().invoke(dearli, env={**variables, "_DEARLI_COMPLETE": "bash_complete"}, prog_name="dearli")
    assert "plain,configs/miniworld/m2f_lang.yaml" in result.output.splitlines()


# ---------------------------------------------------------------------------------------------- commands of methods


class Mine(Method):
    """A method with a command and a part to export."""

    architecture = "Mine"

    def segmenter(self) -> type:
        raise AssertionError("no command asks for the model")

    def add_commands(self, dearli: Group) -> None:
        dearli.add_command(base.command("mine")(lambda: None))
        dearli.group_of("checkpoint").add_command(base.command("split")(lambda: None))


def test_a_method_brings_its_commands():
    group = Group("dearli")
    group.add_command(Group("checkpoint"))
    Mine().add_commands(group)
    assert list(group.commands) == ["checkpoint", "mine"]
    assert list(group.group_of("checkpoint").commands) == ["split"]


def test_the_core_names_no_method():
    names = {"regions", "junior", "SegKC", "SplitMatching", "Split Matching", "SemiDAViL", "HVL"}
    text = "".join(path.read_text() for path in (REPO / "dearli_d2" / "cli").glob("*.py"))
    assert [name for name in sorted(names) if name in text] == []
