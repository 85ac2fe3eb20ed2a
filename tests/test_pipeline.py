"""Read, find, write: order, batches, memory, and what ends a run."""

from __future__ import annotations

import threading
import time

import pytest

from dearli_d2.errors import ConfigError, UnreadableImageError
from dearli_d2.journal import Journal, entries
from dearli_d2.pipeline import Work, chunks_of, run, shard_of


def work_of(batches, find=None, write=lambda key, item, found: {"found": found}, read=lambda key: key):
    """Squares numbers; even and odd ones do not share a batch."""

    def squares(items):
        batches.append(list(items))
        return [item**2 for item in items]

    return Work(read, find or squares, write, group=lambda item: item % 2)


def test_batches_do_not_depend_on_shards_or_on_what_is_done():
    whole, chunks = [], chunks_of(range(23), 8)
    outcomes = list(run(work_of(whole), chunks))
    assert {o.key: o.record["found"] for o in outcomes} == {key: key**2 for key in range(23)}
    assert whole[0] == [0, 2, 4, 6]
    shards = []
    for index in range(3):
        list(run(work_of(shards), shard_of(chunks, (index, 3))))
    assert sorted(shards) == sorted(whole)
    rest = []
    outcomes = list(run(work_of(rest), chunks, done=set(range(3, 12)) | set(range(16, 23))))
    assert sorted(o.key for o in outcomes) == [0, 1, 2, 12, 13, 14, 15]  # none is written twice
    assert all(batch in whole for batch in rest)
    with pytest.raises(ConfigError, match="must be one of 0..1"):
        shard_of(chunks, (2, 2))


def test_slow_writing_holds_the_model_back():
    lock, inside, most = threading.Lock(), [0], [0]

    def change(by):
        with lock:
            inside[0] += by
            most[0] = max(most[0], inside[0])

    def read(key):
        change(1)
        return key

    def write(key, item, found):
        time.sleep(0.002)
        change(-1)
        return {}

    assert len(list(run(work_of([], write=write, read=read), chunks_of(range(200), 2), workers=2))) == 200
    assert most[0] <= 16  # images in memory: read ahead, in the model, waiting and being written


def test_a_batch_that_needs_too_much_memory_is_tried_one_by_one():
    def greedy(items):
        if len(items) > 1 or items[0] == 3:
            raise MemoryError
        return items

    outcomes = {o.key: o.skipped for o in run(work_of([], find=greedy), chunks_of(range(6), 6))}
    assert {key for key, reason in outcomes.items() if reason} == {3}
    assert outcomes[3] == "3 needs more memory than there is"


def test_results_that_need_too_much_memory_together_are_written_one_by_one():
    lock, inside = threading.Lock(), []

    def write(key, item, found):
        with lock:
            inside.append(key)
            together = len(inside)
        time.sleep(0.002)
        with lock:
            inside.remove(key)
        if together > 1 or key == 3:
            raise MemoryError
        return {"found": found}

    outcomes = list(run(work_of([], write=write), chunks_of(range(12), 1), workers=4))
    assert [o.key for o in outcomes] == list(range(12))
    assert {o.key: o.skipped for o in outcomes if o.skipped} == {3: "3 needs more memory than there is"}
    assert all(o.record == {"found": o.key**2} for o in outcomes if not o.skipped)


def test_an_image_that_cannot_be_read_is_skipped_and_other_errors_end_the_run():
    def read(key):
        if key == 2:
            raise UnreadableImageError("2 is empty")
        return key

    assert [o.skipped for o in run(work_of([], read=read), chunks_of(range(4), 1)) if o.skipped] == ["2 is empty"]
    for part in ("read", "write"):
        with pytest.raises(ZeroDivisionError):
            list(run(work_of([], **{part: lambda *_: 1 / 0}), chunks_of(range(4), 1)))


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    with Journal(path) as journal:
        journal.append("ü", {"x": 1})
        journal.append("b", {"x": 2})
    whole = path.read_bytes()
    for cut in (1, 5, 20):
        path.write_bytes(whole[:-cut])
        with Journal(path) as journal:
            assert [key for key, *_ in entries(path)] == ["ü"]
            journal.append("b", {"x": 2})
        assert path.read_bytes() == whole
