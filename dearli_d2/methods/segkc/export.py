"""The junior of a trained pair as a model of its own."""

from __future__ import annotations

from detectron2.config import CfgNode

from ...errors import WeightsError
from ...pretrained import keep_activation

_SENIOR = "senior."


def junior_of(content: dict, source: str) -> dict:
    """A checkpoint without the senior, whose config is that of a plain DPT segmenter.

    Args:
        content: "model" and "config" of the checkpoint, and more that is kept.
        source: its file, for errors.

    Raises:
        WeightsError: the checkpoint has no senior.
    """
    state = {name: value for name, value in content["model"].items() if not name.startswith(_SENIOR)}
    if len(state) == len(content["model"]) or "config" not in content:
        raise WeightsError(
            f"{source} is no checkpoint of a SegKC run, which holds a senior and a junior; export it without --which junior"
        )
    config = CfgNode.load_cfg(content["config"])
    config.MODEL.META_ARCHITECTURE = "DPTSegmenter"
    keep_activation(config.MODEL.BACKBONE)
    config.MODEL.DEVICE = "auto"  # of the machine that reads it
    del config.MODEL["SENIOR"], config.MODEL["SEGKC"]
    return {**content, "model": state, "config": config.dump()}
