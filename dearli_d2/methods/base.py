"""What the folder of a method gives to the rest of the project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..config.options import Options
from ..errors import WeightsError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ..cli.base import Group
    from ..modeling.segmenter import Segmenter

Rules = list[tuple[bool, str]]  # what must hold, and the error otherwise


@dataclass(frozen=True)
class Network:
    """An image network of a method.

    Args:
        section: config section that holds its BACKBONE, PIXEL_MEAN and PIXEL_STD.
        role: its name in reports.
    """

    section: str = "MODEL"
    role: str = "backbone"

    def config(self, cfg: CfgNode) -> CfgNode:
        """Its section of a config."""
        for name in self.section.split("."):
            cfg = cfg[name]
        return cfg


class Method(ABC):
    """A method. Its folder's `__init__.py` makes one as `METHOD`; the core asks it and never names it.

    Importing a method's `__init__.py` must be quick, since every command does it: import models and data inside of the
    functions.
    """

    architecture: ClassVar[str]  # its MODEL.META_ARCHITECTURE
    options: ClassVar[tuple[type[Options], ...]] = ()  # its config sections
    networks: ClassVar[tuple[Network, ...]] = (Network(),)
    memory_keys: ClassVar[
        tuple[str, ...]
    ] = ()  # keys that change memory and speed alone: a resumed run may change them
    exports: ClassVar[dict[str, str]] = {}  # parts of a checkpoint that can be exported alone, with an explanation
    zero_shot: ClassVar[bool] = False  # whether it takes DATASETS.UNSEEN_CLASSES
    teaching: ClassVar[str] = ""  # who labels unlabelled images; "" = the EMA teacher

    @abstractmethod
    def segmenter(self) -> type[Segmenter]:
        """The class of the model; it has `from_config(cfg, taxonomy)`."""

    def takes(self, cfg: CfgNode) -> bool:
        """True if a config is of this method. Several methods may share an architecture."""
        return bool(self.architecture == cfg.MODEL.META_ARCHITECTURE)

    def rules(self, cfg: CfgNode) -> Rules:
        """Conditions on several keys that a config of this method must satisfy."""
        return []

    def labeled_mapper(self, cfg: CfgNode, *view: Any) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """The mapper of labelled images; None = the one that all methods share.

        Args:
            view: the first arguments of a `PanopticTrainMapper`: geometry, colours, crop size and padding.
        """
        return None

    def blank_sample(self, cfg: CfgNode) -> dict[str, Any]:
        """Gives what a labelled training sample of this method has beside that of the shared mapper, without content.

        See `dearli_d2.rehearsal`, which counts what a training step needs.
        """
        return {}

    def reads_captions(self, cfg: CfgNode) -> bool:
        """True if the model reads a caption beside each image."""
        return False

    def add_commands(self, dearli: Group) -> None:  # noqa: B027  # most methods add none
        """Adds commands of its own to the command line. Their modules import only click at the top, as those of the core do.

        Args:
            dearli: the command `dearli`; `group_of` gives those below it.
        """

    def export(self, part: str, content: dict[str, Any], source: str) -> dict[str, Any]:
        """Keeps one of `exports` of a checkpoint.

        Args:
            content: "model", "config" and "taxonomy" of a checkpoint.
            source: its file, for errors.

        Returns:
            The same keys. A changed config is written beside the exported file.

        Raises:
            WeightsError: the checkpoint has no such part.
        """
        raise WeightsError(f"{source}: {self.architecture} has no part {part!r} to export alone")


def semantic_rules(cfg: CfgNode, name: str) -> Rules:
    """The rule of methods that segment semantically."""
    return [
        (
            cfg.INPUT.TARGETS == "semantic" and not (cfg.TEST.PANOPTIC_ON or cfg.TEST.INSTANCE_ON),
            f"{name} segments semantically: INPUT.TARGETS semantic, TEST.PANOPTIC_ON and TEST.INSTANCE_ON False",
        )
    ]


def linear_rules(cfg: CfgNode, name: str) -> Rules:
    """The rule of methods with a linear classifier."""
    return [(cfg.MODEL.CLASSIFIER == "linear", f"{name} has a linear classifier: MODEL.CLASSIFIER linear")]


def query_rules(cfg: CfgNode) -> Rules:
    """The rules of methods whose only queries are those of MODEL.MASK_FORMER."""
    return [
        (
            cfg.MODEL.MASK_FORMER.NUM_QUERIES > 0,
            "MODEL.MASK_FORMER.NUM_QUERIES is 0; a model without queries predicts nothing",
        )
    ]


def class_loss_rules(cfg: CfgNode) -> Rules:
    """The rule of methods whose classifier learns from the matching loss alone."""
    return [
        (
            cfg.MODEL.MASK_FORMER.CLASS_WEIGHT > 0 or cfg.MODEL.CLASSIFIER == "none",
            "MODEL.MASK_FORMER.CLASS_WEIGHT is 0, so nothing teaches the classifier; a class-agnostic model is "
            "MODEL.CLASSIFIER none",
        )
    ]


def panoptic_teaching_rules(cfg: CfgNode) -> Rules:
    """The rule of methods whose pseudo-labels are panoptic."""
    return [
        (
            cfg.INPUT.TARGETS == "panoptic" or not cfg.DATASETS.UNLABELED,
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} makes panoptic pseudo-labels: INPUT.TARGETS must be panoptic; "
            "semantic pseudo-labels are those of a method that segments semantically",
        )
    ]
