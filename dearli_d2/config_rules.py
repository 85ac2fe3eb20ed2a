"""What the values of a configuration must satisfy, alone and together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from .errors import ConfigError

PIXEL_LOSSES = ("dyce", "ce", "weighted_ce", "focal", "dual_ce", "dual_focal")


def _is_range(pair: Sequence[float], limit: float = float("inf")) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1] <= limit


def _is_jitter(values: Sequence[float]) -> bool:
    return len(values) == 4 and all(v >= 0 for v in values) and values[3] <= 0.5


def _boxes_fit(area: float, aspect: Sequence[float]) -> bool:
    """Whether boxes of a share `area` of a square and some aspect of the range fit into it, with room to spare."""
    return area < 1 and max(aspect[0], area) < min(aspect[1], 1 / area)


def _hvl_rules(cfg: CfgNode) -> list[tuple[bool, str]]:
    hvl, former = cfg.MODEL.HVL, cfg.MODEL.MASK_FORMER
    textual = hvl.TEXTUAL_QUERIES
    weights = ("DIVERSITY_WEIGHT", "PROMPT_WEIGHT", "VL_WEIGHT", "ALIGN_WEIGHT", "MASK_WEIGHT", "ENTROPY_WEIGHT")
    return [
        (
            cfg.INPUT.TARGETS == "semantic" and not (cfg.TEST.PANOPTIC_ON or cfg.TEST.INSTANCE_ON),
            "HVL segments semantically: INPUT.TARGETS semantic, TEST.PANOPTIC_ON and TEST.INSTANCE_ON False",
        ),
        (cfg.MODEL.CLASSIFIER == "linear", "HVL has a linear classifier: MODEL.CLASSIFIER linear"),
        *((hvl[key] >= 0, f"MODEL.HVL.{key} must be 0 or more") for key in weights),
        (hvl.PROMPT_TOKENS >= 1, "MODEL.HVL.PROMPT_TOKENS must be positive"),
        (0 <= hvl.PRESENCE_THRESHOLD <= 1, "MODEL.HVL.PRESENCE_THRESHOLD must be in 0..1"),
        (hvl.TEMPERATURE > 0, "MODEL.HVL.TEMPERATURE must be positive"),
        (
            not textual or former.NUM_QUERIES or hvl.PRESENCE != "image",
            "without free queries (MODEL.MASK_FORMER.NUM_QUERIES 0) a class that CLIP does not see in the whole image cannot be "
            "predicted at all: set MODEL.HVL.PRESENCE to dense or all",
        ),
        (textual or former.NUM_QUERIES, "HVL without MODEL.HVL.TEXTUAL_QUERIES needs MODEL.MASK_FORMER.NUM_QUERIES"),
        (
            not textual or cfg.MODEL.PIXEL_DECODER.DIM == former.HIDDEN_DIM,
            "textual queries pass both decoders: MODEL.PIXEL_DECODER.DIM must equal MODEL.MASK_FORMER.HIDDEN_DIM",
        ),
        (
            not (textual and hvl.VL_WEIGHT) or (not cfg.MODEL.BACKBONE.FREEZE and not cfg.MODEL.TEXT.ENCODER),
            "MODEL.HVL.VL_WEIGHT trains the image tower of CLIP: it needs an OpenCLIP backbone with MODEL.BACKBONE.FREEZE "
            "False; else set it to 0",
        ),
    ]


def _split_rules(cfg: CfgNode) -> list[tuple[bool, str]]:
    split, regions = cfg.MODEL.SPLIT, cfg.MODEL.SPLIT.REGIONS
    return [
        (
            cfg.INPUT.TARGETS == "semantic" and not (cfg.TEST.PANOPTIC_ON or cfg.TEST.INSTANCE_ON),
            "SplitMatching segments semantically: INPUT.TARGETS semantic, TEST.PANOPTIC_ON and TEST.INSTANCE_ON False",
        ),
        (cfg.MODEL.CLASSIFIER == "text", "SplitMatching has text embeddings as classes: MODEL.CLASSIFIER text"),
        (bool(cfg.DATASETS.UNSEEN_CLASSES), "SplitMatching needs DATASETS.UNSEEN_CLASSES"),
        (
            not cfg.TEST.BEST_METRIC,
            f"TEST.BEST_METRIC {cfg.TEST.BEST_METRIC} would choose a checkpoint with annotations of unseen classes: set it to "
            '"", the final model counts',
        ),
        (not cfg.DATASETS.UNLABELED and not cfg.DATASETS.SOURCE, "SplitMatching learns from DATASETS.TRAIN alone"),
        (
            split.CANDIDATE_QUERIES >= 0 and split.RANDOM_QUERIES >= 0,
            "MODEL.SPLIT.CANDIDATE_QUERIES and RANDOM_QUERIES must be 0 or more",
        ),
        (split.COSINE_WEIGHT >= 0 and split.MFE_WEIGHT >= 0, "weights of MODEL.SPLIT must be 0 or more"),
        (split.MFE_TEMPERATURE > 0, "MODEL.SPLIT.MFE_TEMPERATURE must be positive"),
        (
            len(regions.WINDOWS) > 0 and all(isinstance(w, int) and w >= 1 for w in regions.WINDOWS),
            "MODEL.SPLIT.REGIONS.WINDOWS must be one or more sides in cells",
        ),
        (regions.ITERATIONS >= 1, "MODEL.SPLIT.REGIONS.ITERATIONS must be positive"),
        (0 <= regions.MIN_AREA < 1, "MODEL.SPLIT.REGIONS.MIN_AREA must be in 0..1"),
        (
            regions.IMAGE_SIZE >= 32 and regions.CROP_SIZE >= 32,
            "sizes of MODEL.SPLIT.REGIONS must be 32 pixels or more",
        ),
    ]


def _semidavil_rules(cfg: CfgNode) -> list[tuple[bool, str]]:
    options = cfg.MODEL.SEMIDAVIL
    return [
        (
            cfg.INPUT.TARGETS == "semantic" and not (cfg.TEST.PANOPTIC_ON or cfg.TEST.INSTANCE_ON),
            "SemiDAViL segments semantically: INPUT.TARGETS semantic, TEST.PANOPTIC_ON and TEST.INSTANCE_ON False",
        ),
        (cfg.MODEL.CLASSIFIER == "linear", "SemiDAViL has a linear classifier: MODEL.CLASSIFIER linear"),
        (
            options.HEAD in ("upsample", "dpt", "mask2former"),
            f"MODEL.SEMIDAVIL.HEAD is {options.HEAD!r}; it can be upsample, dpt or mask2former",
        ),
        (
            options.CAPTIONS in ("file", "class_names"),
            f"MODEL.SEMIDAVIL.CAPTIONS is {options.CAPTIONS!r}; it can be file or class_names",
        ),
        (
            options.LOSS in PIXEL_LOSSES,
            f"MODEL.SEMIDAVIL.LOSS is {options.LOSS!r}; it can be {', '.join(PIXEL_LOSSES)}",
        ),
        (0 < options.HARD_FRACTION <= 1, "MODEL.SEMIDAVIL.HARD_FRACTION must be above 0, at most 1"),
        (0 <= options.OMEGA <= 1, "MODEL.SEMIDAVIL.OMEGA must be in 0..1"),
        (options.LOSS_WEIGHT > 0, "MODEL.SEMIDAVIL.LOSS_WEIGHT must be positive"),
        (
            options.GUIDANCE_DIM >= 1 and options.HEAD_DIM >= 1,
            "MODEL.SEMIDAVIL.GUIDANCE_DIM and HEAD_DIM must be positive",
        ),
    ]


def _dpt_rules(cfg: CfgNode) -> list[tuple[bool, str]]:
    name, weight, segkc = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DPT.LOSS_WEIGHT, cfg.MODEL.SEGKC
    return [
        (
            cfg.INPUT.TARGETS == "semantic" and not (cfg.TEST.PANOPTIC_ON or cfg.TEST.INSTANCE_ON),
            f"{name} segments semantically: INPUT.TARGETS semantic, TEST.PANOPTIC_ON and TEST.INSTANCE_ON False",
        ),
        (cfg.MODEL.CLASSIFIER == "linear", f"{name} has a linear classifier: MODEL.CLASSIFIER linear"),
        (
            cfg.MODEL.DPT.NORM in ("NONE", "BN", "GN"),
            f"MODEL.DPT.NORM is {cfg.MODEL.DPT.NORM!r}; it can be NONE, BN or GN",
        ),
        (cfg.MODEL.DPT.DIM >= 1 and cfg.MODEL.SENIOR.DIM >= 1, "MODEL.DPT.DIM and MODEL.SENIOR.DIM must be positive"),
        (weight > 0, "MODEL.DPT.LOSS_WEIGHT must be positive"),
        (segkc.KD_WEIGHT >= 0, "MODEL.SEGKC.KD_WEIGHT must be 0 or more"),
        (segkc.KD_TEMPERATURE > 0, "MODEL.SEGKC.KD_TEMPERATURE must be positive"),
        (
            segkc.READ in ("junior", "senior"),
            f"MODEL.SEGKC.READ is {segkc.READ!r}; it can be junior or senior",
        ),
        (
            name != "SegKC" or cfg.TEST.WEIGHTS == "student",
            "SegKC has no EMA teacher: TEST.WEIGHTS must be student; MODEL.SEGKC.READ senior evaluates the senior",
        ),
        (
            name != "SegKC" or not cfg.SSL.TEACHER_WEIGHTS,
            "SegKC has no EMA teacher: SSL.TEACHER_WEIGHTS must be empty",
        ),
    ]


def _backbone_rules(key: str, backbone: CfgNode) -> list[tuple[bool, str]]:
    layers, timm = backbone.LAYERS, backbone.NAME == "TimmBackbone"
    return [
        (
            backbone.TRAINABLE_BLOCKS == -1
            or (
                backbone.TRAINABLE_BLOCKS >= 0
                and (timm or backbone.NAME.startswith("OpenCLIP"))
                and not backbone.FREEZE
            ),
            f"{key}.TRAINABLE_BLOCKS is -1, or 0 and more for an OpenCLIP backbone or a plain ViT of timm with {key}.FREEZE "
            "False",
        ),
        (
            not layers or (timm and len(layers) == 4 and min(layers) >= 0 and list(layers) == sorted(set(layers))),
            f"{key}.LAYERS is (), or four rising numbers of blocks of a plain ViT with {key}.NAME TimmBackbone",
        ),
        (
            len(backbone.LEVEL_DIMS) == 4 and min(backbone.LEVEL_DIMS) >= 1,
            f"{key}.LEVEL_DIMS must be four numbers of channels",
        ),
        (timm or not backbone.CHECKPOINT_BLOCKS, f"{key}.CHECKPOINT_BLOCKS is for {key}.NAME TimmBackbone"),
    ]


def validate(cfg: CfgNode) -> None:
    """Raises `ConfigError` for the first rule that does not hold."""
    former, decoder = cfg.MODEL.MASK_FORMER, cfg.MODEL.PIXEL_DECODER
    low, high = cfg.INPUT.SCALE_RANGE
    one_of = {
        "MODEL.CLASSIFIER": (cfg.MODEL.CLASSIFIER, ("linear", "text", "none")),
        "TEST.WEIGHTS": (cfg.TEST.WEIGHTS, ("student", "teacher", "both")),
        "MODEL.DEFORM_ATTN_IMPL": (cfg.MODEL.DEFORM_ATTN_IMPL, ("auto", "grid_sample", "gather")),
        "SOLVER.AMP.DTYPE": (cfg.SOLVER.AMP.DTYPE, ("bfloat16", "float16")),
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": (cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, ("full_model",)),
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, ("RGB",)),
        "INPUT.TARGETS": (cfg.INPUT.TARGETS, ("panoptic", "semantic")),
        "SSL.MIX": (cfg.SSL.MIX, ("cutmix", "classmix")),
        "SOLVER.SCHEDULE": (cfg.SOLVER.SCHEDULE, ("poly", "exponential")),
        "MODEL.HVL.PRESENCE": (cfg.MODEL.HVL.PRESENCE, ("image", "dense", "all")),
        "MODEL.HVL.INFERENCE": (cfg.MODEL.HVL.INFERENCE, ("marginal", "argmax")),
    }
    for key, (value, allowed) in one_of.items():
        if value not in allowed:
            raise ConfigError(f"{key} is {value!r}; it can be {' or '.join(map(repr, allowed))}")
    rules = [
        (
            cfg.MODEL.NUM_CLASSES >= 1,
            "MODEL.NUM_CLASSES must be set to the number of classes of the data set"
            + ("; own data: DATASETS.CUSTOM.ROOT is missing" if cfg.DATASETS.CUSTOM.CLASSES else ""),
        ),
        (cfg.SEED >= 0, "SEED must be 0 or more"),
        *_backbone_rules("MODEL.BACKBONE", cfg.MODEL.BACKBONE),
        *_backbone_rules("MODEL.SENIOR.BACKBONE", cfg.MODEL.SENIOR.BACKBONE),
        (former.HIDDEN_DIM % former.HEADS == 0, "MODEL.MASK_FORMER.HIDDEN_DIM must be a multiple of its HEADS"),
        (
            former.HIDDEN_DIM % 4 == 0 and decoder.DIM % 4 == 0,
            "HIDDEN_DIM and PIXEL_DECODER.DIM must be multiples of 4",
        ),
        (decoder.DIM % decoder.HEADS == 0, "MODEL.PIXEL_DECODER.DIM must be a multiple of its HEADS"),
        (former.TRAIN_NUM_POINTS >= 1, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS must be positive"),
        (former.OVERSAMPLE_RATIO >= 1, "MODEL.MASK_FORMER.OVERSAMPLE_RATIO must be at least 1"),
        (0 <= former.IMPORTANCE_SAMPLE_RATIO <= 1, "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO must be in 0..1"),
        (0 <= cfg.MODEL.ENSEMBLE.ALPHA <= 1, "MODEL.ENSEMBLE.ALPHA must be in 0..1"),
        (0 < cfg.DATASETS.CUSTOM.VAL_FRACTION < 1, "DATASETS.CUSTOM.VAL_FRACTION must be between 0 and 1"),
        (0 < low <= high, "INPUT.SCALE_RANGE must be (low, high) with 0 < low <= high"),
        (
            not len(cfg.INPUT.SOURCE_SCALE_RANGE) or _is_range(cfg.INPUT.SOURCE_SCALE_RANGE),
            "INPUT.SOURCE_SCALE_RANGE must be () or (low, high) with 0 < low <= high",
        ),
        (0 < cfg.SOLVER.DECAY <= 1, "SOLVER.DECAY must be above 0, at most 1"),
        (cfg.SOLVER.IMS_PER_BATCH >= 1, "SOLVER.IMS_PER_BATCH must be positive"),
        (cfg.SOLVER.MAX_ITER >= 1, "SOLVER.MAX_ITER must be positive"),
        (cfg.SOLVER.ACCUMULATION_STEPS >= 1, "SOLVER.ACCUMULATION_STEPS must be positive"),
        (cfg.SOLVER.KEEP_CHECKPOINTS >= 1, "SOLVER.KEEP_CHECKPOINTS must be positive"),
        (cfg.SOLVER.CHECKPOINT_PERIOD >= 1, "SOLVER.CHECKPOINT_PERIOD must be positive"),
        (
            cfg.SSL.IMS_PER_BATCH >= 1 and cfg.SSL.SOURCE_IMS_PER_BATCH >= 1,
            "SSL.IMS_PER_BATCH and SSL.SOURCE_IMS_PER_BATCH must be positive",
        ),
        (0 <= cfg.SSL.EMA_DECAY < 1, "SSL.EMA_DECAY must be in 0..1, below 1"),
        (cfg.SSL.START >= 0 and cfg.SSL.BURN_IN >= 0, "SSL.START and SSL.BURN_IN must be 0 or more"),
        (
            not (cfg.SSL.START and cfg.SSL.TEACHER_WEIGHTS),
            "SSL.START makes the teacher from the student, so SSL.TEACHER_WEIGHTS would be lost; use one of them",
        ),
        *(
            (0 <= cfg.SSL[key] <= 1, f"SSL.{key} is a probability")
            for key in ("CUTMIX", "JITTER_PROBABILITY", "GREYSCALE", "BLUR")
        ),
        *(
            (
                _is_jitter(jitter),
                f"{key} must be (brightness, contrast, saturation, hue), none negative, hue at most 0.5",
            )
            for key, jitter in (("SSL.JITTER", cfg.SSL.JITTER), ("INPUT.JITTER", cfg.INPUT.JITTER or (0, 0, 0, 0)))
        ),
        (
            not (cfg.INPUT.JITTER and cfg.INPUT.COLOR_AUG_SSD),
            "INPUT.JITTER and INPUT.COLOR_AUG_SSD both change the colours of labelled images: use one of them",
        ),
        (_is_range(cfg.SSL.BLUR_SIGMA), "SSL.BLUR_SIGMA must be (low, high) with 0 < low <= high"),
        (_is_range(cfg.SSL.CUTMIX_AREA, 1), "SSL.CUTMIX_AREA must be (low, high) with 0 < low <= high <= 1"),
        (_is_range(cfg.SSL.CUTMIX_ASPECT), "SSL.CUTMIX_ASPECT must be (low, high) with 0 < low <= high"),
        (
            _boxes_fit(cfg.SSL.CUTMIX_AREA[0], cfg.SSL.CUTMIX_ASPECT),
            "SSL.CUTMIX_AREA: boxes of the smallest area do not fit into the crop with any SSL.CUTMIX_ASPECT",
        ),
        (0 <= cfg.SSL.CONFIDENCE <= 1, "SSL.CONFIDENCE must be in 0..1"),
        (cfg.DATALOADER.RARE_CLASS_TEMPERATURE > 0, "DATALOADER.RARE_CLASS_TEMPERATURE must be positive"),
        (0 <= cfg.DATALOADER.RARE_CLASS_AREA < 1, "DATALOADER.RARE_CLASS_AREA must be in 0..1"),
        (
            cfg.TEST.WINDOW >= 0 and 0 <= cfg.TEST.WINDOW_STRIDE <= cfg.TEST.WINDOW,
            "TEST.WINDOW must be 0 or more, TEST.WINDOW_STRIDE at most TEST.WINDOW",
        ),
        (
            not cfg.TEST.WINDOW or not (cfg.TEST.PANOPTIC_ON or cfg.TEST.INSTANCE_ON),
            "TEST.WINDOW gives semantic scores only: TEST.PANOPTIC_ON and TEST.INSTANCE_ON must be off",
        ),
        (cfg.SSL.STRONG_VIEWS in (1, 2), "SSL.STRONG_VIEWS must be 1 or 2"),
        *(_dpt_rules(cfg) if cfg.MODEL.META_ARCHITECTURE in ("DPTSegmenter", "SegKC") else []),
        *(_hvl_rules(cfg) if cfg.MODEL.META_ARCHITECTURE == "HVL" else []),
        *(_semidavil_rules(cfg) if cfg.MODEL.META_ARCHITECTURE == "SemiDAViL" else []),
        *(_split_rules(cfg) if cfg.MODEL.META_ARCHITECTURE == "SplitMatching" else []),
        (
            not cfg.DATASETS.UNSEEN_CLASSES or cfg.MODEL.META_ARCHITECTURE == "SplitMatching",
            "DATASETS.UNSEEN_CLASSES is for MODEL.META_ARCHITECTURE SplitMatching",
        ),
        (cfg.SSL.MONITOR_IMAGES >= 1, "SSL.MONITOR_IMAGES must be positive"),
        (
            cfg.INPUT.TARGETS == "panoptic"
            or cfg.MODEL.META_ARCHITECTURE != "MaskFormer"
            or not cfg.DATASETS.UNLABELED,
            "MODEL.META_ARCHITECTURE MaskFormer makes panoptic pseudo-labels: INPUT.TARGETS must be panoptic; HVL with "
            "MODEL.HVL.TEXTUAL_QUERIES False is its semantic counterpart",
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
        (0 <= cfg.TEST.OBJECT_THRESHOLD <= 1, "TEST.OBJECT_THRESHOLD must be in 0..1"),
        (0 <= cfg.TEST.OVERLAP_THRESHOLD <= 1, "TEST.OVERLAP_THRESHOLD must be in 0..1"),
        (
            cfg.TEST.PANOPTIC_ON or cfg.TEST.SEMANTIC_ON or cfg.TEST.INSTANCE_ON,
            "one of TEST.PANOPTIC_ON, SEMANTIC_ON, INSTANCE_ON must be on",
        ),
        (
            cfg.MODEL.CLASSIFIER != "text" or cfg.MODEL.BACKBONE.NAME.startswith("OpenCLIP") or cfg.MODEL.TEXT.ENCODER,
            f"MODEL.CLASSIFIER text needs an OpenCLIP backbone, not {cfg.MODEL.BACKBONE.NAME}",
        ),
        (
            cfg.MODEL.DEVICE.startswith("cpu") or torch.cuda.is_available(),
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE} but torch sees no GPU; use 'auto' or 'cpu'",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise ConfigError(message)
