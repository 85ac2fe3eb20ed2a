"""What each part of SemiDAViL gives on miniworld, from day to night scenes: 200 labelled day scenes, 0, 5 or 20 % of 1000 night
scenes labelled, the others unlabelled; each part with cross-entropy and with DyCE.

python -m benchmarks.semidavil [--seeds 3] [--shard i/n] [--rows ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from dearli_d2.data import miniworld

from . import study

CONFIG = "miniworld/semidavil.yaml"
NO_GUIDANCE = ("MODEL.SEMIDAVIL.GUIDANCE", "False")
# without vision-language pre-training the backbone starts from random weights, and all of it is trained
NO_PRETRAINING = (*NO_GUIDANCE, "MODEL.BACKBONE.WEIGHTS", "", "MODEL.BACKBONE.TRAINABLE_BLOCKS", "-1")
NO_CONSISTENCY = ("DATASETS.UNLABELED", "()")
PARTS = (
    ("labels only", "labels", (*NO_PRETRAINING, *NO_CONSISTENCY)),
    ("  + consistency", "consistency", NO_PRETRAINING),
    ("  + VL pre-training", "vlp", NO_GUIDANCE),
    ("  + DLG", "dlg", ()),
)
LABELS = (0, 5, 20)  # percent of the night scenes
LOSSES = (("CE", "ce"), ("DyCE", "dyce"))


def _views(labels: int) -> tuple[str, str]:
    """Labelled and unlabelled night scenes."""
    if not labels:
        return "()", "('miniworld_night_train',)"
    part = f"miniworld_night_train@{labels / 100}~{{seed}}"
    return f"('{part}',)", f"('{part}:unlabeled',)"


def _row(labels: int, part: tuple[str, str, tuple[str, ...]], loss: tuple[str, str]) -> study.Row:
    name, folder, options = part
    train, unlabeled = _views(labels)
    data = ("DATASETS.TRAIN", train, "DATASETS.UNLABELED", unlabeled)
    return study.Row(
        f"{labels} % · {name.strip()} · {loss[0]}",
        f"{folder}_{labels}_{loss[1]}",
        CONFIG,
        (*data, "MODEL.SEMIDAVIL.LOSS", loss[1], *options),
    )


ROWS = tuple(_row(labels, part, loss) for labels, loss, part in product(LABELS, LOSSES, PARTS))
RAREST = tuple(c.name for c in sorted(miniworld.CLASSES, key=lambda c: c.frequency)[: len(miniworld.CLASSES) // 3])
METRICS = (study.Metric("mIoU", study.semantic("mIoU")), study.Metric("rarest third", study.mean_iou_of(*RAREST)))


def options_of_seed(out: Path, seed: int) -> Sequence[str]:
    """The same scenes for every row."""
    return ["SOLVER.CHECKPOINT_PERIOD", "1000", "SSL.MONITOR_PERIOD", "0", "SSL.PICTURE_PERIOD", "0"]


if __name__ == "__main__":
    study.main(__doc__, ROWS, METRICS, options_of_seed, "semidavil", "miniworld_night_val")
