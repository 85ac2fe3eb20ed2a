"""What a checkpoint of a run holds: a collection of objects, and facts about the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

# parts that no run can go on without; others may be missing in a file, or empty
NEEDED = ("optimizer", "scheduler", "scaler")


class Stateful(Protocol):
    """An object whose state is part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers, texts and containers of them."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Restores `state_dict()`."""


class RunState:
    """The content of the checkpoints of a run.

    Args:
        student: the model that is trained, under "model".
        parts: objects under keys of their own. Those of `NEEDED` are always in a checkpoint; another one is left out where
            its state is empty.
        records: objects whose entries lie at the top level of the file.
        facts: entries that do not change in a run and that describe it: config, classes, images.
    """

    def __init__(
        self,
        student: nn.Module,
        parts: Mapping[str, Stateful],
        records: Sequence[Stateful],
        facts: Mapping[str, Any],
    ) -> None:
        self.student, self.parts, self.records, self.facts = student, parts, records, facts

    def at(self, done: int) -> dict[str, Any]:
        """The content of a checkpoint after `done` steps: all that a resumed run needs, and what prediction needs."""
        content: dict[str, Any] = {"model": self.student.state_dict(), "iteration": done}
        for name, part in self.parts.items():
            state = part.state_dict()
            if state or name in NEEDED:
                content[name] = state
        for record in self.records:
            content |= record.state_dict()
        return content | dict(self.facts)

    def restore(self, content: dict[str, Any]) -> None:
        """Restores all but the weights of the student. They come first of all, since teacher and optimiser are made of them.

        Args:
            content: of a checkpoint, as `at` gives it. A part that is not in it stays as it is.
        """
        for name, part in self.parts.items():
            if name in content:
                part.load_state_dict(content[name])
        for record in self.records:
            record.load_state_dict(content)
