"""A rank that is lost is found, and named: the judgement itself. tests/engine/test_processes.py kills real ones."""

from __future__ import annotations

import pytest

from dearli_d2.config.run_sections import Ranks
from dearli_d2.engine.watch import PHASES, RankState, judge

LIMITS = Ranks(dead_timeout=60.0, hang_timeout=600.0)
NOW = 100_000.0


def state(rank, step=7, phase="training", quiet=0.0, still=0.0, **other):
    return RankState(rank, f"n{rank}", 40 + rank, NOW - quiet, step, PHASES.index(phase), NOW - still, **other)


def test_ranks_that_work_or_are_done_are_no_loss():
    assert judge([state(0), state(1, still=599.0), state(2, still=9000.0)], NOW, LIMITS) is None
    assert judge([state(0, still=9000.0), state(1, quiet=9000.0, ended=True)], NOW, LIMITS) is None
    assert judge([state(0, still=9000.0)], NOW, LIMITS) is None  # all that another rank than the first one sees


def test_a_rank_that_ended_is_named_with_machine_time_and_step_after_a_moment():
    lost = state(1, phase="loading images", lost=NOW - 4)
    message = judge([state(0), lost], NOW, LIMITS)
    assert message.startswith("rank 1 (process 41 on n1) ended at ")
    assert message.endswith("in step 8, loading images; all ranks end, and --resume continues the run")
    assert judge([state(0), state(1, lost=NOW - 1)], NOW, LIMITS) is None  # it may be about to say why
    assert judge([state(0), state(1, lost=NOW)], NOW, LIMITS, grace=0.0)
    assert judge([state(1, lost=NOW - 4, reason="no file x")], NOW, LIMITS).endswith(", in step 8, training: no file x")


def test_a_rank_without_a_sign_of_life_is_named():
    message = judge([state(0), state(1, quiet=61.0)], NOW, LIMITS)
    assert "rank 1 (process 41 on n1) has given no sign of life since" in message
    assert "RANKS.DEAD_TIMEOUT 60 s" in message


@pytest.mark.parametrize(
    ("ranks", "who"),
    [
        ([state(0, still=700.0), state(1, phase="loading images", still=700.0)], "rank 1 (process 41 on n1) has not got on"),
        ([state(0, phase="saving", still=700.0), state(1, step=8, still=700.0)], "rank 0 (process 40 on n0) has not got on"),
        ([state(0, still=700.0), state(1, still=700.0)], "rank 0 (process 40 on n0), rank 1 (process 41 on n1) have not"),
    ],
)  # fmt: skip
def test_of_ranks_that_stand_still_the_one_behind_is_named(ranks, who):
    message = judge(ranks, NOW, LIMITS)
    assert message.startswith(who)
    assert "RANKS.HANG_TIMEOUT 600 s" in message
