"""What each part of SegKC gives the junior on miniworld: 20 labelled scenes, 980 unlabelled ones. The junior is a small ResNet
from random weights, the senior of the unlike pair the CLIP tower that is shipped.

    python -m benchmarks.segkc --seeds 3 --rows labels segkc
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import study

CONFIG = "miniworld/segkc.yaml"
ALONE = ("MODEL.META_ARCHITECTURE", "DPTSegmenter")
NO_KD = ("MODEL.SEGKC.KD_WEIGHT", "0.0")
NO_CONSULT = ("MODEL.SEGKC.CONSULT", "False")
EQUAL = (
    *("MODEL.SENIOR.BACKBONE.NAME", "TimmBackbone", "MODEL.SENIOR.BACKBONE.ARCH", "resnet10t"),
    *("MODEL.SENIOR.BACKBONE.WEIGHTS", "", "MODEL.SENIOR.DIM", "32"),
)
ROWS = (
    study.Row("junior alone, labels only", "labels", CONFIG, (*ALONE, "DATASETS.UNLABELED", "()")),
    study.Row("junior alone, EMA teacher", "teacher", CONFIG, (*ALONE, "SSL.EMA_DECAY", "0.98")),
    study.Row("pair: cross supervision", "cross", CONFIG, (*NO_CONSULT, *NO_KD)),
    study.Row("  + consultation alone", "consult", CONFIG, NO_KD),
    study.Row("  + consultation, distillation: SegKC", "segkc", CONFIG),
    study.Row("SegKC without consultation", "no_consult", CONFIG, NO_CONSULT),
    study.Row("SegKC, CONSULT_GRAD True", "consult_grad", CONFIG, ("MODEL.SEGKC.CONSULT_GRAD", "True")),
    study.Row("SegKC, two equal juniors", "equal", CONFIG, EQUAL),
    study.Row("its senior", "senior", CONFIG, ("MODEL.SEGKC.READ", "senior"), weights_of="segkc"),
)
METRICS = (study.Metric("mIoU", study.semantic("mIoU")), study.Metric("accuracy", study.semantic("pixel_accuracy")))


def options_of_seed(out: Path, seed: int) -> Sequence[str]:
    """Other labelled scenes for each seed, the same for every row."""
    part = f"miniworld_train@0.02~{seed}"
    data = ["DATASETS.TRAIN", f"('{part}',)", "DATASETS.UNLABELED", f"('{part}:unlabeled',)"]
    return [*data, "SOLVER.CHECKPOINT_PERIOD", "1000", "SSL.MONITOR_PERIOD", "0", "SSL.PICTURE_PERIOD", "0"]


if __name__ == "__main__":
    study.main(__doc__, ROWS, METRICS, options_of_seed, "segkc")
