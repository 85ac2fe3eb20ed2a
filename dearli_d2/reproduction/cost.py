"""What a training costs, before it is run: GPU memory and GPU hours.

It is an estimate. Memory and operations of a step are those of the real code on tensors without content (`dearli_d2.rehearsal`). Hours
are

    operations of all steps / (rate of an H200 x peak of the GPU / peak of an H200) / 3600

The rate of an H200 is that of the one training step that was timed: DEARLi with ConvNeXt-B, 8 + 8 images of 640 x 640, bf16, 310 ms
(docs/results/gpu.md), whose operations are counted in the same way. The step kept that GPU busy for two thirds of the time, so that
slower GPUs may lose less than the ratio of their peaks says. Loading of images, evaluations, other stages and the memory that CUDA and
its allocator reserve are not in the figures. A run in fp32 takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from ..files import beside_package

PEAKS = {"RTX 3090": 71.0, "A100": 312.0, "H100": 989.0, "H200": 989.0}
"""TFLOP/s of dense bf16 matrix products with sums in fp32, as NVIDIA's data sheets print them (H100 and H200: SXM)."""

MEASURED_GPU, MEASURED_SECONDS, MEASURED_GIB = "H200", 0.310, 12.1
MEASURED_OPERATIONS = 13.64e12
"""Of that step; a test counts them again."""

MEASURED_CONFIG = "ade20k/dear_convnext_b.yaml"
# what a step's time and memory depend on
_STEP_KEYS = (
    "MODEL.META_ARCHITECTURE", "MODEL.CLASSIFIER", "MODEL.BACKBONE.ARCH", "MODEL.BACKBONE.FREEZE", "MODEL.NUM_CLASSES",
    "MODEL.MASK_FORMER.NUM_QUERIES", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "MODEL.ENSEMBLE.IN_PSEUDO_LABELS", "INPUT.CROP_SIZE",
    "SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS", "SOLVER.AMP.ENABLED", "SSL.IMS_PER_BATCH", "SSL.STRONG_VIEWS",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The needs of a training on one GPU.

    Attributes:
        gpu_gib: memory of a step, in GiB.
        seconds_per_step: by name of the GPU; of the steps with unlabelled images, where there are any.
        hours: of the whole training, by name of the GPU.
        operations: floating-point operations of the whole training.
        source: where the figures come from, in a sentence.
    """

    gpu_gib: float
    seconds_per_step: dict[str, float]
    hours: dict[str, float]
    operations: float
    source: str


def cost_of(cfg: CfgNode) -> Cost:
    """The cost of a config's training, on one GPU. Neither its data nor its weights need to be there; it takes seconds.

    Args:
        cfg: the config.
    """
    from ..rehearsal import rehearse

    steps, start = cfg.SOLVER.MAX_ITER, cfg.SSL.START
    if not (cfg.DATASETS.TRAIN or cfg.DATASETS.SOURCE):
        nothing = dict.fromkeys(PEAKS, 0.0)
        return Cost(0.0, nothing, nothing, 0.0, "nothing is trained")
    step = rehearse(cfg)
    before = min(start, steps) if cfg.DATASETS.UNLABELED else 0
    operations = float(step.operations) * (steps - before)
    if before:
        operations += float(rehearse(cfg, unlabeled=False).operations) * before
    rate = MEASURED_OPERATIONS / MEASURED_SECONDS
    seconds = {gpu: step.operations / rate * PEAKS[MEASURED_GPU] / peak for gpu, peak in PEAKS.items()}
    hours = {gpu: operations / step.operations * second / 3600 for gpu, second in seconds.items()}
    if is_measured(cfg):
        source = f"memory and seconds of a step on an {MEASURED_GPU} are measured, other GPUs are estimated by their peak rates"
        return Cost(MEASURED_GIB, seconds, hours, operations, source)
    source = f"an estimate: operations of a step, at the rate of the one step that was timed on an {MEASURED_GPU}"
    return Cost(step.peak / 2**30, seconds, hours, operations, source)


def is_measured(cfg: CfgNode) -> bool:
    """True if the step of a config is the one that was timed."""
    from ..config import get_config

    measured = get_config(str(beside_package("configs") / MEASURED_CONFIG))
    return all(_value(cfg, key) == _value(measured, key) for key in _STEP_KEYS)


def _value(cfg: CfgNode, key: str) -> object:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
