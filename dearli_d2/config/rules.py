"""What the values of several configuration keys must satisfy together; single keys are in the sections, and a method's conditions in its folder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from ..data.custom import output_among_images
from ..errors import ConfigError
from ..methods import method_of, methods


def _boxes_fit(area: float, aspect: Sequence[float]) -> bool:
    """True if at least one of a thousand random boxes of a share `area` of a square lies inside of it.

    Aspect and corner are random.
    """
    steps = 100
    ratios = [aspect[0] + (aspect[1] - aspect[0]) * (i + 0.5) / steps for i in range(steps)]
    places = [max(1 - math.sqrt(area / r), 0) * max(1 - math.sqrt(area * r), 0) for r in ratios]
    return sum(places) >= 0.001 * steps


def _backbone_rules(key: str, backbone: CfgNode) -> list[tuple[bool, str]]:
    layers, timm = backbone.LAYERS, backbone.NAME == "TimmBackbone"
    clip = backbone.NAME.startswith("OpenCLIP")
    return [
        (
            backbone.TRAINABLE_BLOCKS == -1
            or (backbone.TRAINABLE_BLOCKS >= 0 and (timm or clip) and not backbone.FREEZE),
            f"{key}.TRAINABLE_BLOCKS is -1, or 0 and more for an OpenCLIP backbone or a plain ViT of timm with {key}.FREEZE "
            "False",
        ),
        (
            not layers or (timm and len(set(layers)) == 4),
            f"{key}.LAYERS is (), or four rising numbers of blocks of a plain ViT with {key}.NAME TimmBackbone",
        ),
        (
            timm or clip or not backbone.CHECKPOINT_BLOCKS,
            f"{key}.CHECKPOINT_BLOCKS is for {key}.NAME TimmBackbone and OpenCLIP backbones, not {backbone.NAME}",
        ),
        (
            not (backbone.CHECKPOINT_BLOCKS and (backbone.FREEZE or backbone.TRAINABLE_BLOCKS == 0)),
            f"{key}.CHECKPOINT_BLOCKS saves nothing where no block is trained ({key}.FREEZE True or TRAINABLE_BLOCKS 0): leave it "
            "False",
        ),
        (timm or not backbone.FREEZE_NORM, f"{key}.FREEZE_NORM is for {key}.NAME TimmBackbone"),
        (
            backbone.NAME not in ("SwinBackbone", "build_resnet_backbone") or not backbone.WEIGHTS,
            f"{key}.WEIGHTS is not read by {key}.NAME {backbone.NAME}: its weights come from MODEL.WEIGHTS, also from a file of the "
            "backbone alone",
        ),
    ]


def _is_scored(metric: str, cfg: CfgNode) -> bool:
    """True if an evaluation gives a score of this name. A label or a data set may precede the task."""
    if "semantic/" not in metric:
        return bool(cfg.TEST.PANOPTIC_ON)
    zero_shot = metric.endswith(("hIoU", "sIoU", "uIoU"))
    return bool(cfg.TEST.SEMANTIC_ON and (not zero_shot or cfg.DATASETS.UNSEEN_CLASSES))


def validate(cfg: CfgNode) -> None:
    """Raises `ConfigError` for the first rule that does not hold."""
    method = method_of(cfg)
    former, decoder = cfg.MODEL.MASK_FORMER, cfg.MODEL.PIXEL_DECODER
    metric = cfg.TEST.BEST_METRIC
    rules = [
        (
            cfg.MODEL.NUM_CLASSES >= 1,
            "MODEL.NUM_CLASSES must be set to the number of classes of the data set"
            + ("; own data: DATASETS.CUSTOM.ROOT is missing" if cfg.DATASETS.CUSTOM.CLASSES else ""),
        ),
        (
            not output_among_images(cfg),
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} lies in the folder of {output_among_images(cfg)}: the pictures that a run writes would be "
            "taken for images there; choose a folder outside of it",
        ),
        *(
            rule
            for network in method.networks
            for rule in _backbone_rules(f"{network.section}.BACKBONE", network.config(cfg).BACKBONE)
        ),
        (former.HIDDEN_DIM % former.HEADS == 0, "MODEL.MASK_FORMER.HIDDEN_DIM must be a multiple of its HEADS"),
        (
            former.HIDDEN_DIM % 4 == 0 and decoder.DIM % 4 == 0,
            "HIDDEN_DIM and PIXEL_DECODER.DIM must be multiples of 4",
        ),
        (
            former.CLASS_WEIGHT + former.MASK_WEIGHT + former.DICE_WEIGHT > 0,
            "MODEL.MASK_FORMER: CLASS_WEIGHT, MASK_WEIGHT and DICE_WEIGHT are all 0, nothing would be learned",
        ),
        (
            not former.MASK_POOLING or (cfg.MODEL.CLASSIFIER != "none" and former.HIDDEN_DIM == former.MASK_DIM),
            "MODEL.MASK_FORMER.MASK_POOLING needs a classifier, and HIDDEN_DIM equal to MASK_DIM",
        ),
        (decoder.DIM % decoder.HEADS == 0, "MODEL.PIXEL_DECODER.DIM must be a multiple of its HEADS"),
        (
            cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER,
            f"SOLVER.WARMUP_ITERS {cfg.SOLVER.WARMUP_ITERS} must be below SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}",
        ),
        (
            cfg.INPUT.MIN_SIZE_TEST <= cfg.INPUT.MAX_SIZE_TEST,
            f"INPUT.MIN_SIZE_TEST {cfg.INPUT.MIN_SIZE_TEST} is above INPUT.MAX_SIZE_TEST {cfg.INPUT.MAX_SIZE_TEST}",
        ),
        (
            not (cfg.SSL.START and cfg.SSL.TEACHER_WEIGHTS),
            "SSL.START makes the teacher from the student, so SSL.TEACHER_WEIGHTS would be lost; use one of them",
        ),
        *(
            (
                not jitter or jitter[3] <= 0.5,
                f"{key} is (brightness, contrast, saturation, hue): the last must be at most 0.5",
            )
            for key, jitter in (("SSL.JITTER", cfg.SSL.JITTER), ("INPUT.JITTER", cfg.INPUT.JITTER))
        ),
        (
            not (cfg.INPUT.JITTER and cfg.INPUT.COLOR_AUG_SSD),
            "INPUT.JITTER and INPUT.COLOR_AUG_SSD both change the colours of labelled images: use one of them",
        ),
        (
            _boxes_fit(cfg.SSL.CUTMIX_AREA[1], cfg.SSL.CUTMIX_ASPECT),
            "SSL.CUTMIX_AREA: boxes of the largest area do not fit into the crop with room to spare at SSL.CUTMIX_ASPECT; lower "
            "the area",
        ),
        (
            cfg.TEST.WINDOW_STRIDE <= cfg.TEST.WINDOW,
            "TEST.WINDOW_STRIDE must be at most TEST.WINDOW",
        ),
        (
            not cfg.TEST.WINDOW or not (cfg.TEST.PANOPTIC_ON or cfg.TEST.INSTANCE_ON),
            "TEST.WINDOW gives semantic scores only: TEST.PANOPTIC_ON and TEST.INSTANCE_ON must be off",
        ),
        *method.rules(cfg),
        (
            not cfg.DATASETS.UNSEEN_CLASSES or method.zero_shot,
            "DATASETS.UNSEEN_CLASSES is for MODEL.META_ARCHITECTURE "
            + " or ".join(other.architecture for other in methods().values() if other.zero_shot),
        ),
        (
            cfg.MODEL.CLASSIFIER != "none" or not (cfg.DATASETS.UNLABELED or cfg.DATASETS.TEST),
            'MODEL.CLASSIFIER "none" knows no classes: DATASETS.UNLABELED and DATASETS.TEST must be empty',
        ),
        (
            (cfg.MODEL.CLASSIFIER == "none") == bool(cfg.DATASETS.MASKS),
            'DATASETS.MASKS and MODEL.CLASSIFIER "none" belong together: class-agnostic masks are the targets of a '
            "class-agnostic model",
        ),
        (
            cfg.TEST.WEIGHTS == "student" or cfg.DATASETS.UNLABELED,
            f"TEST.WEIGHTS is {cfg.TEST.WEIGHTS} but without DATASETS.UNLABELED there is no teacher",
        ),
        (
            cfg.TEST.PANOPTIC_ON or cfg.TEST.SEMANTIC_ON or cfg.TEST.INSTANCE_ON,
            "one of TEST.PANOPTIC_ON, SEMANTIC_ON, INSTANCE_ON must be on",
        ),
        (
            not (metric and cfg.DATASETS.TEST) or _is_scored(metric, cfg),
            f"TEST.BEST_METRIC is {metric!r}, which no evaluation of this config gives; see TEST.PANOPTIC_ON, "
            "TEST.SEMANTIC_ON and DATASETS.UNSEEN_CLASSES",
        ),
        (
            cfg.MODEL.CLASSIFIER != "text" or cfg.MODEL.BACKBONE.NAME.startswith("OpenCLIP") or cfg.MODEL.TEXT.ENCODER,
            f"MODEL.CLASSIFIER text needs an OpenCLIP backbone, not {cfg.MODEL.BACKBONE.NAME}",
        ),
        (
            cfg.MODEL.CLASSIFIER == "text" or not cfg.MODEL.ENSEMBLE.SEEN,
            "MODEL.ENSEMBLE.SEEN is for MODEL.CLASSIFIER text",
        ),
        (
            cfg.MODEL.DEVICE.startswith("cpu") or torch.cuda.is_available(),
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE} but torch sees no GPU; use 'auto' or 'cpu'",
        ),
        (
            cfg.MODEL.DEFORM_ATTN_IMPL != "gather" or cfg.MODEL.DEVICE.startswith("cpu"),
            f"MODEL.DEFORM_ATTN_IMPL gather is for CPUs, and MODEL.DEVICE is {cfg.MODEL.DEVICE}; use auto",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise ConfigError(message)
