"""`make demo`: the ladder's bookkeeping; its effect is slow-marked (tests/test_learning.py)."""

from __future__ import annotations

import json

import pytest

from dearli_d2 import demo
from dearli_d2.demo import RUNGS, table

FEW = (
    "MODEL.DEVICE", "cpu", "INPUT.CROP_SIZE", "64", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64", "SSL.MONITOR_IMAGES", "2",
    "MODEL.TEXT.TEMPLATES", "name", "SSL.IMS_PER_BATCH", "2", "SOLVER.IMS_PER_BATCH", "2")  # fmt: skip


def test_table_of_several_seeds_shows_each_step_with_its_error():
    scores = [[dict.fromkeys(demo.METRICS, 10.0 * i + seed) for i in range(len(RUNGS))] for seed in (0, 2)]
    rows = table(scores).splitlines()[2:]
    assert len(rows) == len(RUNGS)
    assert "1.0 ± 1.4" in rows[0]
    assert "+10.0 ± 0.0" in rows[1]
    assert "+20.0 ± 0.0" in rows[2]  # SSL against labels only, not against ensembling at inference
    assert "+10.0 ± 0.0" in rows[3]
    assert "±" not in table(scores[:1])


def test_the_ladder_trains_every_rung_scores_it_and_resumes(tmp_path, monkeypatch):
    original = demo.get_config
    monkeypatch.setattr(demo, "get_config", lambda path, options: original(path, [*options, *FEW]))
    monkeypatch.setattr(demo, "SCORED_ON", "miniworld_val@0.03")
    monkeypatch.setattr(demo, "SCENES", 60)
    text = demo.run(tmp_path, seeds=1, iterations=5, warmup=2)
    assert all(rung.name.strip() in text for rung in RUNGS)
    assert demo.ONE_SEED in text
    log = (tmp_path / "seed_0" / "dearli" / "log.txt").read_text()
    assert "carried over: " in log
    for name in ("ssl", "dear"):  # from the labels-only run on
        assert "Starting training from iteration 3" in (tmp_path / "seed_0" / name / "log.txt").read_text()
    report = (tmp_path / "report.md").read_text()
    assert text in report
    pictures = [line.partition("](")[2].rstrip(")") for line in report.splitlines() if line.startswith("![")]
    assert len(pictures) > 3
    assert all((tmp_path / p).is_file() for p in pictures)
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [len(s) for s in scores] == [len(RUNGS)]
    # a second call finds everything done
    monkeypatch.setattr(demo, "DualStreamTrainer", lambda *a, **k: pytest.fail("trained again"))
    assert demo.run(tmp_path, seeds=1, iterations=5, warmup=2) == text
