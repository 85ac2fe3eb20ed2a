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
from ..rehearsal import Rehearsal, rehearse

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
        step: the counts of a step behind it.
        gpu_gib: memory of a step, in GiB.
        seconds_per_step: by name of the GPU; of the steps with unlabelled images, where there are any.
        hours: of the whole training, by name of the GPU.
        operations: floating-point operations of the whole training.
        source: where the figures come from, in a sentence.
    """

    step: Rehearsal
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
    steps = cfg.SOLVER.MAX_ITER
    step = rehearse(cfg)
    before = min(cfg.SSL.START, steps) if cfg.DATASETS.UNLABELED else 0  # steps with labelled images alone
    operations = float(step.operations) * (steps - before)
    if before:
        operations += float(rehearse(cfg, unlabeled=False).operations) * before
    rates = {gpu: MEASURED_OPERATIONS / MEASURED_SECONDS * peak / PEAKS[MEASURED_GPU] for gpu, peak in PEAKS.items()}
    seconds = {gpu: step.operations / rate for gpu, rate in rates.items()}
    hours = {gpu: operations / rate / 3600 for gpu, rate in rates.items()}
    memory, source = step.peak / 2**30, f"estimated; one step was timed, on an {MEASURED_GPU}"
    if is_measured(cfg):
        memory = MEASURED_GIB
        source = f"memory and time on an {MEASURED_GPU} were measured, other GPUs are estimated by their peak rates"
    return Cost(step, memory, seconds, hours, operations, source)


def is_measured(cfg: CfgNode) -> bool:
    """True if the step of a config is the one that was timed."""
    from ..config import get_config

    measured = get_config(str(beside_package("configs") / MEASURED_CONFIG))
    return all(_value(cfg, key) == _value(measured, key) for key in _STEP_KEYS)


def _value(cfg: CfgNode, key: str) -> object:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
