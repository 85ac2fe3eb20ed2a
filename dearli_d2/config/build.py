"""Every configuration key of the project: default, unit, source. Keys not listed here are detectron2's own."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as _detectron2_defaults

from ..data.custom import number_of_classes, settle
from ..errors import ConfigError
from ..files import beside_package
from ..pretrained import resolve_normalization
from .experiment import choose_length, fill_partition, output_folder, resolve_epochs
from .files import read_config_files
from .rules import validate
from .schema import SCHEMA, read_value, reads_text


def add_dearli_config(cfg: CfgNode) -> None:
    """Adds the project's keys to a detectron2 config, in place.

    A new key also needs a line in `schema.SCHEMA` that says what it accepts; `tests/test_config_schema.py` names the keys
    without one. Conditions on several keys go to `rules.py`.
    """
    cfg.SEED = 0  # of everything; detectron2's default -1 (random) would make runs impossible to resume exactly
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.MODEL.DEVICE = "auto"  # "cuda" where there is one, else "cpu"
    cfg.MODEL.NUM_CLASSES = 0  # K; must equal the data set's
    cfg.MODEL.CLASSIFIER = (
        "linear"  # "linear" (Mask2Former), "text" (M2F-Lang, DEARLi Sec. 3.2), "none" (class-agnostic)
    )
    cfg.MODEL.DEFORM_ATTN_IMPL = "auto"  # see modeling/mask2former/deformable_attention.py
    cfg.MODEL.PIXEL_MEAN = []  # of 0..255 RGB; [] = what the backbone's weights expect, see docs/backbones.md
    cfg.MODEL.PIXEL_STD = []

    cfg.MODEL.BACKBONE.NAME = "TimmBackbone"  # or OpenCLIPConvNeXt, OpenCLIPViT, build_resnet_backbone (detectron2)
    cfg.MODEL.BACKBONE.ARCH = "resnet50"  # name of the timm or open_clip model
    cfg.MODEL.BACKBONE.WEIGHTS = ""  # pretrained tag, "pretrained", "package:NAME", "shipped", a file, or "" (random)
    cfg.MODEL.BACKBONE.TAG = ""  # pretrained tag that a file in WEIGHTS is of, where it must be told; "own" = none
    cfg.MODEL.BACKBONE.FREEZE = False
    cfg.MODEL.BACKBONE.FREEZE_NORM = False  # batch norms of a timm network keep statistics and weights (FrozenBN)
    # last blocks of an OpenCLIP image tower, or of a plain timm ViT, that are trained, where it is not frozen; -1 = all of it
    cfg.MODEL.BACKBONE.TRAINABLE_BLOCKS = -1
    cfg.MODEL.BACKBONE.PYRAMID_DIM = 256  # channels of the feature pyramid of plain ViTs
    cfg.MODEL.BACKBONE.LAYERS = ()  # four blocks of a plain timm ViT, from 0 on, that make the pyramid; () = its last one
    cfg.MODEL.BACKBONE.LEVEL_DIMS = (48, 96, 192, 384)  # channels of the pyramid of LAYERS
    cfg.MODEL.BACKBONE.CHECKPOINT_BLOCKS = False  # of a timm network: less memory, a forward pass more

    cfg.MODEL.PIXEL_DECODER = CfgNode()  # MSDeformAttn pixel decoder (Mask2Former, Sec. 3.2.2)
    cfg.MODEL.PIXEL_DECODER.DIM = 256
    cfg.MODEL.PIXEL_DECODER.FEEDFORWARD_DIM = 1024
    cfg.MODEL.PIXEL_DECODER.HEADS = 8
    cfg.MODEL.PIXEL_DECODER.LAYERS = 6
    cfg.MODEL.PIXEL_DECODER.POINTS = 4

    cfg.MODEL.MASK_FORMER = CfgNode()  # transformer decoder, matcher and criterion (Mask2Former, Sec. 4.1)
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 256
    cfg.MODEL.MASK_FORMER.MASK_DIM = 256
    cfg.MODEL.MASK_FORMER.NUM_QUERIES = 100
    cfg.MODEL.MASK_FORMER.HEADS = 8
    cfg.MODEL.MASK_FORMER.FEEDFORWARD_DIM = 2048
    cfg.MODEL.MASK_FORMER.LAYERS = 9
    cfg.MODEL.MASK_FORMER.CLASS_WEIGHT = 2.0
    cfg.MODEL.MASK_FORMER.MASK_WEIGHT = 5.0
    cfg.MODEL.MASK_FORMER.DICE_WEIGHT = 5.0
    cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT = 0.1
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 12544
    cfg.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 3.0
    cfg.MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO = 0.75

    cfg.MODEL.TEXT = CfgNode()
    cfg.MODEL.TEXT.CLASS_NAMES = ""  # file of `id:name,synonym,...`; "" = the data set's own, see docs/m2f_lang.md
    cfg.MODEL.TEXT.TEMPLATES = "vild"  # 14, or "imagenet" (80), "simple" (7), "photo", "name", or a file of them
    cfg.MODEL.TEXT.ENCODER = ""  # open_clip model beside a backbone without text (HVL); "" = the backbone's own
    cfg.MODEL.TEXT.WEIGHTS = ""  # of that model: pretrained tag, "shipped" or a file
    cfg.MODEL.TEXT.TAG = ""  # as MODEL.BACKBONE.TAG
    cfg.MODEL.ENSEMBLE = CfgNode()  # geometric ensembling with zero-shot CLIP (DEARLi, eq. 6)
    cfg.MODEL.ENSEMBLE.ALPHA = 0.6  # weight of the learned posterior (DEARLi, Tab. 8)
    cfg.MODEL.ENSEMBLE.AT_INFERENCE = True
    cfg.MODEL.ENSEMBLE.IN_PSEUDO_LABELS = True
    # zero-shot posterior of a mask that covers no cell of CLIP's features: "uniform", so that the learned one decides; or
    # "zero_vector", what CLIP's head makes of zeros, the same for all such masks, as in the authors' code
    cfg.MODEL.ENSEMBLE.EMPTY_MASKS = "uniform"

    cfg.MODEL.HVL = CfgNode()  # used where MODEL.META_ARCHITECTURE is "HVL"
    cfg.MODEL.HVL.TEXTUAL_QUERIES = True  # HTQG; False = free queries alone, as in Mask2Former
    cfg.MODEL.HVL.REFINEMENT = True  # PTRM
    cfg.MODEL.HVL.JOINT_DECODER = True  # DQTD: textual and free queries attend to each other
    cfg.MODEL.HVL.PROMPT_TOKENS = 8
    cfg.MODEL.HVL.PER_CLASS_PROMPTS = False
    # where there is no ground truth a class is present by CLIP's view of the "image" (the paper), of its "dense" cells, or
    # always, "all"; a class that is called background always is
    cfg.MODEL.HVL.PRESENCE = "image"
    cfg.MODEL.HVL.PRESENCE_THRESHOLD = 0.05  # of the zero-shot posterior, relative to the best class's
    cfg.MODEL.HVL.INFERENCE = "marginal"  # over queries, or "argmax": the class of the strongest mask (the paper)
    # the paper gives no weights of L_div, L_prompt, L_align and L_mask: with these each has about a tenth of the gradient of the
    # segmentation losses at the parameters that it is for (benchmarks/hvl_gradients.py)
    cfg.MODEL.HVL.DIVERSITY_WEIGHT = 1.0  # L_div
    cfg.MODEL.HVL.PROMPT_WEIGHT = 0.4  # L_prompt = L_topo + L_anchor
    cfg.MODEL.HVL.ANCHOR_BETA = 1.0  # of the separating part of L_anchor
    cfg.MODEL.HVL.VL_WEIGHT = 0.15  # L_vl = ALIGN_WEIGHT L_align + MASK_WEIGHT L_mask
    cfg.MODEL.HVL.ALIGN_WEIGHT = 1.0
    cfg.MODEL.HVL.MASK_WEIGHT = 15.0  # lambda_mask
    cfg.MODEL.HVL.TEMPERATURE = 0.07  # of L_align
    cfg.MODEL.HVL.ENTROPY_WEIGHT = 0.01  # of unlabelled images

    cfg.MODEL.SPLIT = CfgNode()  # used where MODEL.META_ARCHITECTURE is "SplitMatching"
    cfg.MODEL.SPLIT.CANDIDATE_QUERIES = (
        50  # beside the MODEL.MASK_FORMER.NUM_QUERIES seen ones; 0 = no regions (baseline)
    )
    cfg.MODEL.SPLIT.RANDOM_QUERIES = 50  # at inference only
    cfg.MODEL.SPLIT.RANDOM_SEED = 0
    cfg.MODEL.SPLIT.COSINE_WEIGHT = 1.0  # L_cos
    cfg.MODEL.SPLIT.MFE_WEIGHT = 1.0  # L_MFE; 0 = no such head
    cfg.MODEL.SPLIT.MFE_TEMPERATURE = 0.07  # of its cosines
    cfg.MODEL.SPLIT.MFE_NORM = "GN"  # or "BN" (over all GPUs), "NONE" (Tab. 4)
    # class embedding of a region: "cls" of the image that shows it alone, the mean of CLIP's "dense" features in it, or
    # "dense_mlp", that mean through a learned two-layer MLP (Tab. 3)
    cfg.MODEL.SPLIT.CANDIDATE_EMBEDDING = "cls"
    cfg.MODEL.SPLIT.SEEN_PENALTY = 0.0  # taken from the seen classes' scores at inference (calibrated stacking)
    cfg.MODEL.SPLIT.REGIONS = CfgNode()  # clusters of CLIP's features in un-annotated pixels
    cfg.MODEL.SPLIT.REGIONS.CACHE = ""  # folder of `dearli regions`; "" = made in training
    cfg.MODEL.SPLIT.REGIONS.IMAGE_SIZE = 512  # pixels; the whole image as a square
    cfg.MODEL.SPLIT.REGIONS.WINDOWS = (8, 16)  # cells; their means are the first centroids
    cfg.MODEL.SPLIT.REGIONS.ITERATIONS = 10  # of K-means, at most
    cfg.MODEL.SPLIT.REGIONS.FUSION = 0.95  # cosine from which on two clusters are one
    cfg.MODEL.SPLIT.REGIONS.MIN_AREA = 0.01  # of the image
    cfg.MODEL.SPLIT.REGIONS.CROP_SIZE = 224  # pixels; masked images as CLIP embeds them

    cfg.MODEL.SEMIDAVIL = CfgNode()  # used where MODEL.META_ARCHITECTURE is "SemiDAViL"
    cfg.MODEL.SEMIDAVIL.FEATURE = "clip_vis_dense"  # map of the backbone that is classified; or res2 .. res5
    cfg.MODEL.SEMIDAVIL.GUIDANCE = True  # DLG: pixels and caption tokens attend to each other
    cfg.MODEL.SEMIDAVIL.GUIDANCE_DIM = 256  # of its keys and values
    cfg.MODEL.SEMIDAVIL.CAPTIONS = "file"  # of every image, see docs/semidavil.md; or "class_names", one for all images
    cfg.MODEL.SEMIDAVIL.HEAD = "upsample"  # or "dpt", or "mask2former": the core's queries, read out per pixel
    cfg.MODEL.SEMIDAVIL.HEAD_DIM = 256
    cfg.MODEL.SEMIDAVIL.LOSS = "dyce"  # of labelled pixels; or ce, weighted_ce, focal, dual_ce, dual_focal
    cfg.MODEL.SEMIDAVIL.LOSS_WEIGHT = 1.0
    cfg.MODEL.SEMIDAVIL.HARD_FRACTION = 0.2  # h of DyCE: share of the pixels that are mined
    cfg.MODEL.SEMIDAVIL.OMEGA = 0.5  # of DyCE: 1 = mean over mined pixels, 0 = sum of the means of their classes

    cfg.MODEL.DPT = CfgNode()  # used where MODEL.META_ARCHITECTURE is "DPTSegmenter" or "SegKC", there of the junior
    cfg.MODEL.DPT.DIM = 64  # channels of the fused maps
    cfg.MODEL.DPT.NORM = "NONE"  # the head of UniMatch V2; or with "BN" (over all GPUs) or "GN", see DPTHead
    cfg.MODEL.DPT.LOSS_WEIGHT = 1.0  # of labelled images
    cfg.MODEL.DPT.FEATURE_DROPOUT = False  # channels of unlabelled images (UniMatch V2)

    cfg.MODEL.SENIOR = CfgNode()  # used where MODEL.META_ARCHITECTURE is "SegKC"; the junior is MODEL.BACKBONE
    cfg.MODEL.SENIOR.BACKBONE = cfg.MODEL.BACKBONE.clone()
    cfg.MODEL.SENIOR.PIXEL_MEAN = []  # as MODEL.PIXEL_MEAN, of the senior's own weights
    cfg.MODEL.SENIOR.PIXEL_STD = []
    cfg.MODEL.SENIOR.DIM = 128  # as MODEL.DPT.DIM
    cfg.MODEL.SEGKC = CfgNode()
    cfg.MODEL.SEGKC.CONSULT = True  # the senior reads the junior's features in training
    cfg.MODEL.SEGKC.CONSULT_GRAD = False  # whether its losses reach the junior through them
    cfg.MODEL.SEGKC.KD_WEIGHT = 1.0  # of the distillation, which begins with SSL.START; 0 = none
    cfg.MODEL.SEGKC.KD_TEMPERATURE = 2.0
    cfg.MODEL.SEGKC.READ = "junior"  # or "senior", for a diagnosis: whose scores inference returns

    cfg.DATASETS.UNSEEN_CLASSES = ()  # names that training must not see (zero-shot); removed when labels are read
    cfg.DATASETS.UNLABELED = ()  # names of data sets or views; their annotations are never read for training
    cfg.DATASETS.SOURCE = ()  # labelled data of another domain, a stream of its own; classes as those of DATASETS.TRAIN
    # fills the word PARTITION in names above, such as "ade20k_panoptic_train@PARTITION": one that is published (data/partitions.py),
    # a fraction, a number or a list file as in data/catalog.py, or "all"; "n0": no labels, with DATASETS.SOURCE
    cfg.DATASETS.PARTITION = ""
    cfg.DATASETS.MASKS = ""  # folder of `dearli masks generate`; targets where MODEL.CLASSIFIER is "none"

    cfg.DATASETS.ALLOW_OVERLAP = False  # True: images of TEST may be in TRAIN, SOURCE or UNLABELED too

    cfg.DATASETS.CUSTOM = CfgNode()  # own data: see data/custom.py and docs/custom_data.md; used where ROOT is set
    cfg.DATASETS.CUSTOM.ROOT = ""  # folder that holds the following
    cfg.DATASETS.CUSTOM.IMAGES = "images"  # folder of labelled images, subfolders included
    cfg.DATASETS.CUSTOM.MASKS = "masks"  # folder of PNG index masks (value = class id), or of panoptic PNG files
    cfg.DATASETS.CUSTOM.PANOPTIC_JSON = ""  # COCO-panoptic JSON file; "" = index masks
    cfg.DATASETS.CUSTOM.UNLABELED = "unlabeled"  # folder of images without masks
    # lines "ID thing|stuff NAME, SYNONYM", or one file of them; [] = ROOT/classes.txt, or the JSON file where there is one
    cfg.DATASETS.CUSTOM.CLASSES = []
    cfg.DATASETS.CUSTOM.IGNORE_VALUE = 255  # pixel value in index masks that means 'ignore'; -1 = none
    cfg.DATASETS.CUSTOM.VAL_FRACTION = 0.2  # of the labelled images, held back for validation; 0 = none
    cfg.DATASETS.CUSTOM.VAL = (
        ""  # in place of VAL_FRACTION: list file (.txt) or subfolder of IMAGES with the images held back
    )
    cfg.DATASETS.CUSTOM.ALLOW_ABSENT_CLASSES = False  # True: classes that no labelled image shows do not stop the run
    cfg.DATASETS.CUSTOM.MIN_LABELED = 0.05  # of an image's pixels; with less in most images the run stops; 0 = no check
    cfg.DATASETS.CUSTOM.MIN_THING_AREA = 16  # pixels; smaller connected regions of a thing class are ignored

    # semi-supervised training (DEARLi, Sec. 4 and supplement A); used where DATASETS.UNLABELED is set
    cfg.SSL = CfgNode()
    cfg.SSL.IMS_PER_BATCH = 8  # unlabelled images in a step, beside SOLVER.IMS_PER_BATCH labelled ones
    cfg.SSL.SOURCE_IMS_PER_BATCH = 8  # images of DATASETS.SOURCE in a step
    cfg.SSL.LOSS_WEIGHT = 1.0  # of the losses on pseudo-labels
    cfg.SSL.EMA_DECAY = 0.999
    # the decay of step t is min(1 - 1 / (t + 1), EMA_DECAY), so the first update copies the student; False, or with
    # TEACHER_WEIGHTS or BURN_IN: it is EMA_DECAY
    cfg.SSL.EMA_RAMP = True
    cfg.SSL.START = (
        0  # step from which unlabelled images take part; until then labels only, and the teacher is the student
    )
    cfg.SSL.BURN_IN = 0  # steps from START on during which the teacher keeps its weights; then it becomes the student
    cfg.SSL.TEACHER_WEIGHTS = ""  # file the teacher starts from; "" = the student's start weights
    cfg.SSL.OBJECT_THRESHOLD = 0.0  # of the class posterior of a pseudo-segment
    cfg.SSL.OVERLAP_THRESHOLD = 0.8  # share of its own mask that a pseudo-segment must win
    cfg.SSL.MIN_AREA = 0  # pixels of a pseudo-segment
    cfg.SSL.CONFIDENCE = 0.95  # semantic pseudo-labels: least probability of a pixel's class, else it carries no loss
    cfg.SSL.JITTER = (0.8, 0.8, 0.8, 0.2)  # strong view: brightness, contrast, saturation, hue
    cfg.SSL.JITTER_PROBABILITY = 1.0
    cfg.SSL.GREYSCALE = 0.2  # probability
    cfg.SSL.BLUR = 0.5  # probability
    cfg.SSL.BLUR_SIGMA = (0.1, 2.0)  # pixels
    cfg.SSL.STRONG_VIEWS = 1  # of each unlabelled image, 1 or 2
    cfg.SSL.MIX = "cutmix"  # or "classmix": half of the classes of another image in the batch
    cfg.SSL.CUTMIX = 0.5  # probability of a paste per image, 0 = off; needs two unlabelled images a process
    cfg.SSL.CUTMIX_AREA = (0.02, 0.4)  # of the crop, drawn evenly
    cfg.SSL.CUTMIX_ASPECT = (0.3, 1 / 0.3)  # height / width, drawn evenly (as UniMatch and DEARLi)
    cfg.SSL.PICTURE_PERIOD = (
        1000  # iterations between pictures of weak views, pseudo-labels and mixed strong views; 0 = none
    )
    cfg.SSL.MONITOR_PERIOD = (
        0  # iterations between scores of the pseudo-labels against held-back annotations; 0 = never
    )
    cfg.SSL.MONITOR_IMAGES = 64

    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.CROP_SIZE = 640  # pixels, square
    cfg.INPUT.SCALE_RANGE = (0.5, 2.0)  # short side / CROP_SIZE, in steps of 0.1
    cfg.INPUT.SOURCE_SCALE_RANGE = ()  # of images of DATASETS.SOURCE; () = SCALE_RANGE
    cfg.INPUT.MAX_SIZE_TRAIN = 2560
    cfg.INPUT.MIN_SIZE_TEST = 640
    cfg.INPUT.MAX_SIZE_TEST = 2560
    cfg.INPUT.COLOR_AUG_SSD = True  # of labelled images
    cfg.INPUT.JITTER = ()  # of labelled images, instead: brightness, contrast, saturation, hue as SSL.JITTER; () = none
    cfg.INPUT.TARGETS = "panoptic"  # or "semantic": one segment a class, unannotated pixels carry no loss
    cfg.INPUT.PAD_VALUE = 128  # 0..255; padded pixels carry no loss

    cfg.DATALOADER.NUM_WORKERS = 4
    cfg.DATALOADER.RARE_CLASS_SAMPLING = (
        False  # of labelled images: first a class, rare ones more often, then an image of it
    )
    cfg.DATALOADER.RARE_CLASS_TEMPERATURE = 0.01  # T of softmax((1 - f) / T), f = share of annotated pixels (DAFormer)
    cfg.DATALOADER.RARE_CLASS_AREA = 0.005  # share of an image from which on it counts for a class

    # length in passes in place of SOLVER.MAX_ITER; the one that is given last counts. Passes over the images of EPOCH_OF:
    # "unlabeled" (with labels alone: what their partition leaves), "labeled", or "all" of the training sets
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.EPOCH_OF = "unlabeled"
    # 0 = an epoch may end inside a batch; else it has the whole batches that PyTorch's DistributedSampler gives this many processes
    cfg.SOLVER.EPOCH_PROCESSES = 0
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # embeddings, tokens, prompts, and scales and gates that stand alone
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # of the learning rate, for a backbone that is not frozen
    cfg.SOLVER.SCHEDULE = "poly"  # or "exponential"
    cfg.SOLVER.POLY_POWER = 0.9
    cfg.SOLVER.DECAY = 0.9  # of an exponential schedule, in every tenth of the run
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"  # the only one: one norm over all parameters
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # or "float16", with loss scaling
    cfg.SOLVER.ACCUMULATION_STEPS = 1  # forward passes per optimiser step; IMS_PER_BATCH images each
    cfg.SOLVER.MAX_BAD_STEPS = 10  # skipped steps in a row with a loss that is not finite, before the run stops
    cfg.SOLVER.KEEP_CHECKPOINTS = 2  # latest periodic checkpoints kept beside the best and the final one

    cfg.TEST.PANOPTIC_ON = True
    cfg.TEST.SEMANTIC_ON = True
    cfg.TEST.INSTANCE_ON = False
    cfg.TEST.OBJECT_THRESHOLD = 0.8
    cfg.TEST.OVERLAP_THRESHOLD = 0.8
    cfg.TEST.AMP = False  # evaluate in fp32, as the published codes do; True = in SOLVER.AMP.DTYPE, faster
    cfg.TEST.WEIGHTS = (
        "student"  # or "teacher", or "both": whose weights an evaluation uses; the best one is the first's
    )
    cfg.TEST.WINDOW = 0  # pixels; semantic scores as the mean over sliding windows of this side, 0 = whole images
    cfg.TEST.WINDOW_STRIDE = 0  # pixels; 0 = two thirds of the window
    cfg.TEST.BEST_METRIC = "panoptic/PQ"  # which checkpoint is `model_best.pth`; "" = none is, the final one counts
    cfg.TEST.PICTURES = 8  # overlays written after an evaluation


def get_config(config_file: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """The frozen, validated configuration, with names of data sets, length and OUTPUT_DIR in full; see `experiment`.

    Args:
        config_file: YAML (safe tags only), `_BASE_` inherits; see `find_config`.
        overrides: "KEY", "VALUE", ... as on the command line.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one), impossible or contradictory values.
    """
    cfg = _detectron2_defaults()
    add_dearli_config(cfg)
    layers: list[Collection[str]] = []  # keys that each file and the command line give
    if config_file is not None:
        for path, content in read_config_files(find_config(config_file)):
            given: set[str] = set()
            _merge(cfg, content, f"{path}: ", given)
            choose_length(cfg, given, f"{path}: ")
            layers.append(given)
    overrides = list(map(str, overrides))
    option = next((key for key in overrides[::2] if key.startswith("-")), None)
    if option is not None:
        raise ConfigError(f"{option} stands behind keys of the config; options come before KEY VALUE pairs")
    if len(overrides) % 2:
        raise ConfigError(f"overrides are KEY VALUE pairs; the last, {overrides[-1]!r}, has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key == "DATASETS.CUSTOM.CLASSES" and re.fullmatch(r"[^\[(].*\.txt", value):
            value = [value]  # a class file without a list around it
        _set(cfg, key, value, "command line: ")
    layers.append(overrides[::2])
    choose_length(cfg, layers[-1], "command line: ")
    part = fill_partition(cfg, layers)
    if config_file is not None and not any("OUTPUT_DIR" in keys for keys in layers):
        cfg.OUTPUT_DIR = output_folder(find_config(config_file), part)
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.DATASETS.CUSTOM.ROOT:
        settle(cfg.DATASETS)
    if cfg.DATASETS.CUSTOM.ROOT and not cfg.MODEL.NUM_CLASSES:
        cfg.MODEL.NUM_CLASSES = number_of_classes(cfg.DATASETS.CUSTOM)
    resolve_epochs(cfg)
    resolve_normalization(cfg)
    validate(cfg)
    cfg.freeze()
    return cfg


def find_config(path: str | Path) -> Path:
    """A config file: the path as it is, else a config of the project by its path below `configs/`.

    Raises:
        ConfigError: neither is there.
    """
    path = Path(path)
    if path.is_file():
        return path
    below = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    own = beside_package("configs") / below
    if not own.is_file():
        raise ConfigError(f"no config file {path}, neither here nor in {beside_package('configs')}")
    return own


def _merge(cfg: CfgNode, content: dict, where: str, given: set[str], prefix: str = "") -> None:
    """Takes over what a file says. `given`: its keys so far, of which "TEST.AMP: True" and "TEST: {AMP: True}" are two ways to
    write one."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and _section(cfg, key.split(".")) is not None:
            _merge(cfg, value, where, given, f"{key}.")
        elif key in given:
            raise ConfigError(f"{where}{key} stands twice")
        else:
            given.add(key)
            _set(cfg, key, value, where)


def _set(cfg: CfgNode, key: str, value: Any, where: str) -> None:
    """Puts a value into the config. Raises `ConfigError` for an unknown key or a value that it does not accept."""
    *path, name = key.split(".")
    node = _section(cfg, path)
    if node is None or name not in node:
        similar = difflib.get_close_matches(key.upper(), list(all_keys(cfg)), 1)
        raise ConfigError(f"{where}there is no key {key}" + (f"; did you mean {similar[0]}?" if similar else ""))
    default = node[name]
    if isinstance(default, CfgNode):
        example = next((known for known in SCHEMA if known.startswith(f"{key}.")), f"{key}.{next(iter(default))}")
        raise ConfigError(f"{where}{key} is {value!r}; it is a section, give its keys, such as {example}")
    try:
        decoded = _decode(value, reads_text(key, default))
        node[name] = read_value(key, decoded, default)
    except ValueError as error:
        raise ConfigError(f"{where}{error}") from error


def _section(cfg: CfgNode, path: Sequence[str]) -> CfgNode | None:
    for name in path:
        cfg = cfg.get(name) if isinstance(cfg, CfgNode) else None
    return cfg if isinstance(cfg, CfgNode) else None


def _decode(value: Any, text: bool) -> Any:
    """A value as it stands on the command line or in YAML, whose "1e-4" and "(1, 2)" are strings, as Python reads it."""
    if not isinstance(value, str):
        return value
    try:
        decoded = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        lowered = value.strip().lower()
        return float(lowered) if not text and lowered.lstrip("+-") in ("nan", "inf", "infinity") else value
    return value if text and not isinstance(decoded, str) else decoded


def all_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Sections and keys, with dots."""
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from all_keys(value, f"{prefix}{key}.")
