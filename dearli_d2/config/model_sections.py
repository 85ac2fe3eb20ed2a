"""The sections of the shared parts of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .options import Options, option
from .values import (
    COUNT,
    NAME,
    PATH,
    POSITIVE,
    POSITIVE_COUNT,
    SHARE,
    SWITCH,
    TEXT,
    WEIGHT,
    Items,
    Number,
    Text,
    one_of,
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
        'Implementation of deformable attention. "auto" takes "triton" on a GPU where Triton works, "gather" on a CPU, else "grid_sample". "gather" runs on CPUs only. All give the same result.',
    )
    compile: bool = option(
        False,
        SWITCH,
        "Compiles both decoders of Mask2Former in training with torch.compile. The first steps then take minutes. It needs Triton and a C compiler on a GPU, a C++ compiler on a CPU.",
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
        "TimmBackbone, OpenCLIPConvNeXt, OpenCLIPViT, OpenCLIPEVA, SwinBackbone, or detectron2's build_resnet_backbone.",
    )
    arch: str = option("resnet50", NAME, "Name of the model in timm or open_clip; of a Swin, as timm names it.")
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
        "Computes the blocks of a timm network or an OpenCLIP image tower again in the backward pass. This saves memory and costs a forward pass of the blocks.",
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
    mask_pooling: bool = option(
        False, SWITCH, "Classifies a query with the mask features under its own mask too (FC-CLIP)."
    )
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
    seen: str = option(
        "",
        PATH,
        'Class names of the training, where others are predicted too: a list of this project ("coco_panoptic", "coco_objects", "ade20k", ...) or a file as in MODEL.TEXT.CLASS_NAMES. A class that shares no name with it is unseen. "" counts all as seen.',
    )
    alpha_unseen: float = option(
        0.2, SHARE, "ALPHA of the predictions for classes that are not SEEN (FC-CLIP). Pseudo-labels take ALPHA."
    )
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
    hard_pixels: int = option(
        0,
        COUNT,
        "Least number of pixels of a labelled image that its loss learns, the hardest ones (OHEM). 0 takes all pixels.",
    )
    hard_below: float = option(
        0.7, SHARE, "With HARD_PIXELS: pixels whose true class has at most this probability are learned too."
    )
