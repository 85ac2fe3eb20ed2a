"""The sections of the configuration that several methods share: key, default, rule and explanation stand here once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .options import Options, option
from .values import (
    COUNT,
    NAME,
    NAMES,
    PART,
    PATH,
    POSITIVE,
    POSITIVE_COUNT,
    RANGE,
    SCORE_PATTERN,
    SEED,
    SHARE,
    SIDE,
    SWITCH,
    TEXT,
    WEIGHT,
    Items,
    Number,
    Text,
    one_of,
)


@dataclass(frozen=True)
class General(Options):
    """Keys of the whole run."""

    SECTION: ClassVar[str] = ""

    seed: int = option(
        0, SEED, "of everything; detectron2's default -1 (random) would make runs impossible to resume exactly"
    )


@dataclass(frozen=True)
class Model(Options):
    """The model as a whole."""

    SECTION: ClassVar[str] = "MODEL"

    meta_architecture: str = option("MaskFormer", NAME, "")
    device: str = option(
        "auto",
        Text(pattern=r"auto|cpu|cuda(:\d+)?", like="'auto', 'cpu', 'cuda' or 'cuda:NUMBER'"),
        '"cuda" where there is one, else "cpu"',
    )
    num_classes: int = option(0, COUNT, "K; must equal the data set's")
    classifier: str = option(
        "linear",
        one_of("linear", "text", "none"),
        '"linear" (Mask2Former), "text" (M2F-Lang, DEARLi Sec. 3.2), "none" (class-agnostic)',
    )
    deform_attn_impl: str = option(
        "auto", one_of("auto", "grid_sample", "gather", "triton"), "see modeling/mask2former/deformable_attention.py"
    )
    pixel_mean: list[float] = option(
        [],
        Items(Number(0, 255), (0, 3)),
        "of 0..255 RGB; [] = what the backbone's weights expect, see docs/backbones.md",
    )
    pixel_std: list[float] = option([], Items(POSITIVE, (0, 3)), "")


@dataclass(frozen=True)
class Backbone(Options):
    """The image network."""

    SECTION: ClassVar[str] = "MODEL.BACKBONE"

    name: str = option("TimmBackbone", NAME, "or OpenCLIPConvNeXt, OpenCLIPViT, build_resnet_backbone (detectron2)")
    arch: str = option("resnet50", NAME, "name of the timm or open_clip model")
    weights: str = option("", PATH, 'pretrained tag, "pretrained", "package:NAME", "shipped", a file, or "" (random)')
    tag: str = option("", TEXT, 'pretrained tag that a file in WEIGHTS is of, where it must be told; "own" = none')
    freeze: bool = option(False, SWITCH, "")
    freeze_norm: bool = option(False, SWITCH, "batch norms of a timm network keep statistics and weights (FrozenBN)")
    trainable_blocks: int = option(
        -1,
        Number(-1, whole=True),
        "last blocks of an OpenCLIP image tower, or of a plain timm ViT, that are trained, where it is not frozen; -1 = all of it",
    )
    pyramid_dim: int = option(256, POSITIVE_COUNT, "channels of the feature pyramid of plain ViTs")
    layers: tuple[int, ...] = option(
        (),
        Items(COUNT, (0, 4), rising=True),
        "four blocks of a plain timm ViT, from 0 on, that make the pyramid; () = its last one",
    )
    level_dims: tuple[int, ...] = option(
        (48, 96, 192, 384), Items(POSITIVE_COUNT, (4,)), "channels of the pyramid of LAYERS"
    )
    checkpoint_blocks: bool = option(False, SWITCH, "of a timm network: less memory, a forward pass more")


@dataclass(frozen=True)
class PixelDecoder(Options):
    """MSDeformAttn pixel decoder (Mask2Former, Sec. 3.2.2)."""

    SECTION: ClassVar[str] = "MODEL.PIXEL_DECODER"

    dim: int = option(256, POSITIVE_COUNT, "")
    feedforward_dim: int = option(1024, POSITIVE_COUNT, "")
    heads: int = option(8, POSITIVE_COUNT, "")
    layers: int = option(6, POSITIVE_COUNT, "")
    points: int = option(4, POSITIVE_COUNT, "")


@dataclass(frozen=True)
class MaskFormerOptions(Options):
    """Transformer decoder, matcher and criterion (Mask2Former, Sec. 4.1)."""

    SECTION: ClassVar[str] = "MODEL.MASK_FORMER"

    hidden_dim: int = option(256, POSITIVE_COUNT, "")
    mask_dim: int = option(256, POSITIVE_COUNT, "")
    num_queries: int = option(100, COUNT, "")
    heads: int = option(8, POSITIVE_COUNT, "")
    feedforward_dim: int = option(2048, POSITIVE_COUNT, "")
    layers: int = option(9, POSITIVE_COUNT, "")
    class_weight: float = option(2.0, WEIGHT, "")
    mask_weight: float = option(5.0, WEIGHT, "")
    dice_weight: float = option(5.0, WEIGHT, "")
    no_object_weight: float = option(0.1, WEIGHT, "")
    train_num_points: int = option(12544, POSITIVE_COUNT, "")
    oversample_ratio: float = option(3.0, Number(1), "")
    importance_sample_ratio: float = option(0.75, SHARE, "")


@dataclass(frozen=True)
class TextOptions(Options):
    """Class names and the text tower."""

    SECTION: ClassVar[str] = "MODEL.TEXT"

    class_names: str = option("", PATH, 'file of `id:name,synonym,...`; "" = the data set\'s own, see docs/m2f_lang.md')
    templates: str = option(
        "vild", Text(filled=True, path=True), '14, or "imagenet" (80), "simple" (7), "photo", "name", or a file of them'
    )
    encoder: str = option("", TEXT, 'open_clip model beside a backbone without text (HVL); "" = the backbone\'s own')
    weights: str = option("", PATH, 'of that model: pretrained tag, "shipped" or a file')
    tag: str = option("", TEXT, "as MODEL.BACKBONE.TAG")


@dataclass(frozen=True)
class Ensemble(Options):
    """Geometric ensembling with zero-shot CLIP (DEARLi, eq. 6)."""

    SECTION: ClassVar[str] = "MODEL.ENSEMBLE"

    alpha: float = option(0.6, SHARE, "weight of the learned posterior (DEARLi, Tab. 8)")
    at_inference: bool = option(True, SWITCH, "")
    in_pseudo_labels: bool = option(True, SWITCH, "")
    empty_masks: str = option(
        "uniform",
        one_of("uniform", "zero_vector"),
        'zero-shot posterior of a mask that covers no cell of CLIP\'s features: "uniform", so that the learned one decides; or "zero_vector", what CLIP\'s head makes of zeros, the same for all such masks, as in the authors\' code',
    )


@dataclass(frozen=True)
class DPT(Options):
    """Used where MODEL.META_ARCHITECTURE is "DPTSegmenter" or "SegKC", there of the junior."""

    SECTION: ClassVar[str] = "MODEL.DPT"

    dim: int = option(64, POSITIVE_COUNT, "channels of the fused maps")
    norm: str = option(
        "NONE", one_of("NONE", "BN", "GN"), 'the head of UniMatch V2; or with "BN" (over all GPUs) or "GN", see DPTHead'
    )
    loss_weight: float = option(1.0, POSITIVE, "of labelled images")
    feature_dropout: bool = option(False, SWITCH, "channels of unlabelled images (UniMatch V2)")


@dataclass(frozen=True)
class Datasets(Options):
    """Which images play which part."""

    SECTION: ClassVar[str] = "DATASETS"

    unseen_classes: tuple[str, ...] = option(
        (), NAMES, "names that training must not see (zero-shot); removed when labels are read"
    )
    unlabeled: tuple[str, ...] = option(
        (), NAMES, "names of data sets or views; their annotations are never read for training"
    )
    source: tuple[str, ...] = option(
        (), NAMES, "labelled data of another domain, a stream of its own; classes as those of DATASETS.TRAIN"
    )
    partition: str = option(
        "",
        Text(like="a text; in a YAML file in quotes, such as '1_8', which would be the number 18"),
        'fills the word PARTITION in names above, such as "ade20k_panoptic_train@PARTITION": one that is published (data/partitions.py), a fraction, a number or a list file as in data/catalog.py, or "all"; "n0": no labels, with DATASETS.SOURCE',
    )
    masks: str = option("", PATH, 'folder of `dearli masks generate`; targets where MODEL.CLASSIFIER is "none"')
    allow_overlap: bool = option(False, SWITCH, "True: images of TEST may be in TRAIN, SOURCE or UNLABELED too")


@dataclass(frozen=True)
class CustomData(Options):
    """Own data: see data/custom.py and docs/custom_data.md; used where ROOT is set."""

    SECTION: ClassVar[str] = "DATASETS.CUSTOM"

    root: str = option("", PATH, "folder that holds the following")
    images: str = option("images", NAME, "folder of labelled images, subfolders included")
    masks: str = option("masks", NAME, "folder of PNG index masks (value = class id), or of panoptic PNG files")
    panoptic_json: str = option("", TEXT, 'COCO-panoptic JSON file; "" = index masks')
    unlabeled: str = option("unlabeled", TEXT, "folder of images without masks")
    classes: list[str] = option(
        [],
        NAMES,
        'lines "ID thing|stuff NAME, SYNONYM", or one file of them; [] = ROOT/classes.txt, or the JSON file where there is one',
    )
    ignore_value: int = option(
        255, Number(-1, 2**16 - 1, whole=True), "pixel value in index masks that means 'ignore'; -1 = none"
    )
    val_fraction: float = option(0.2, PART, "of the labelled images, held back for validation; 0 = none")
    val: str = option(
        "", PATH, "in place of VAL_FRACTION: list file (.txt) or subfolder of IMAGES with the images held back"
    )
    allow_absent_classes: bool = option(False, SWITCH, "True: classes that no labelled image shows do not stop the run")
    min_labeled: float = option(
        0.05, SHARE, "of an image's pixels; with less in most images the run stops; 0 = no check"
    )
    min_thing_area: int = option(16, COUNT, "pixels; smaller connected regions of a thing class are ignored")


@dataclass(frozen=True)
class SemiSupervised(Options):
    """Semi-supervised training (DEARLi, Sec. 4 and supplement A); used where DATASETS.UNLABELED is set."""

    SECTION: ClassVar[str] = "SSL"

    ims_per_batch: int = option(
        8, POSITIVE_COUNT, "unlabelled images in a step, beside SOLVER.IMS_PER_BATCH labelled ones"
    )
    source_ims_per_batch: int = option(8, POSITIVE_COUNT, "images of DATASETS.SOURCE in a step")
    loss_weight: float = option(1.0, WEIGHT, "of the losses on pseudo-labels")
    ema_decay: float = option(0.999, PART, "")
    ema_ramp: bool = option(
        True,
        SWITCH,
        "the decay of step t is min(1 - 1 / (t + 1), EMA_DECAY), so the first update copies the student; False, or with TEACHER_WEIGHTS or BURN_IN: it is EMA_DECAY",
    )
    start: int = option(
        0, COUNT, "step from which unlabelled images take part; until then labels only, and the teacher is the student"
    )
    burn_in: int = option(
        0, COUNT, "steps from START on during which the teacher keeps its weights; then it becomes the student"
    )
    teacher_weights: str = option("", PATH, 'file the teacher starts from; "" = the student\'s start weights')
    object_threshold: float = option(0.0, SHARE, "of the class posterior of a pseudo-segment")
    overlap_threshold: float = option(0.8, SHARE, "share of its own mask that a pseudo-segment must win")
    min_area: int = option(0, COUNT, "pixels of a pseudo-segment")
    confidence: float = option(
        0.95, SHARE, "semantic pseudo-labels: least probability of a pixel's class, else it carries no loss"
    )
    jitter: tuple[float, ...] = option(
        (0.8, 0.8, 0.8, 0.2), Items(WEIGHT, (4,)), "strong view: brightness, contrast, saturation, hue"
    )
    jitter_probability: float = option(1.0, SHARE, "")
    greyscale: float = option(0.2, SHARE, "probability")
    blur: float = option(0.5, SHARE, "probability")
    blur_sigma: tuple[float, ...] = option((0.1, 2.0), RANGE, "pixels")
    strong_views: int = option(1, one_of(1, 2), "of each unlabelled image, 1 or 2")
    mix: str = option(
        "cutmix", one_of("cutmix", "classmix"), 'or "classmix": half of the classes of another image in the batch'
    )
    cutmix: float = option(
        0.5, SHARE, "probability of a paste per image, 0 = off; needs two unlabelled images a process"
    )
    cutmix_area: tuple[float, ...] = option(
        (0.02, 0.4), Items(Number(0, 1, above=True), (2,), rising=True), "of the crop, drawn evenly"
    )
    cutmix_aspect: tuple[float, ...] = option(
        (0.3, 1 / 0.3), RANGE, "height / width, drawn evenly (as UniMatch and DEARLi)"
    )
    picture_period: int = option(
        1000, COUNT, "iterations between pictures of weak views, pseudo-labels and mixed strong views; 0 = none"
    )
    monitor_period: int = option(
        0, COUNT, "iterations between scores of the pseudo-labels against held-back annotations; 0 = never"
    )
    monitor_images: int = option(64, POSITIVE_COUNT, "")


@dataclass(frozen=True)
class Input(Options):
    """Sizes, crops and augmentation."""

    SECTION: ClassVar[str] = "INPUT"

    format: str = option("RGB", one_of("RGB"), "")
    crop_size: int = option(640, SIDE, "pixels, square")
    scale_range: tuple[float, ...] = option((0.5, 2.0), RANGE, "short side / CROP_SIZE, in steps of 0.1")
    source_scale_range: tuple[float, ...] = option(
        (), Items(POSITIVE, (0, 2), rising=True), "of images of DATASETS.SOURCE; () = SCALE_RANGE"
    )
    max_size_train: int = option(2560, POSITIVE_COUNT, "")
    min_size_test: int = option(640, COUNT, "")
    max_size_test: int = option(2560, POSITIVE_COUNT, "")
    color_aug_ssd: bool = option(True, SWITCH, "of labelled images")
    jitter: tuple[float, ...] = option(
        (),
        Items(WEIGHT, (0, 4)),
        "of labelled images, instead: brightness, contrast, saturation, hue as SSL.JITTER; () = none",
    )
    targets: str = option(
        "panoptic",
        one_of("panoptic", "semantic"),
        'or "semantic": one segment a class, unannotated pixels carry no loss',
    )
    pad_value: int = option(128, Number(0, 255, whole=True), "0..255; padded pixels carry no loss")


@dataclass(frozen=True)
class DataLoading(Options):
    """Order and workers."""

    SECTION: ClassVar[str] = "DATALOADER"

    num_workers: int = option(4, COUNT, "")
    rare_class_sampling: bool = option(
        False, SWITCH, "of labelled images: first a class, rare ones more often, then an image of it"
    )
    rare_class_temperature: float = option(
        0.01, POSITIVE, "T of softmax((1 - f) / T), f = share of annotated pixels (DAFormer)"
    )
    rare_class_area: float = option(0.005, PART, "share of an image from which on it counts for a class")


@dataclass(frozen=True)
class Solver(Options):
    """Optimisation."""

    SECTION: ClassVar[str] = "SOLVER"

    epochs: float = option(
        0.0,
        Number(0),
        'length in passes in place of SOLVER.MAX_ITER; the one that is given last counts. Passes over the images of EPOCH_OF: "unlabeled" (with labels alone: what their partition leaves), "labeled", or "all" of the training sets',
    )
    epoch_of: str = option("unlabeled", one_of("unlabeled", "labeled", "all"), "")
    epoch_processes: int = option(
        0,
        COUNT,
        "0 = an epoch may end inside a batch; else it has the whole batches that PyTorch's DistributedSampler gives this many processes",
    )
    base_lr: float = option(1e-4, POSITIVE, "")
    weight_decay: float = option(0.05, WEIGHT, "")
    weight_decay_norm: float = option(0.0, WEIGHT, "")
    weight_decay_embed: float = option(
        0.0, WEIGHT, "embeddings, tokens, prompts, and scales and gates that stand alone"
    )
    backbone_multiplier: float = option(0.1, WEIGHT, "of the learning rate, for a backbone that is not frozen")
    schedule: str = option("poly", one_of("poly", "exponential"), 'or "exponential"')
    poly_power: float = option(0.9, WEIGHT, "")
    decay: float = option(0.9, Number(0, 1, above=True), "of an exponential schedule, in every tenth of the run")
    warmup_iters: int = option(0, COUNT, "")
    accumulation_steps: int = option(1, POSITIVE_COUNT, "forward passes per optimiser step; IMS_PER_BATCH images each")
    max_bad_steps: int = option(
        10, COUNT, "skipped steps in a row with a loss that is not finite, before the run stops"
    )
    keep_checkpoints: int = option(
        2, POSITIVE_COUNT, "latest periodic checkpoints kept beside the best and the final one"
    )


@dataclass(frozen=True)
class GradientClipping(Options):
    """Gradient clipping."""

    SECTION: ClassVar[str] = "SOLVER.CLIP_GRADIENTS"

    enabled: bool = option(True, SWITCH, "")
    clip_type: str = option("full_model", one_of("full_model"), "the only one: one norm over all parameters")
    clip_value: float = option(0.01, POSITIVE, "")


@dataclass(frozen=True)
class MixedPrecision(Options):
    """Mixed precision."""

    SECTION: ClassVar[str] = "SOLVER.AMP"

    dtype: str = option("bfloat16", one_of("bfloat16", "float16"), 'or "float16", with loss scaling')


@dataclass(frozen=True)
class Test(Options):
    """Evaluation and read-out."""

    SECTION: ClassVar[str] = "TEST"

    panoptic_on: bool = option(True, SWITCH, "")
    semantic_on: bool = option(True, SWITCH, "")
    instance_on: bool = option(False, SWITCH, "")
    object_threshold: float = option(0.8, SHARE, "")
    overlap_threshold: float = option(0.8, SHARE, "")
    amp: bool = option(False, SWITCH, "evaluate in fp32, as the published codes do; True = in SOLVER.AMP.DTYPE, faster")
    weights: str = option(
        "student",
        one_of("student", "teacher", "both"),
        'or "teacher", or "both": whose weights an evaluation uses; the best one is the first\'s',
    )
    window: int = option(
        0, COUNT, "pixels; semantic scores as the mean over sliding windows of this side, 0 = whole images"
    )
    window_stride: int = option(0, COUNT, "pixels; 0 = two thirds of the window")
    best_metric: str = option(
        "panoptic/PQ",
        Text(pattern=SCORE_PATTERN, like="'' or a score such as 'panoptic/PQ' or 'semantic/mIoU'"),
        'which checkpoint is `model_best.pth`; "" = none is, the final one counts',
    )
    pictures: int = option(8, COUNT, "overlays written after an evaluation")


SECTIONS: tuple[type[Options], ...] = (
    General,
    Model,
    Backbone,
    PixelDecoder,
    MaskFormerOptions,
    TextOptions,
    Ensemble,
    DPT,
    Datasets,
    CustomData,
    SemiSupervised,
    Input,
    DataLoading,
    Solver,
    GradientClipping,
    MixedPrecision,
    Test,
)
