"""What each part of HVL gives on miniworld: 20 labelled of 400 scenes, semi-supervised, in the order of the paper's ablation.

python -m benchmarks.hvl --seeds 3 --rows random htqg
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dearli_d2.demo import write_partition

from . import study

CONFIG = "miniworld/hvl.yaml"
FREE_ONLY = ("MODEL.MASK_FORMER.NUM_QUERIES", "25", "MODEL.HVL.TEXTUAL_QUERIES", "False")
NO_FREE = ("MODEL.MASK_FORMER.NUM_QUERIES", "0")
ROWS = (
    study.Row("random queries", "random", CONFIG, FREE_ONLY),
    study.Row("HTQG: textual queries", "htqg", CONFIG, (*NO_FREE, "MODEL.HVL.REFINEMENT", "False")),
    study.Row("  + PTRM", "ptrm", CONFIG, NO_FREE),
    study.Row("  + free queries", "free", CONFIG, ("MODEL.HVL.JOINT_DECODER", "False")),
    study.Row("  + joint decoder (DQTD): HVL", "hvl", CONFIG),
    study.Row("HVL, argmax read-out", "argmax", CONFIG, ("MODEL.HVL.INFERENCE", "argmax"), "hvl"),
    study.Row("HVL, all classes present at inference", "present", CONFIG, ("MODEL.HVL.PRESENCE", "all"), "hvl"),
    study.Row("HVL without L_prompt", "no_prompt", CONFIG, ("MODEL.HVL.PROMPT_WEIGHT", "0.0")),
    study.Row("HVL without L_mask", "no_mask", CONFIG, ("MODEL.HVL.MASK_WEIGHT", "0.0")),
    study.Row("HVL without L_align", "no_align", CONFIG, ("MODEL.HVL.ALIGN_WEIGHT", "0.0")),
)
METRICS = (
    study.Metric("mIoU", study.semantic("mIoU")),
    study.Metric("look-alikes", study.mean_iou_of("purple ball", "purple box", "sky", "water")),
    study.Metric("rare", study.mean_iou_of("dotted yellow", "checkered red", "purple ball", "purple box", "sand")),
)


def options_of_seed(out: Path, seed: int) -> Sequence[str]:
    """The same 20 scenes for every row."""
    labeled = write_partition(out / "lists" / str(seed), seed)
    views = ["DATASETS.TRAIN", f"('{labeled}',)", "DATASETS.UNLABELED", f"('{labeled}:unlabeled',)"]
    return [*views, "SOLVER.CHECKPOINT_PERIOD", "100"]


if __name__ == "__main__":
    study.main(__doc__, ROWS, METRICS, options_of_seed, "hvl")
