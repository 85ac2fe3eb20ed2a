"""Infinite training streams that resume at the same sample: (seed, rank, iteration) alone determine each draw."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DatasetError, UnreadableImageError
from .batches import PackedBatch
from .catalog import class_areas

logger = logging.getLogger(__name__)

_DAMAGED_IN_A_ROW = 10  # drawn at random: most files, as of a folder that went away


class ShuffledOrder:
    """Endless shuffled passes over n = `count` images.

    Position p is element p mod n of a permutation seeded by (seed, p div n).
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, position: int) -> int:
        """The image at a position."""
        which, offset = divmod(position, self.count)
        if which != self._pass:
            self._pass = which
            self._order = np.random.default_rng([self.seed, which]).permutation(self.count)
        return int(self._order[offset])


class RareClassOrder:
    """Rare-class sampling (DAFormer, Sec. 3.3): draws a class, then an image that shows it.

    Position p, seeded by (seed, p), draws a class with probability softmax((1 - f) / T). f is the class's share of all
    annotated pixels. Rare classes come more often, and the more so the smaller T is.

    Args:
        dicts: with "area" of segments.
        num_classes: K.
        temperature: T.
        area: the least share of an image that a class must cover for the image to count.
        seed: of all draws.

    Raises:
        DatasetError: annotations without areas, or no image that counts for any class.
    """

    def __init__(self, dicts: Sequence[dict], num_classes: int, temperature: float, area: float, seed: int) -> None:
        self.seed = seed
        sizes = np.array([[d["height"] * d["width"]] for d in dicts])
        areas = class_areas(dicts, num_classes, "DATALOADER.RARE_CLASS_SAMPLING")
        shares = areas / sizes
        members = [np.nonzero(column >= area)[0] if area else np.nonzero(column)[0] for column in shares.T]
        self.classes = [c for c, images in enumerate(members) if len(images)]
        if not self.classes:
            raise DatasetError(f"DATALOADER.RARE_CLASS_AREA {area}: no class covers as much of any image")
        self.images = [members[c] for c in self.classes]
        frequency = areas.sum(0)[self.classes] / areas.sum()
        # the same softmax from the rarest class on: no power is too large
        weight = np.exp((frequency.min() - frequency) / temperature)
        self.probability = weight / weight.sum()

    def __call__(self, position: int) -> int:
        """The image at a position."""
        rng = np.random.default_rng([self.seed, position])
        return int(rng.choice(self.images[rng.choice(len(self.classes), p=self.probability)]))


class PositionDataset(Dataset):
    """Images addressed by position in an endless order; the augmentation of position p is seeded by (seed, p).

    Args:
        dicts: of the data set.
        mapper: turns a dict into a sample.
        seed: of the order and of the augmentations.
        order: the image at a position; None = `ShuffledOrder`.
        replace_damaged: where an image cannot be read, another one, drawn by (seed, p), takes its place, and the log names it
            once. If False the `UnreadableImageError` is raised. Other errors are always raised.
    """

    def __init__(
        self,
        dicts: Sequence[dict],
        mapper: Callable[[dict], dict],
        seed: int,
        order: Callable[[int], int] | None = None,
        replace_damaged: bool = False,
    ) -> None:
        self.dicts, self.mapper, self.seed = dicts, mapper, seed
        self.order = order or ShuffledOrder(len(dicts), seed)
        self.replace_damaged = replace_damaged
        self._named: set[str] = set()

    def __getitem__(self, position: int) -> dict:
        index, substitutes = self.order(position), np.random.default_rng([self.seed, position])
        for _ in range(_DAMAGED_IN_A_ROW):
            chosen = self.dicts[index]
            try:
                with seeded(self.seed, position):
                    return self.mapper(chosen)
            except UnreadableImageError as error:
                if not self.replace_damaged:
                    raise
                last = error
                self._name(chosen["file_name"], error)
                index = int(substitutes.integers(len(self.dicts)))
        raise DatasetError(f"{_DAMAGED_IN_A_ROW} images in a row cannot be read, the last: {last}") from last

    def _name(self, file_name: str, error: UnreadableImageError) -> None:
        if file_name not in self._named:
            self._named.add(file_name)
            logger.warning("left out, another image takes its place: %s", error)


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seeds the global generators of numpy, Python and torch's CPU, and restores their states at the end.

    Augmentations draw from these generators.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    state = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.default_generator.manual_seed(int(state[2]))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class _Positions:
    """Endless batches of positions of one rank, from an iteration on."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.batch_size, self.rank, self.world_size = start, batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        first = (self.start * self.world_size + self.rank) * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world_size * self.batch_size


def build_stream(
    dicts: Sequence[dict],
    mapper: Callable[[dict], dict],
    batch_size: int,
    seed: int,
    start_iteration: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    order: Callable[[int], int] | None = None,
    replace_damaged: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[list[dict]]:
    """Endless batches: lists of mapped dicts, `unpacked` on the device.

    Args:
        dicts, mapper, seed, order, replace_damaged: see `PositionDataset`.
        batch_size: number of images of this rank in a step.
        start_iteration: number of steps already done.
        rank, world_size: of this process.
        num_workers: number of loader processes.
        device: of the tensors.
    """
    device = torch.device(device)
    loader = DataLoader(
        PositionDataset(dicts, mapper, seed, order, replace_damaged),
        batch_sampler=_Positions(start_iteration, batch_size, rank, world_size),
        num_workers=num_workers,
        collate_fn=PackedBatch,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_one_thread,
    )
    with shared_heap():
        batches = iter(loader)
    return (batch.samples(device) for batch in batches)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # else each worker takes all cores; torch sets its own threads


@contextmanager
def shared_heap() -> Iterator[None]:
    """Worker processes that are forked here leave the objects of this process alone, so that the memory stays shared.

    Their garbage collector would write to every one of them.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
