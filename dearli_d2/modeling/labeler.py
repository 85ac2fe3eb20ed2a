"""Who makes the pseudo-labels of unlabelled images: the one seam between the trainer and its methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..structures import Targets

if TYPE_CHECKING:
    from .segmenter import Segmenter

Labels = dict[str, list[Targets]]


class Labeler(ABC):
    """Makes the pseudo-labels of unlabelled images.

    `EMATeacher` is one, `SelfLabeler` is the other. The trainer asks a labeler for labels before the student's losses and
    lets it follow the student after each optimiser step.

    The regions of Split Matching do not come from here. They lie in the unannotated pixels of labelled images and have an
    embedding instead of a class, so that they are neither `Targets` nor part of the unlabelled stream; the model matches
    queries with them in its own losses.

    Attributes:
        model: the network that can be evaluated beside the student (TEST.WEIGHTS teacher); None if there is none.
    """

    model: Segmenter | None = None

    @abstractmethod
    def label(self, weak: list[dict[str, Any]]) -> Labels:
        """Labels the weak views of unlabelled images.

        Args:
            weak: "image" (3, H, W) 0..255, all of one size, optionally "inside" (H, W) bool, False = padding, and what the
                data set says of the image.

        Returns:
            For each name that the labels have in a training sample one `Targets` an image, on the student's device.
            "targets" is always there. A method with several networks has further names.
        """

    @abstractmethod
    def follow(self, student: Segmenter, step: int) -> None:
        """Called after each step of the optimiser.

        Args:
            student: the model without its data-parallel wrapper.
            step: of the run, counted from 0.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The entry "teacher" of a checkpoint; {} if there is none."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""


class SelfLabeler(Labeler):
    """The student labels its own unlabelled images, so nothing has to follow it and nothing is saved.

    Args:
        label: as `Labeler.label`, without a gradient.
    """

    def __init__(self, label: Callable[[list[dict[str, Any]]], Labels]) -> None:
        self._label = label

    def label(self, weak: list[dict[str, Any]]) -> Labels:
        """See `Labeler.label`."""
        return self._label(weak)

    def follow(self, student: Segmenter, step: int) -> None:
        """Nothing to do: the student labels."""

    def state_dict(self) -> dict[str, Any]:
        """See `Labeler.state_dict`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do: the state is the student's."""
