"""What unlabelled images give Mask2Former on CamVid photographs with 23 (1/16) and 46 (1/8) labels: EfficientNet-Lite0.

    python -m benchmarks.ssl_camvid --seeds 3     # needs dearli prepare camvid

A semi-supervised run goes on from the labels-only run of its seed after iteration SSL.START, if that run is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import study

ROWS = tuple(
    study.Row(
        f"1/{part}: {name}",
        f"{config}_1_{part}",
        f"camvid/{config}.yaml",
        ("DATASETS.PARTITION", f"1_{part}"),
        branches_from=source,
    )
    for part in (16, 8)
    for name, config, source in (("labels only", "labels", ""), ("semi-supervised", "ssl", f"labels_1_{part}"))
)
METRICS = (
    study.Metric("PQ", study.panoptic("PQ")),
    study.Metric("PQ things", study.panoptic("PQ_th")),
    study.Metric("PQ stuff", study.panoptic("PQ_st")),
    study.Metric("mIoU", study.semantic("mIoU")),
)


def options_of_seed(out: Path, seed: int) -> Sequence[str]:
    """The published choice of labelled images for every seed."""
    return ["SOLVER.KEEP_CHECKPOINTS", "4", "SSL.PICTURE_PERIOD", "0"]


if __name__ == "__main__":
    study.main(__doc__, ROWS, METRICS, options_of_seed, "ssl_camvid", "camvid_val")
