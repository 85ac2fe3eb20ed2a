"""Studies: many trainings in processes of their own, one table."""

from __future__ import annotations

import json
import sys

from benchmarks import study

ROWS = (study.Row("first", "a", ""), study.Row("second", "b", ""), study.Row("first again", "c", "", weights_of="a"))
METRICS = (study.Metric("mIoU", study.semantic("mIoU")),)
# trains: writes results, unless it is row b of seed 1; row c reads what row a wrote
SCRIPT = """
import json, pathlib, sys
out, row, seed, score = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
if (row, seed) == ("b", "1"):
    sys.exit("no memory")
folder = out / row / f"seed_{seed}"
if row == "c":
    score += json.loads((out / "a" / f"seed_{seed}" / "evaluation/data/results.json").read_text())["results"]["semantic"]["mIoU"]
(folder / "evaluation/data").mkdir(parents=True)
(folder / "model_final.pth").touch()
(folder / "evaluation/data/results.json").write_text(json.dumps({"results": {"semantic": {"mIoU": score}}}))
"""


def test_failed_trainings_stop_no_other_and_finished_ones_are_kept(tmp_path, capsys):
    jobs, started = [(row, seed) for seed in range(2) for row in ROWS], []

    def command(index):
        row, seed = jobs[index]
        started.append((row.folder, seed))
        return [sys.executable, "-c", SCRIPT, str(tmp_path), row.folder, str(seed), str(10 * seed + 1)]

    study.train_apart(jobs, 3, tmp_path, "data", command)
    assert sorted(started) == [(row, seed) for row in "abc" for seed in range(2)]
    assert {row for row, _ in started[-2:]} == {"c"}  # when what it needs is there
    assert "b, seed 1: FAILED with code 1, see" in capsys.readouterr().out
    assert (tmp_path / "logs" / "b_1.txt").read_text() == "no memory\n"
    results = [[study.results_of(row, seed, tmp_path, "data") for seed in range(2)] for row in ROWS]
    lines = study.table(ROWS, METRICS, results).splitlines()
    assert "6.0 ± 7.1" in lines[2]
    assert "1.0 –" in lines[3]
    assert "2.0 22.0" in lines[4]
    started.clear()
    study.train_apart(jobs, 1, tmp_path, "data", command)
    assert started == [("b", 1)]


def test_a_row_without_results_is_named_in_the_table():
    result = {"semantic": {"mIoU": 50.0}}
    lines = study.table(ROWS[:2], METRICS, [[None, None], [result, json.loads(json.dumps(result))]]).splitlines()
    assert "no results" in lines[2]
    assert "50.0 ± 0.0" in lines[3]
