"""The weights of the student at the first step of a run or of its continuation."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode

from ..checkpoint import load_state, load_weights
from ..modeling.segmenter import Segmenter

logger = logging.getLogger(__name__)


def load_start_weights(cfg: CfgNode, student: Segmenter, state: dict[str, Any] | None) -> None:
    """Loads the weights of a checkpoint, else those of MODEL.WEIGHTS.

    Args:
        student: with the weights of its backbone (MODEL.BACKBONE.WEIGHTS), if a run begins.
        state: content of the checkpoint that a run goes on from, None at its beginning.

    Raises:
        WeightsError: they are those of another model.
    """
    if state is not None:
        load_state(student, state["model"], "checkpoint", strict=True)
    elif cfg.MODEL.WEIGHTS:
        report = load_weights(student, cfg.MODEL.WEIGHTS, strict=False)
        logger.info("%s\n%s", cfg.MODEL.WEIGHTS, report.carry_over())
    elif not cfg.MODEL.BACKBONE.WEIGHTS:
        logger.warning("the backbone starts from random weights: MODEL.BACKBONE.WEIGHTS and MODEL.WEIGHTS are empty")
