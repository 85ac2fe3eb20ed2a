"""Split Matching (Chen et al.): queries for annotated classes and for regions that nobody annotated; zero-shot segmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..base import Method, Rules, class_loss_rules, query_rules, semantic_rules
from .options import RegionOptions, SplitOptions

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ...cli.base import Group
    from ...modeling.segmenter import Segmenter


class SplitMatching(Method):
    """See the module."""

    architecture = "SplitMatching"
    options = (SplitOptions, RegionOptions)
    zero_shot = True

    def segmenter(self) -> type[Segmenter]:
        from . import model

        return model.SplitMatching

    def rules(self, cfg: CfgNode) -> Rules:
        return [
            *query_rules(cfg),
            *class_loss_rules(cfg),
            *semantic_rules(cfg, "SplitMatching"),
            (cfg.MODEL.CLASSIFIER == "text", "SplitMatching has text embeddings as classes: MODEL.CLASSIFIER text"),
            (bool(cfg.DATASETS.UNSEEN_CLASSES), "SplitMatching needs DATASETS.UNSEEN_CLASSES"),
            (
                not cfg.TEST.BEST_METRIC,
                f"TEST.BEST_METRIC {cfg.TEST.BEST_METRIC} would choose a checkpoint with annotations of unseen classes: set it "
                'to "", the final model counts',
            ),
            (not cfg.DATASETS.UNLABELED and not cfg.DATASETS.SOURCE, "SplitMatching learns from DATASETS.TRAIN alone"),
        ]

    def blank_sample(self, cfg: CfgNode) -> dict[str, Any]:
        import torch

        options, side = RegionOptions.of(cfg), cfg.INPUT.CROP_SIZE
        whole = options.image_size, options.image_size
        unannotated = torch.zeros(whole, dtype=torch.bool)
        unannotated[: options.image_size // 10] = True  # where one of ten clusters lies
        return {
            "pixels": torch.zeros(side, side, dtype=torch.int32),
            "whole_image": torch.zeros(3, *whole, dtype=torch.uint8),
            "unannotated": unannotated,
        }

    def add_commands(self, dearli: Group) -> None:
        from .cli import regions

        dearli.add_command(regions)

    def labeled_mapper(self, cfg: CfgNode, *view: Any) -> Callable[[dict], dict]:
        from ...data.catalog import taxonomy_of
        from ...data.zero_shot import unseen_classes
        from .data import ZeroShotTrainMapper
        from .region_folder import RegionFolder

        options = RegionOptions.of(cfg)
        return ZeroShotTrainMapper(
            *view,
            unseen=unseen_classes(cfg.DATASETS.UNSEEN_CLASSES, taxonomy_of(cfg.DATASETS.TRAIN[0])),
            size=options.image_size,
            cache=RegionFolder(options.cache) if options.cache else None,
        )


METHOD = SplitMatching()
