"""What a semantic model would teach as pseudo-labels: per class the share of its pixels that pass a confidence, and how many
of those have the right label.

    python -m benchmarks.sure_pixels --config-file configs/miniworld/segkc.yaml \
        --weights output/miniworld/segkc/model_final.pth --data miniworld_train@0.02:unlabeled --every 8
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from dearli_d2 import Predictor
from dearli_d2.data.sizes import resize_labels
from dearli_d2.evaluation.semantic import read_semantic
from dearli_d2.modeling.per_pixel.semantic import normalized
from dearli_d2.reporting import report_errors

from .diagnosis import begin


@torch.no_grad()
def count(predictor: Predictor, dicts: list[dict], threshold: float) -> np.ndarray:
    """(K, 3) pixels of each class: all, those whose best class passes the threshold, and those of them that are right."""
    counts = np.zeros((len(predictor.model.taxonomy), 3), dtype=np.int64)
    for d in tqdm(dicts, unit="image"):
        probability = normalized(predictor.model([predictor.mapper(d)])[0]["sem_seg"][None])[0]
        confidence, label = (x.cpu().numpy() for x in probability.max(0))
        truth = resize_labels(read_semantic(d), label.shape)
        known = truth < len(counts)
        sure = known & (confidence >= threshold)
        for column, chosen in enumerate((known, sure, sure & (label == truth))):
            counts[:, column] += np.bincount(truth[chosen], minlength=len(counts))
    return counts


def main() -> None:
    cfg, predictor, dicts = begin(__doc__)
    counts = count(predictor, dicts, cfg.SSL.CONFIDENCE)
    pixels, sure, right = counts.T
    with np.errstate(invalid="ignore"):
        rows = zip(predictor.model.taxonomy.main_names, 100 * sure / pixels, 100 * right / sure, strict=True)
        print(tabulate(rows, ["class", "% sure", "% of them right"], floatfmt=".0f", tablefmt="github"))


if __name__ == "__main__":
    sys.exit(report_errors(main))
