"""The sections of a run: semi-supervised training, optimisation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .options import Options, option
from .values import (
    COUNT,
    PART,
    PATH,
    POSITIVE,
    POSITIVE_COUNT,
    RANGE,
    SCORE_PATTERN,
    SEED,
    SHARE,
    SWITCH,
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
class Log(Options):
    """Services that follow a run, beside its log, `metrics.json` and TensorBoard."""

    SECTION: ClassVar[str] = "LOG"

    wandb: bool = option(
        False, SWITCH, "Sends scalars and config to Weights & Biases. With WANDB_MODE=offline they stay in OUTPUT_DIR."
    )
    mlflow: bool = option(
        False, SWITCH, "Sends scalars and config to MLflow, whose MLFLOW_TRACKING_URI says where it writes."
    )
    project: str = option("dearli_d2", Text(filled=True), "Project of W&B and experiment of MLflow.")


@dataclass(frozen=True)
class Ranks(Options):
    """Limits of the time in which the processes of a run wait for each other, where there are several (docs/many_gpus.md)."""

    SECTION: ClassVar[str] = "RANKS"

    start_timeout: float = option(300.0, POSITIVE, "Seconds until all processes must have met.")
    dead_timeout: float = option(
        60.0,
        Number(5),
        "Seconds without a sign of life after which a process counts as dead. One that is killed is noticed at once.",
    )
    hang_timeout: float = option(
        1800.0,
        Number(5),
        "Seconds after which the run ends if no process gets on with a step, an evaluation or a checkpoint. Also torch's time-out of a collective.",
    )


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
    pictures: int = option(
        8,
        COUNT,
        "Pictures with predictions that an evaluation writes: the worse half of them of the images with the lowest scores, the other half of those with the highest.",
    )
