"""What each part of Split Matching gives on miniworld: 200 scenes, three of sixteen classes never annotated.

python -m benchmarks.split_matching --seeds 3
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import study

CONFIG = "miniworld/split_matching.yaml"
NO_RANDOM = ("MODEL.SPLIT.RANDOM_QUERIES", "0")
NO_MFE = ("MODEL.SPLIT.MFE_WEIGHT", "0.0")
ROWS = (
    study.Row(
        "baseline: seen queries only", "baseline", CONFIG,
        (*NO_RANDOM, *NO_MFE, "MODEL.SPLIT.CANDIDATE_QUERIES", "0", "MODEL.MASK_FORMER.NUM_QUERIES", "30"),
    ),
    study.Row("  + split matching", "sm", CONFIG, (*NO_RANDOM, *NO_MFE)),
    study.Row("  + MFE", "mfe", CONFIG, NO_RANDOM),
    study.Row("  + random queries", "random", CONFIG, (), "mfe"),
    study.Row("  + ensemble with CLIP (not in the paper)", "ensemble", CONFIG, ("MODEL.ENSEMBLE.AT_INFERENCE", "True"), "mfe"),
)  # fmt: skip
METRICS = tuple(study.Metric(name, study.semantic(name)) for name in ("hIoU", "sIoU", "uIoU"))


def options_of_seed(out: Path, seed: int) -> Sequence[str]:
    """The same 200 scenes for every row."""
    return ["DATASETS.TRAIN", f"('miniworld_train@0.2~{seed}',)", "SOLVER.CHECKPOINT_PERIOD", "100"]


if __name__ == "__main__":
    study.main(__doc__, ROWS, METRICS, options_of_seed, "split_matching")
