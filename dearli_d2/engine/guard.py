"""The guard against bad steps: losses or gradients that are not finite never reach the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from ..errors import TrainingError
from ..modeling.ranks import mean_over_ranks

logger = logging.getLogger(__name__)


class BadStepGuard:
    """Decides, for all ranks alike, whether the optimiser may make a step.

    A step is bad if a loss of any rank is not finite. A norm of the gradients that is not finite makes a step bad too, except
    under loss scaling, where such norms are ordinary and the scaler itself skips the step.

    Args:
        limit: number of bad steps in a row that training survives (SOLVER.MAX_BAD_STEPS).
        scaler: of the losses. A bad step lowers its scale.
        save: called on the main process before training stops. It takes the number of steps that are done, saves the state
            of the run and returns the path.

    Attributes:
        bad_steps: number of bad steps in a row up to now.
    """

    def __init__(self, limit: int, scaler: torch.amp.GradScaler, save: Callable[[int], Path]) -> None:
        self.limit, self.scaler, self.save = limit, scaler, save
        self.bad_steps = 0

    def step(
        self, iteration: int, names: Sequence[str], losses: torch.Tensor, norm: torch.Tensor, files: Sequence[str]
    ) -> dict[str, float] | None:
        """Judges a step after its backward pass. Here the process waits for the device, once a step.

        Args:
            iteration: number of the step, counted from 0.
            names, losses: names and (N,) values of the losses of this rank.
            norm: scalar, of the gradients, the same on all ranks.
            files: of the samples of this rank.

        Returns:
            The losses, their sum as "total_loss" and the norm as "grad_norm", means over the ranks; None if the step is bad
            and has to be skipped.

        Raises:
            TrainingError: more than `limit` steps in a row are bad, with the losses and the files of the last one.
        """
        values = torch.cat([losses, norm.float().view(1)])
        own, joint = torch.stack([values, mean_over_ranks(values)]).cpu().tolist()
        means, mean_norm = dict(zip(names, joint[:-1], strict=True)), joint[-1]
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if not bad and (self.scaler.is_enabled() or math.isfinite(mean_norm)):
            self.bad_steps = 0
            return {"total_loss": sum(means.values()), "grad_norm": mean_norm, **means}
        suspects = comm.all_gather([] if all(map(math.isfinite, own[:-1])) else list(files))
        what = f"losses not finite: {', '.join(bad)}" if bad else f"gradient norm is {mean_norm}"
        self._skip(iteration, what, [file for part in suspects for file in part] or files)
        return None

    def _skip(self, iteration: int, what: str, files: Sequence[str]) -> None:
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        self.bad_steps += 1
        message = f"iteration {iteration}: {what}; files: {', '.join(files)}"
        logger.warning("step skipped (%d in a row). %s", self.bad_steps, message)
        if self.bad_steps > self.limit:
            path = self.save(iteration) if comm.is_main_process() else "bad_step.pth"
            raise TrainingError(
                f"{self.bad_steps} steps in a row could not be used. {message}. The state is in {path}; "
                "a lower SOLVER.BASE_LR or SOLVER.AMP.ENABLED False usually helps"
            )

    def state_dict(self) -> dict[str, Any]:
        """The entry of a checkpoint."""
        return {"bad_steps": self.bad_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()` from the content of a checkpoint; early versions did not save it."""
        self.bad_steps = state.get("bad_steps", 0)
