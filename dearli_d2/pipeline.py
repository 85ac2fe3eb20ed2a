"""Work on many images in three parts: read, find, write. Reading and writing happen beside the model.

The parts are a `Work`. An engine takes them through the images:

- `run` is the engine of one process: threads read, the calling thread finds, threads write.
- Another engine, on several machines, needs `read` and `write` that can be pickled, and makes `find` where its model is.

Both take the images in the same chunks (`chunks_of`), so that a result does not depend on the engine, the number of processes
or an interruption: the last bits of a network's output depend on the images that share its batch.

    chunks = shard_of(chunks_of(tasks, 8), (0, 4))     # every fourth chunk of eight
    for outcome in run(work, chunks, done=journal_of_an_earlier_run):
        journal.append(str(outcome.key), outcome.record)

Predictions (`predict.prediction_work`) are an example.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .environment import started_by
from .errors import ConfigError, UnreadableImageError
from .reporting import is_out_of_memory

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Found = TypeVar("Found")


class Skip(str):
    """Says why an image has no result."""


def _alike(item: Any) -> Hashable:
    return None


@dataclass(frozen=True)
class Work(Generic[Key, Item, Found]):
    """The work that is done for each image.

    Args:
        read: makes the input of the model from a key, such as a path. It runs in threads.
        find: makes the results of several inputs, one at a time. It has the model.
        write: stores the result of a key, and returns its record for a journal, of JSON values. All files are complete when it
            returns. It runs in threads. If they run out of memory, it runs again alone.
        group: items that may share a batch have the same group, such as the size after padding.
    """

    read: Callable[[Key], Item]
    find: Callable[[Sequence[Item]], Sequence[Found]]
    write: Callable[[Key, Item, Found], dict[str, Any]]
    group: Callable[[Item], Hashable] = _alike


@dataclass(frozen=True)
class Outcome(Generic[Key]):
    """The end of a key: the record of `Work.write`, or why the image was skipped."""

    key: Key
    record: dict[str, Any]
    skipped: str = ""


def chunks_of(keys: Sequence[Key], size: int) -> list[Sequence[Key]]:
    """Chunks of `size` neighbours, the last one perhaps smaller. Images of one chunk may share a batch, others never do."""
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def check_shard(shard: tuple[int, int]) -> None:
    """Raises `ConfigError` for a shard that is impossible."""
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(f"--shard {index}/{count}: the shard must be one of 0..{count - 1}")


def parse_shard(text: str | None) -> tuple[int, int]:
    """This process's share of the images, (i, n).

    Args:
        text: "i/n"; None = the place among the processes that torchrun or srun started, else all images.

    Raises:
        ConfigError: an impossible shard, another one than that of torchrun or srun, or their variables are incomplete.
    """
    place = started_by(os.environ)
    if text is None:
        return (place.rank, place.world) if place else (0, 1)
    try:
        index, count = map(int, text.split("/"))
    except ValueError as error:
        raise ConfigError(f"--shard {text}: write i/n, for example 0/4") from error
    check_shard((index, count))
    if place and (place.rank, place.world) != (index, count):
        raise ConfigError(
            f"--shard {text}: {place.by} has started {place.world} processes, which share the images; leave out --shard, or "
            f"start the command without {place.by}"
        )
    return index, count


def shard_of(chunks: Sequence[Sequence[Key]], shard: tuple[int, int]) -> list[Sequence[Key]]:
    """Every n-th chunk from the i-th on, for a shard (i, n). Raises `ConfigError` for an impossible one."""
    check_shard(shard)
    index, count = shard
    return list(chunks[index::count])


def default_workers() -> int:
    """Number of threads that read, and that write, where the user says nothing."""
    return min(8, max(2, (os.cpu_count() or 2) // 2))


def reason_to_skip(key: Any, error: Exception) -> str:
    """Why an image is skipped after an error; "" if the error is none of the image."""
    if isinstance(error, UnreadableImageError):
        return str(error)
    return f"{key} needs more memory than there is" if is_out_of_memory(error) else ""


def find_each(
    work: Work[Key, Item, Found], chunk: Sequence[tuple[Key, Item]]
) -> Iterator[tuple[Key, Item, Found | Skip]]:
    """Takes the items of a chunk through the model, in a batch where their groups are equal.

    Args:
        work: has the model.
        chunk: keys with their items.

    Returns:
        Each key and item with its result, or with the reason why it is skipped. A batch that needs too much memory is tried
        again one by one.
    """
    groups: dict[Hashable, list[tuple[Key, Item]]] = {}
    for key, item in chunk:
        groups.setdefault(work.group(item), []).append((key, item))
    for group in groups.values():
        try:
            found = work.find([item for _, item in group])
        except Exception as error:
            if not reason_to_skip(group[0][0], error):
                raise
            if len(group) == 1:
                yield *group[0], Skip(reason_to_skip(group[0][0], error))
            else:
                for pair in group:
                    yield from find_each(work, [pair])
            continue
        for (key, item), result in zip(group, found, strict=True):
            yield key, item, result


def run(
    work: Work[Key, Item, Found],
    chunks: Sequence[Sequence[Key]],
    done: Container[Key] = frozenset(),
    workers: int | None = None,
) -> Iterator[Outcome[Key]]:
    """Does the work in this process.

    Two chunks are read ahead. Results wait to be written, at most two for each writing thread, so that memory does not grow with
    the number of images.

    Args:
        work: the three parts.
        chunks: keys of images that may share a batch.
        done: keys whose results are there. They are not written again. They are read if others of their chunk are not done,
            since the batch must be the same.
        workers: number of threads that read, and that write; None = `default_workers()`.

    Returns:
        Outcomes as they come, of keys that were not done. An image that cannot be read, or for which memory is too small, is
        skipped.

    Raises:
        OSError: a file cannot be written. What `read`, `find` and `write` raise otherwise.
    """
    workers = workers or default_workers()
    todo = deque(chunk for chunk in chunks if any(key not in done for key in chunk))
    reading: deque[list[tuple[Key, Future[Item]]]] = deque()
    writing: deque[tuple[tuple[Key, Item, Found], Future[dict[str, Any]]]] = deque()

    def written(limit: int) -> Iterator[Outcome[Key]]:
        while writing and (len(writing) > limit or writing[0][1].done()):
            result, future = writing.popleft()
            error = future.exception()
            if error is None or not is_out_of_memory(error):
                yield Outcome(result[0], future.result())
            else:
                wait([others for _, others in writing])
                yield _written_alone(work, *result)

    with ThreadPoolExecutor(workers, "read") as readers, ThreadPoolExecutor(workers, "write") as writers:
        try:
            while todo or reading:
                while todo and (len(reading) < 2 or sum(map(len, reading)) < workers):
                    reading.append([(key, readers.submit(work.read, key)) for key in todo.popleft()])
                chunk = []
                for key, future in reading.popleft():
                    item = _read(key, future)
                    if not isinstance(item, Skip):
                        chunk.append((key, item))
                    elif key not in done:
                        yield Outcome(key, {}, item)
                if all(key in done for key, _ in chunk):  # the others cannot be read
                    continue
                for key, item, found in find_each(work, chunk):
                    if key in done:
                        continue
                    if isinstance(found, Skip):
                        yield Outcome(key, {}, found)
                        continue
                    writing.append(((key, item, found), writers.submit(work.write, key, item, found)))
                    yield from written(2 * workers)
            yield from written(0)
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(cancel_futures=True)


def _written_alone(work: Work[Key, Item, Found], key: Key, item: Item, found: Found) -> Outcome[Key]:
    try:
        return Outcome(key, work.write(key, item, found))
    except Exception as error:
        if is_out_of_memory(error):
            return Outcome(key, {}, reason_to_skip(key, error))
        raise


def _read(key: Key, future: Future[Item]) -> Item | Skip:
    try:
        return future.result()
    except Exception as error:
        if reason := reason_to_skip(key, error):
            return Skip(reason)
        raise
