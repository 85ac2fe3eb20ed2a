"""Infinite training streams that resume at the same sample: what is drawn follows from (seed, rank, iteration) alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class PositionDataset(Dataset):
    """Endless shuffled passes over `dicts`, addressed by position.

    Position p is element p mod n of a permutation seeded by (seed, p div n); its augmentation is seeded by (seed, p).
    """

    def __init__(self, dicts: list[dict], mapper: Callable[[dict], dict], seed: int) -> None:
        self.dicts, self.mapper, self.seed = dicts, mapper, seed
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> dict:
        which, offset = divmod(position, len(self.dicts))
        if which != self._pass:
            self._pass = which
            self._order = np.random.default_rng([self.seed, which]).permutation(len(self.dicts))
        with seeded(self.seed, position):
            return self.mapper(self.dicts[self._order[offset]])


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seeds the generators that augmentations use (the global ones of numpy, Python and torch's CPU) and puts them back
    after."""
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
    dicts: list[dict],
    mapper: Callable[[dict], dict],
    batch_size: int,
    seed: int,
    start_iteration: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Iterator[list[dict]]:
    """Endless batches (lists of mapped dicts).

    Args:
        batch_size: images of this rank in a step. start_iteration: steps already done.
    """
    return iter(
        DataLoader(
            PositionDataset(dicts, mapper, seed),
            batch_sampler=_Positions(start_iteration, batch_size, rank, world_size),
            num_workers=num_workers,
            collate_fn=list,
            persistent_workers=num_workers > 0,
        )
    )
