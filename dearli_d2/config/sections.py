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
        0,
        SEED,
        "Seeds everything that is random. detectron2's default -1 draws a seed, so that a run could not be resumed exactly.",
    )


@dataclass(frozen=True)
class Model(Options):
    """The model as a whole."""

    SECTION: ClassVar[str] = "MODEL"

    meta_architecture: str = option("MaskFormer", NAME, "Architecture of the method, such as MaskFormer, HVL or SegKC.")
    device: str = option(
        "auto",
        Text(pattern=r"auto|cpu|cuda(:\d+)?", like="'auto', 'cpu', 'cuda' or 'cuda:NUMBER'"),
        '"auto" takes "cuda" where there is a GPU, else "cpu".',
    )
    num_classes: int = option(0, COUNT, "Number of classes. It must be that of the data set.")
    classifier: str = option(
        "linear",
        one_of("linear", "text", "none"),
        '"linear" as in Mask2Former, "text" for text embeddings as in DEARLi (Sec. 3.2), or "none" for masks without classes.',
    )
    deform_attn_impl: str = option(
        "auto",
        one_of("auto", "grid_sample", "gather", "triton"),
        'Implementation of deformable attention. "auto" takes Triton on a GPU that has it. All give the same result.',
    )
    pixel_mean: list[float] = option(
        [],
        Items(Number(0, 255), (0, 3)),
        "Mean of the images in RGB, 0 to 255. [] takes what the weights of the backbone expect.",
    )
    pixel_std: list[float] = option([], Items(POSITIVE, (0, 3)), "Standard deviation of the images, as PIXEL_MEAN.")


@dataclass(frozen=True)
class Backbone(Options):
    """The image network."""

    SECTION: ClassVar[str] = "MODEL.BACKBONE"

    name: str = option(
        "TimmBackbone",
        NAME,
        "TimmBackbone, OpenCLIPConvNeXt, OpenCLIPViT, OpenCLIPEVA, or detectron2's build_resnet_backbone.",
    )
    arch: str = option("resnet50", NAME, "Name of the model in timm or open_clip.")
    weights: str = option(
        "",
        PATH,
        'Start weights: a pretrained tag, "pretrained" for timm\'s default, "package:NAME", "shipped" for the tiny one of this project, a file, or "" for random ones.',
    )
    tag: str = option(
        "",
        TEXT,
        'Pretrained tag that a file in WEIGHTS belongs to, where its name does not say so. "own" means weights of your own.',
    )
    freeze: bool = option(False, SWITCH, "Trains no weight of the backbone.")
    freeze_norm: bool = option(False, SWITCH, "Batch norms of a timm network keep their statistics and weights.")
    trainable_blocks: int = option(
        -1,
        Number(-1, whole=True),
        "Trains only the last blocks of an OpenCLIP image tower or a plain ViT of timm. -1 trains all of it.",
    )
    pyramid_dim: int = option(256, POSITIVE_COUNT, "Channels of the feature pyramid of a plain ViT.")
    layers: tuple[int, ...] = option(
        (),
        Items(COUNT, (0, 4), rising=True),
        "Four blocks of a plain ViT of timm whose features make the pyramid, counted from 0. () takes the last block.",
    )
    level_dims: tuple[int, ...] = option(
        (48, 96, 192, 384), Items(POSITIVE_COUNT, (4,)), "Channels of the four levels of the pyramid of LAYERS."
    )
    checkpoint_blocks: bool = option(
        False,
        SWITCH,
        "Computes the blocks of a timm network again in the backward pass. This saves memory and costs a forward pass.",
    )


@dataclass(frozen=True)
class PixelDecoder(Options):
    """MSDeformAttn pixel decoder (Mask2Former, Sec. 3.2.2)."""

    SECTION: ClassVar[str] = "MODEL.PIXEL_DECODER"

    dim: int = option(256, POSITIVE_COUNT, "Channels of its maps.")
    feedforward_dim: int = option(1024, POSITIVE_COUNT, "Channels inside its feed-forward layers.")
    heads: int = option(8, POSITIVE_COUNT, "Heads of its deformable attention.")
    layers: int = option(6, POSITIVE_COUNT, "Number of its layers.")
    points: int = option(4, POSITIVE_COUNT, "Points that a head samples on each level.")


@dataclass(frozen=True)
class MaskFormerOptions(Options):
    """Transformer decoder, matcher and criterion (Mask2Former, Sec. 4.1)."""

    SECTION: ClassVar[str] = "MODEL.MASK_FORMER"

    hidden_dim: int = option(256, POSITIVE_COUNT, "Channels of the queries.")
    mask_dim: int = option(256, POSITIVE_COUNT, "Channels of mask embeddings and mask features.")
    num_queries: int = option(100, COUNT, "Number of queries.")
    heads: int = option(8, POSITIVE_COUNT, "Attention heads.")
    feedforward_dim: int = option(2048, POSITIVE_COUNT, "Channels inside the feed-forward layers.")
    layers: int = option(9, POSITIVE_COUNT, "Number of decoder layers.")
    class_weight: float = option(2.0, WEIGHT, "Weight of the classification in cost and loss.")
    mask_weight: float = option(5.0, WEIGHT, "Weight of the mask cross-entropy in cost and loss.")
    dice_weight: float = option(5.0, WEIGHT, "Weight of the dice term in cost and loss.")
    no_object_weight: float = option(0.1, WEIGHT, 'Weight of the class "no object" in the classification loss.')
    train_num_points: int = option(12544, POSITIVE_COUNT, "Points of a mask that cost and loss are computed on.")
    oversample_ratio: float = option(3.0, Number(1), "Candidates drawn for each point of the loss.")
    importance_sample_ratio: float = option(
        0.75, SHARE, "Share of the points that are taken where the mask is most uncertain."
    )


@dataclass(frozen=True)
class TextOptions(Options):
    """Class names and the text tower."""

    SECTION: ClassVar[str] = "MODEL.TEXT"

    class_names: str = option(
        "", PATH, 'File with a line `id:name,synonym,...` for each class. "" takes the names of the data set.'
    )
    templates: str = option(
        "vild",
        Text(filled=True, path=True),
        'Prompt templates: "vild" (14), "imagenet" (80), "simple" (7), "photo", "name", or a file with one in each line.',
    )
    encoder: str = option(
        "",
        TEXT,
        'Model of open_clip that reads text beside a backbone without a text tower. "" takes the backbone\'s own.',
    )
    weights: str = option("", PATH, 'Weights of ENCODER: a pretrained tag, "shipped", or a file.')
    tag: str = option("", TEXT, "As MODEL.BACKBONE.TAG, for ENCODER.")


@dataclass(frozen=True)
class Ensemble(Options):
    """Geometric ensembling with zero-shot CLIP (DEARLi, eq. 6)."""

    SECTION: ClassVar[str] = "MODEL.ENSEMBLE"

    alpha: float = option(0.6, SHARE, "Weight of the learned posterior (DEARLi, Tab. 8). The rest is CLIP's.")
    at_inference: bool = option(True, SWITCH, "Ensembles the predictions.")
    in_pseudo_labels: bool = option(True, SWITCH, "Ensembles the pseudo-labels of the teacher.")
    empty_masks: str = option(
        "uniform",
        one_of("uniform", "zero_vector"),
        'CLIP\'s posterior of a mask that covers no cell of its features. "uniform" leaves the decision to the learned one. "zero_vector" takes what CLIP\'s head makes of zeros, as the authors\' code does.',
    )


@dataclass(frozen=True)
class DPT(Options):
    """Used where MODEL.META_ARCHITECTURE is "DPTSegmenter" or "SegKC", there of the junior."""

    SECTION: ClassVar[str] = "MODEL.DPT"

    dim: int = option(64, POSITIVE_COUNT, "Channels of the fused maps.")
    norm: str = option(
        "NONE",
        one_of("NONE", "BN", "GN"),
        '"NONE" is the head of UniMatch V2. "BN" normalises over the images of all GPUs, "GN" within an image.',
    )
    loss_weight: float = option(1.0, POSITIVE, "Weight of the loss of labelled images.")
    feature_dropout: bool = option(False, SWITCH, "Drops channels of the features of unlabelled images (UniMatch V2).")


@dataclass(frozen=True)
class Datasets(Options):
    """The data sets of each role."""

    SECTION: ClassVar[str] = "DATASETS"

    unseen_classes: tuple[str, ...] = option(
        (),
        NAMES,
        "Names of classes that training must not see (zero-shot). Their segments are removed when labels are read.",
    )
    unlabeled: tuple[str, ...] = option(
        (), NAMES, "Data sets or views without labels. Training never reads their annotations."
    )
    source: tuple[str, ...] = option(
        (), NAMES, "Labelled data of another domain, as a stream of its own. Its classes are those of DATASETS.TRAIN."
    )
    partition: str = option(
        "",
        Text(like="a text; in a YAML file in quotes, such as '1_8', which would be the number 18"),
        'Fills the word PARTITION in names of data sets, such as "ade20k_panoptic_train@PARTITION". It is a published partition, a fraction, a number such as n100, a list file, or "all". With DATASETS.SOURCE "n0" means no labels.',
    )
    masks: str = option(
        "",
        PATH,
        'Folder that `dearli masks generate` wrote. Its masks are the targets where MODEL.CLASSIFIER is "none".',
    )
    allow_overlap: bool = option(False, SWITCH, "Allows images of TEST in TRAIN, SOURCE or UNLABELED.")


@dataclass(frozen=True)
class CustomData(Options):
    """Own data: see data/custom.py and docs/custom_data.md; used where ROOT is set."""

    SECTION: ClassVar[str] = "DATASETS.CUSTOM"

    root: str = option("", PATH, "Folder of the data. All other paths of this section are below it.")
    images: str = option("images", NAME, "Folder of labelled images, with its subfolders.")
    masks: str = option(
        "masks", NAME, "Folder of PNG index masks, whose values are class ids, or of panoptic PNG files."
    )
    panoptic_json: str = option("", TEXT, 'COCO-panoptic JSON file. "" means index masks.')
    unlabeled: str = option("unlabeled", TEXT, "Folder of images without masks.")
    classes: list[str] = option(
        [],
        NAMES,
        'Lines "ID thing|stuff NAME, SYNONYM", or one file of them. [] takes ROOT/classes.txt, or the classes of PANOPTIC_JSON.',
    )
    ignore_value: int = option(
        255,
        Number(-1, 2**16 - 1, whole=True),
        'Pixel value of index masks that means "ignore". -1 means that there is none.',
    )
    val_fraction: float = option(0.2, PART, "Share of the labelled images that is held back for validation.")
    val: str = option(
        "", PATH, "List file (.txt) or subfolder of IMAGES with the images held back. It replaces VAL_FRACTION."
    )
    allow_absent_classes: bool = option(False, SWITCH, "Lets a run start although no labelled image shows some class.")
    min_labeled: float = option(
        0.05, SHARE, "The run stops where most images have labels on a smaller share of their pixels. 0 checks nothing."
    )
    min_thing_area: int = option(16, COUNT, "Connected regions of a thing class with fewer pixels are ignored.")


@dataclass(frozen=True)
class SemiSupervised(Options):
    """Semi-supervised training (DEARLi, Sec. 4 and supplement A); used where DATASETS.UNLABELED is set."""

    SECTION: ClassVar[str] = "SSL"

    ims_per_batch: int = option(
        8, POSITIVE_COUNT, "Unlabelled images of a step, beside SOLVER.IMS_PER_BATCH labelled ones."
    )
    source_ims_per_batch: int = option(8, POSITIVE_COUNT, "Images of DATASETS.SOURCE in a step.")
    loss_weight: float = option(1.0, WEIGHT, "Weight of the losses on pseudo-labels.")
    ema_decay: float = option(0.999, PART, "Share of itself that the teacher keeps in a step.")
    ema_ramp: bool = option(
        True,
        SWITCH,
        "The decay of step t is min(1 - 1 / (t + 1), EMA_DECAY), so that the first update copies the student. With TEACHER_WEIGHTS or BURN_IN there is no ramp.",
    )
    start: int = option(0, COUNT, "Step from which unlabelled images take part. Until then the teacher is the student.")
    burn_in: int = option(
        0, COUNT, "Steps after START in which the teacher keeps its weights. Then it becomes the student."
    )
    teacher_weights: str = option(
        "", PATH, 'File that the teacher starts from. "" means the start weights of the student.'
    )
    object_threshold: float = option(0.0, SHARE, "Least class probability of a pseudo-segment.")
    overlap_threshold: float = option(
        0.8, SHARE, "Share of its own mask that a pseudo-segment must win against the others."
    )
    min_area: int = option(0, COUNT, "Least number of pixels of a pseudo-segment.")
    confidence: float = option(
        0.95, SHARE, "Least probability of a pixel's class in semantic pseudo-labels. Other pixels carry no loss."
    )
    jitter: tuple[float, ...] = option(
        (0.8, 0.8, 0.8, 0.2), Items(WEIGHT, (4,)), "Strong view: ranges of brightness, contrast, saturation and hue."
    )
    jitter_probability: float = option(1.0, SHARE, "Probability of the jitter.")
    greyscale: float = option(0.2, SHARE, "Probability of a grey image.")
    blur: float = option(0.5, SHARE, "Probability of a blur.")
    blur_sigma: tuple[float, ...] = option((0.1, 2.0), RANGE, "Range of its standard deviation in pixels.")
    strong_views: int = option(1, one_of(1, 2), "Strong views of each unlabelled image.")
    mix: str = option(
        "cutmix",
        one_of("cutmix", "classmix"),
        '"cutmix" pastes a box of another image of the batch, "classmix" half of its classes.',
    )
    cutmix: float = option(
        0.5, SHARE, "Probability that an image is mixed. 0 mixes none. It needs two unlabelled images in a process."
    )
    cutmix_area: tuple[float, ...] = option(
        (0.02, 0.4),
        Items(Number(0, 1, above=True), (2,), rising=True),
        "Range of the box's share of the crop, drawn evenly.",
    )
    cutmix_aspect: tuple[float, ...] = option(
        (0.3, 1 / 0.3), RANGE, "Range of the box's height / width, drawn evenly as in UniMatch and DEARLi."
    )
    picture_period: int = option(
        1000, COUNT, "Steps between pictures of weak views, pseudo-labels and mixed strong views. 0 writes none."
    )
    monitor_period: int = option(
        0, COUNT, "Steps between scores of the pseudo-labels against held-back annotations. 0 computes none."
    )
    monitor_images: int = option(64, POSITIVE_COUNT, "Images of each such score.")


@dataclass(frozen=True)
class Input(Options):
    """Sizes, crops and augmentation."""

    SECTION: ClassVar[str] = "INPUT"

    format: str = option("RGB", one_of("RGB"), "Order of the colours.")
    crop_size: int = option(640, SIDE, "Side of the square crop in pixels.")
    scale_range: tuple[float, ...] = option(
        (0.5, 2.0), RANGE, "Range of the short side divided by CROP_SIZE, drawn in steps of 0.1."
    )
    source_scale_range: tuple[float, ...] = option(
        (), Items(POSITIVE, (0, 2), rising=True), "The same for images of DATASETS.SOURCE. () takes SCALE_RANGE."
    )
    max_size_train: int = option(2560, POSITIVE_COUNT, "Longest side of a resized training image in pixels.")
    min_size_test: int = option(640, COUNT, "Short side at evaluation in pixels.")
    max_size_test: int = option(2560, POSITIVE_COUNT, "Longest side at evaluation in pixels.")
    color_aug_ssd: bool = option(True, SWITCH, "Changes the colours of labelled images as SSD does.")
    jitter: tuple[float, ...] = option(
        (),
        Items(WEIGHT, (0, 4)),
        "Changes the colours of labelled images by brightness, contrast, saturation and hue as SSL.JITTER. () leaves them.",
    )
    targets: str = option(
        "panoptic",
        one_of("panoptic", "semantic"),
        '"panoptic", or "semantic": one segment for each class, and pixels without an annotation carry no loss.',
    )
    pad_value: int = option(128, Number(0, 255, whole=True), "Value of padded pixels, 0 to 255. They carry no loss.")


@dataclass(frozen=True)
class DataLoading(Options):
    """Order and workers."""

    SECTION: ClassVar[str] = "DATALOADER"

    num_workers: int = option(4, COUNT, "Processes that load each stream. 0 loads in the training process.")
    rare_class_sampling: bool = option(
        False, SWITCH, "Draws a class first, rare ones more often, then a labelled image that shows it (DAFormer)."
    )
    rare_class_temperature: float = option(
        0.01, POSITIVE, "T of the class probabilities softmax((1 - f) / T), where f is the share of annotated pixels."
    )
    rare_class_area: float = option(0.005, PART, "Share of an image from which on it counts for a class.")


@dataclass(frozen=True)
class Solver(Options):
    """Optimisation."""

    SECTION: ClassVar[str] = "SOLVER"

    epochs: float = option(
        0.0,
        Number(0),
        "Length of the run in passes over the images of EPOCH_OF, in place of MAX_ITER. The one that is given last counts.",
    )
    epoch_of: str = option(
        "unlabeled",
        one_of("unlabeled", "labeled", "all"),
        'Images that a pass counts: "unlabeled" (of a run with labels alone, those that the partition leaves), "labeled", or "all".',
    )
    epoch_processes: int = option(
        0,
        COUNT,
        "0 lets a pass end inside a batch. Else a pass has the whole batches that PyTorch's DistributedSampler gives this many processes.",
    )
    base_lr: float = option(1e-4, POSITIVE, "Learning rate.")
    weight_decay: float = option(0.05, WEIGHT, "Weight decay.")
    weight_decay_norm: float = option(0.0, WEIGHT, "Weight decay of norms.")
    weight_decay_embed: float = option(
        0.0, WEIGHT, "Weight decay of embeddings, tokens and prompts, and of scales and gates that stand alone."
    )
    backbone_multiplier: float = option(0.1, WEIGHT, "Factor of the learning rate for a backbone that is trained.")
    schedule: str = option("poly", one_of("poly", "exponential"), '"poly" or "exponential".')
    poly_power: float = option(0.9, WEIGHT, "Power of the poly schedule.")
    decay: float = option(
        0.9, Number(0, 1, above=True), "Factor of the exponential schedule for each tenth of the run."
    )
    warmup_iters: int = option(0, COUNT, "Steps in which the learning rate rises from 0.")
    accumulation_steps: int = option(1, POSITIVE_COUNT, "Forward passes of a step, with IMS_PER_BATCH images each.")
    max_bad_steps: int = option(
        10, COUNT, "Steps in a row that may be skipped because a loss is not finite. With more the run stops."
    )
    keep_checkpoints: int = option(
        2, POSITIVE_COUNT, "Latest checkpoints that are kept beside the best and the final one."
    )


@dataclass(frozen=True)
class GradientClipping(Options):
    """Gradient clipping."""

    SECTION: ClassVar[str] = "SOLVER.CLIP_GRADIENTS"

    enabled: bool = option(True, SWITCH, "Clips the gradients.")
    clip_type: str = option("full_model", one_of("full_model"), "One norm over all parameters.")
    clip_value: float = option(0.01, POSITIVE, "Largest norm.")


@dataclass(frozen=True)
class MixedPrecision(Options):
    """Mixed precision."""

    SECTION: ClassVar[str] = "SOLVER.AMP"

    dtype: str = option("bfloat16", one_of("bfloat16", "float16"), '"bfloat16", or "float16" with loss scaling.')


@dataclass(frozen=True)
class Test(Options):
    """Evaluation and read-out."""

    SECTION: ClassVar[str] = "TEST"

    panoptic_on: bool = option(True, SWITCH, "Computes panoptic quality.")
    semantic_on: bool = option(True, SWITCH, "Computes mIoU.")
    instance_on: bool = option(False, SWITCH, "Returns instances in predictions.")
    object_threshold: float = option(0.8, SHARE, "Least class probability of a segment.")
    overlap_threshold: float = option(0.8, SHARE, "Share of its own mask that a segment must win against the others.")
    amp: bool = option(
        False, SWITCH, "Evaluates in SOLVER.AMP.DTYPE. False evaluates in fp32, as the published codes do."
    )
    weights: str = option(
        "student",
        one_of("student", "teacher", "both"),
        'Whose weights an evaluation uses: "student", "teacher" or "both". With "both" the best checkpoint is the student\'s.',
    )
    window: int = option(
        0, COUNT, "Side in pixels of sliding windows whose semantic scores are averaged. 0 takes whole images."
    )
    window_stride: int = option(0, COUNT, "Distance of the windows in pixels. 0 takes two thirds of the window.")
    best_metric: str = option(
        "panoptic/PQ",
        Text(pattern=SCORE_PATTERN, like="'' or a score such as 'panoptic/PQ' or 'semantic/mIoU'"),
        'Score that decides which checkpoint becomes `model_best.pth`. "" keeps none.',
    )
    pictures: int = option(8, COUNT, "Pictures with predictions that an evaluation writes.")


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
