"""What each part of SemiDAViL gives on miniworld, from day to night scenes: 200 labelled day scenes, 0, 5 or 20 % of 1000 night
scenes labelled, the others unlabelled; with DyCE and with cross-entropy.

    python -m benchmarks.semidavil --seeds 3 --shard 0/2
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dearli_d2.data import miniworld

from . import study

CONFIG = "miniworld/semidavil.yaml"
NO_GUIDANCE = ("MODEL.SEMIDAVIL.GUIDANCE", "False")
# without vision-language pre-training the backbone starts from random weights, and all of it is trained
NO_PRETRAINING = (*NO_GUIDANCE, "MODEL.BACKBONE.WEIGHTS", "", "MODEL.BACKBONE.TRAINABLE_BLOCKS", "-1")
NO_CONSISTENCY = ("DATASETS.UNLABELED", "()")
LABELS_ONLY = ("labels only", "labels", (*NO_PRETRAINING, *NO_CONSISTENCY))
CONSISTENCY = ("+ consistency", "consistency", NO_PRETRAINING)
PRETRAINING = ("+ VL pre-training", "vlp", NO_GUIDANCE)
DLG = ("+ DLG", "dlg", ())
NOT_CONSISTENT = ("all but consistency", "dlg_alone", NO_CONSISTENCY)
LABELS = (0, 5, 20)  # percent of the night scenes
# cross-entropy is sure of more pixels than DyCE
LOSSES = {"DyCE": ("MODEL.SEMIDAVIL.LOSS", "dyce"), "CE": ("MODEL.SEMIDAVIL.LOSS", "ce", "SSL.CONFIDENCE", "0.9")}
CHOSEN = {
    "DyCE": dict.fromkeys(LABELS, (LABELS_ONLY, CONSISTENCY, PRETRAINING, DLG, NOT_CONSISTENT)),
    "CE": {0: (LABELS_ONLY, DLG), 5: (LABELS_ONLY, CONSISTENCY, PRETRAINING, DLG), 20: (LABELS_ONLY, DLG)},
}


def _views(labels: int) -> tuple[str, str]:
    """Labelled and unlabelled night scenes."""
    if not labels:
        return "()", "('miniworld_night_train',)"
    part = f"miniworld_night_train@{labels / 100}~{{seed}}"
    return f"('{part}',)", f"('{part}:unlabeled',)"


def _row(labels: int, part: tuple[str, str, tuple[str, ...]], loss: str) -> study.Row:
    name, folder, options = part
    train, unlabeled = _views(labels)
    data = ("DATASETS.TRAIN", train, "DATASETS.UNLABELED", unlabeled)
    return study.Row(
        f"{labels} %, {loss}: {name}", f"{folder}_{labels}_{loss.lower()}", CONFIG, (*data, *LOSSES[loss], *options)
    )


ROWS = tuple(_row(labels, part, loss) for labels in LABELS for loss in LOSSES for part in CHOSEN[loss][labels])
RAREST = tuple(c.name for c in sorted(miniworld.CLASSES, key=lambda c: c.frequency)[: len(miniworld.CLASSES) // 3])
METRICS = (study.Metric("mIoU", study.semantic("mIoU")), study.Metric("rarest third", study.mean_iou_of(*RAREST)))


def options_of_seed(out: Path, seed: int) -> Sequence[str]:
    """The same scenes for every row."""
    return ["SOLVER.CHECKPOINT_PERIOD", "1000", "SSL.MONITOR_PERIOD", "0", "SSL.PICTURE_PERIOD", "0"]


if __name__ == "__main__":
    study.main(__doc__, ROWS, METRICS, options_of_seed, "semidavil", "miniworld_night_val")
