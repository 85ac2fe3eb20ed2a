"""What SegKC gives a junior on CamVid photographs with 23 (1/16) and 46 (1/8) labels: EfficientNet-Lite0, the senior Lite2.

python -m benchmarks.segkc_camvid --seeds 1     # needs dearli prepare camvid
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import study

ALONE = ("MODEL.META_ARCHITECTURE", "DPTSegmenter", "DATASETS.UNLABELED", "()")
CROSS = ("MODEL.SEGKC.CONSULT", "False", "MODEL.SEGKC.KD_WEIGHT", "0.0")
ROWS = tuple(
    study.Row(
        f"1/{part}: {name}", f"{folder}_1_{part}", "camvid/segkc.yaml", (*options, "DATASETS.PARTITION", f"1_{part}")
    )
    for part in (16, 8)
    for name, folder, options in (
        ("junior alone, labels only", "labels", ALONE),
        ("pair: cross supervision", "cross", CROSS),
        ("SegKC", "segkc", ()),
    )
)
METRICS = (
    study.Metric("mIoU", study.semantic("mIoU")),
    study.Metric("accuracy", study.semantic("pixel_accuracy")),
    study.Metric("car, pedestrian, bicyclist", study.mean_iou_of("car", "pedestrian", "bicyclist")),
    study.Metric("sign, fence, pole", study.mean_iou_of("sign symbol", "fence", "pole")),
)


def options_of_seed(out: Path, seed: int) -> Sequence[str]:
    """The published choice of labelled images for every seed."""
    return ["SSL.MONITOR_PERIOD", "0", "SSL.PICTURE_PERIOD", "0"]


if __name__ == "__main__":
    study.main(__doc__, ROWS, METRICS, options_of_seed, "segkc_camvid", "camvid_val")
