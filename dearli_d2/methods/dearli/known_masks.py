"""Zero-shot recognition alone: CLIP classifies masks that are known (DEARLi, Sec. 3.2, Fig. 3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable

from ...data.catalog import taxonomy_of
from ...data.images import image_size
from ...data.mappers import panoptic_targets
from ...data.panoptic_png import read_panoptic, segment_ids
from ...data.taxonomy import named
from ...engine import evaluation
from ...errors import ConfigError
from ...masks.storage import MaskFolder
from ...methods import method_of
from ...runs import check_test_data, run_folder
from .model import DEARLi

_SURE = 20.0  # logit of a pixel inside of a mask


class KnownMasks(DEARLi):
    """Predicts the annotated segments of an image, or masks from a folder, with CLIP's class of each.

    No mask is rejected for its score. Stuff of one class becomes one segment, as in every panoptic read-out.

    Args:
        masks: the masks; None = the annotated segments that are no crowd.
        core: see `DEARLi`.
    """

    @configurable
    def __init__(self, *, masks: MaskFolder | None = None, **core: Any) -> None:
        super().__init__(**core)
        self.masks = masks
        self.read_out = replace(self.read_out, object_threshold=0.0)

    def outputs(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images = self.preprocess(batch)
        features, results = self.backbone(images.tensor), []
        for index, sample in enumerate(batch):
            masks = self._masks(sample).to(self.device)[None].float()
            seen = F.interpolate(masks, size=images.image_sizes[index], mode="nearest-exact")
            height, width = (a - b for a, b in zip(images.tensor.shape[-2:], seen.shape[-2:], strict=True))
            own = {name: maps[index : index + 1] for name, maps in features.items()}
            logits = self.zero_shot_logits(own, F.pad(seen, (0, width, 0, height)) - 0.5)
            asked = F.interpolate(masks, size=(sample["height"], sample["width"]), mode="nearest-exact")
            results.append(self.read_outs(F.pad(logits, (0, 1), value=float("-inf")), _SURE * (2 * asked - 1)))
        return results

    def _masks(self, sample: dict[str, Any]) -> torch.Tensor:
        """(N, H, W) bool at the size of the file, at least one."""
        if self.masks is None:
            ids = segment_ids(read_panoptic(sample["pan_seg_file_name"]))
            masks = panoptic_targets(ids, sample["segments_info"]).unpacked("cpu").masks
        else:
            masks = torch.from_numpy(self.masks.read(sample["file_name"], image_size(sample["file_name"])))
        return masks if len(masks) else masks.new_zeros(1, *masks.shape[1:])


def evaluate(cfg: CfgNode, masks: Path | None = None) -> dict[str, float]:
    """Evaluates the CLIP model of a config on DATASETS.TEST; writes what an evaluation writes to OUTPUT_DIR.

    Args:
        masks: folder of masks in place of the annotated segments.

    Returns:
        Scores such as "panoptic/PQ".

    Raises:
        ConfigError: a config without a text classifier or without DATASETS.TEST.
        DatasetError: faulty data, or images without masks.
    """
    if method_of(cfg).segmenter() is not DEARLi:
        raise ConfigError("zero-shot recognition needs a config of M2F-Lang: MODEL.CLASSIFIER text")
    if not cfg.DATASETS.TEST:
        raise ConfigError("zero-shot recognition needs DATASETS.TEST")
    with run_folder(cfg):
        check_test_data(cfg)
        first = cfg.DATASETS.TEST[0]
        taxonomy = named(cfg, taxonomy_of(first))
        evaluation.check_test_classes(cfg, taxonomy, first)
        model = KnownMasks(cfg, taxonomy=taxonomy, masks=None if masks is None else MaskFolder(masks))
        return evaluation.evaluate(cfg, model.to(cfg.MODEL.DEVICE).eval())
