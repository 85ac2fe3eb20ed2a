"""The teacher of semi-supervised training: an exponential moving average of the student (Mean Teacher; DEARLi, eq. 1)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..checkpoint import LoadReport, check_normalization, in_our_names, load_state
from ..errors import ConfigError
from ..modeling.labeler import Labeler, Labels
from ..modeling.segmenter import Segmenter
from ..structures import Targets
from ..weights import read_file, state_dict_of

logger = logging.getLogger(__name__)


class EMATeacher(Labeler):
    """A copy of the student that follows it slowly. What is frozen is shared, not copied.

    After step t = 0, 1, ... each trainable tensor becomes g * teacher + (1 - g) * student, with the g of `momentum(t)`.
    Buffers (running statistics) are copied. It is no module of the student and is not wrapped for data-parallel training:
    every rank makes the same update from the same student.

    Args:
        student: the model without its data-parallel wrapper.
        decay: g, or its upper limit where there is a ramp.
        ramp: g rises from 0, so that the first update copies the student; without it the weights that the teacher starts
            from fade slowly (DEARLi after the warm-up).
        burn_in: updates during which the teacher keeps the weights it has. The next one copies the student, and there is no
            ramp.
        start: the first step with unlabelled images (SSL.START). Until then the teacher is the student.
    """

    model: Segmenter

    def __init__(
        self, student: Segmenter, decay: float = 0.999, ramp: bool = True, burn_in: int = 0, start: int = 0
    ) -> None:
        self.decay, self.ramp, self.burn_in, self.start, self.updates = decay, ramp, burn_in, start, 0
        shared = frozen_modules(student)
        self.model = copy.deepcopy(student, {id(module): module for module in shared}).eval()
        self.model.requires_grad_(False)  # changes no shared tensor: none of them had a gradient
        common = {id(t) for module in shared for t in module.state_dict(keep_vars=True).values()}
        self._own = {name: place for name, place in _places(self.model).items() if id(_at(place)) not in common}
        self._followed: tuple[nn.Module, dict[str, _Place]] | None = None

    def own_state(self) -> dict[str, torch.Tensor]:
        """State-dict entries that the teacher does not share with the student."""
        return {name: _at(place).detach() for name, place in self._own.items()}

    def state_dict(self) -> dict[str, Any]:
        """The entry of a checkpoint: the tensors that are the teacher's alone, and the number of updates."""
        return {"model": self.own_state(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`; names must be the same."""
        own = self.own_state()
        if set(own) != set(state["model"]):
            raise KeyError(f"teacher of another model: {sorted(set(own) ^ set(state['model']))[:5]}")
        self.model.load_state_dict(state["model"], strict=False)
        self.updates = state["updates"]

    def load_weights(self, path: str | Path) -> LoadReport:
        """Start weights from a file; what is shared with the student stays the student's."""
        own, content = self.own_state(), read_file(path)
        check_normalization(self.model, content, path)
        state = {n: t for n, t in in_our_names(self.model, state_dict_of(content, path)).items() if n in own}
        return load_state(self.model, state, path, strict=False)

    def follow(self, student: Segmenter, step: int) -> None:
        """Updates the teacher after a step of the run; before the first step with unlabelled images it copies the student."""
        if step < self.start:
            self.copy(student)
        else:
            self.update(student)

    def copy(self, student: nn.Module) -> None:
        """Makes the teacher the student, without counting a step."""
        self._move(student, 0.0)

    def update(self, student: nn.Module) -> None:
        """One step towards the student, with a few multi-tensor kernels."""
        step, self.updates = self.updates, self.updates + 1
        gamma = self.momentum(step)
        if gamma < 1:
            self._move(student, gamma)

    def momentum(self, step: int) -> float:
        """Share of itself that the teacher keeps in update `step`, counted from 0."""
        if self.burn_in:
            return 1.0 if step < self.burn_in else 0.0 if step == self.burn_in else self.decay
        return min(1 - 1 / (step + 1), self.decay) if self.ramp else self.decay

    @torch.no_grad()
    def _move(self, student: nn.Module, gamma: float) -> None:
        # kept from step to step, since a walk through all modules takes the host longer
        if self._followed is None or self._followed[0] is not student:
            self._followed = student, _places(student)
        averaged: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        copied: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        theirs = self._followed[1]
        for name, place in self._own.items():
            source = _at(theirs[name])
            pairs = averaged if source.requires_grad else copied
            pairs[0].append(_at(place))
            pairs[1].append(source)
        if averaged[0]:
            torch._foreach_lerp_(*averaged, 1 - gamma)
        if copied[0]:
            torch._foreach_copy_(*copied)

    @torch.no_grad()
    def pseudo_label(self, inputs: list[dict[str, Any]]) -> list[Targets]:
        """Hard pseudo-labels on the device for weak views; see the model's `pseudo_label`."""
        return self.model.pseudo_label(inputs)

    def label(self, weak: list[dict[str, Any]]) -> Labels:
        return {"targets": self.pseudo_label(weak)}


def build_labeler(cfg: CfgNode, student: Segmenter, fresh: bool = True) -> Labeler | None:
    """The labeler of the unlabelled images of a run: the one that the student declares, else an EMA teacher.

    Args:
        student: with the weights that the run starts from.
        fresh: the teacher takes SSL.TEACHER_WEIGHTS, if there are any;
            False for a resumed run, whose checkpoint has its weights.

    Returns:
        None without unlabelled images.

    Raises:
        ConfigError: SSL.TEACHER_WEIGHTS are given, but the student needs no EMA teacher.
    """
    if not cfg.DATASETS.UNLABELED:
        return None
    declared = student.labeler(cfg)
    ssl = cfg.SSL
    if declared is not None:
        if ssl.TEACHER_WEIGHTS:
            raise ConfigError(f"{type(student).__name__} has no EMA teacher: SSL.TEACHER_WEIGHTS must be empty")
        return declared
    teacher = EMATeacher(student, ssl.EMA_DECAY, has_ramp(cfg), ssl.BURN_IN, ssl.START)
    if fresh and ssl.TEACHER_WEIGHTS:
        logger.info("the teacher starts from %s", teacher.load_weights(ssl.TEACHER_WEIGHTS))
    return teacher


_Place = tuple[dict[str, Any], str]
"""Where a module keeps a tensor: the dict of its parameters or buffers, and its name there."""


def _places(model: nn.Module) -> dict[str, _Place]:
    """The place of each tensor of a state dict. Unlike the tensors, the places stay when a model moves to another device."""
    places = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        lasting = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
        for tensors, names in ((module._parameters, list(module._parameters)), (module._buffers, lasting)):
            for name in names:
                if tensors[name] is not None:
                    places[f"{prefix}.{name}" if prefix else name] = tensors, name
    return places


def _at(place: _Place) -> torch.Tensor:
    tensors, name = place
    tensor: torch.Tensor = tensors[name]
    return tensor


def has_ramp(cfg: CfgNode) -> bool:
    """True if the decay of a config's teacher rises from 0.

    It does not after a burn-in, nor for a teacher with weights of its own, which the first update would discard.
    """
    return cfg.SSL.EMA_RAMP and not (cfg.SSL.TEACHER_WEIGHTS or cfg.SSL.BURN_IN)


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The largest modules that training cannot change.

    They have no trainable parameter, and stay in eval mode while the model trains, so that no running statistic moves.
    """
    was_training = model.training
    model.train()
    try:
        return list(_frozen_below(model))
    finally:
        model.train(was_training)


def _frozen_below(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters) and not any(m.training for m in child.modules()):
            yield child
        else:
            yield from _frozen_below(child)
