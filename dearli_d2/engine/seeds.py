"""The random numbers of a step."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.utils import comm


def seed_step(seed: int, step: int, part: int) -> np.random.Generator:
    """Seeds torch for a part of a step, from nothing but the arguments and the rank, so that a resumed run repeats the step.

    Args:
        seed: of the run (SEED).
        step: counted from 0.
        part: of an accumulated step, counted from 0.

    Returns:
        A generator with the same seed, for what numpy draws.
    """
    seeds = np.random.SeedSequence([seed, comm.get_rank(), step, part])
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    return np.random.default_rng(seeds)
