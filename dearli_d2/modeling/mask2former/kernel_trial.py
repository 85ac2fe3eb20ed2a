"""Tries a Triton kernel once before a model depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def kernel_runs(name: str, device: torch.device, trial: Callable[[], object], instead: str) -> bool:
    """True if a kernel can be built and run on a device. Logs a warning where it cannot.

    A trial must draw no random numbers: it happens in the first step of a run, and a resumed run has another first step.

    Args:
        name: of the kernel, for the warning.
        device: to run it on.
        trial: runs the kernel. It raises an error if the result is wrong.
        instead: what happens without the kernel, for the warning.
    """
    try:
        trial()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:
        logger.warning(
            "The Triton kernel of %s does not run on %s (%s: %s). %s Triton needs a C compiler (for example Debian's package "
            "gcc) and a GPU from 2017 on.",
            name,
            device,
            type(error).__name__,
            str(error).strip().splitlines()[-1:] or "",
            instead,
        )
        return False
    return True
