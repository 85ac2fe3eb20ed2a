"""What a panoptic model would teach as pseudo-labels: per class how many segments they find, miss and make up, and their PQ
over thresholds of the object score.

    python -m benchmarks.found_segments --config-file configs/miniworld/ssl.yaml \
        --weights output/miniworld/ssl/model_final.pth --data miniworld_train@0.05:unlabeled --every 8
"""

from __future__ import annotations

import sys
from dataclasses import replace

from tabulate import tabulate
from tqdm import tqdm

from dearli_d2 import Predictor
from dearli_d2.evaluation.label_quality import PanopticLabelQuality
from dearli_d2.reporting import report_errors

from .diagnosis import begin

THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.9)


def score(predictor: Predictor, dicts: list[dict], threshold: float) -> PanopticLabelQuality:
    """Of the pseudo-labels with a threshold of the object score (SSL.OBJECT_THRESHOLD)."""
    model = predictor.model
    model.pseudo_labeling = replace(model.pseudo_labeling, object_threshold=threshold)
    quality = PanopticLabelQuality(model.taxonomy)
    for d in tqdm(dicts, unit="image", desc=f"threshold {threshold}"):
        quality.add(model.pseudo_label([{"image": predictor.mapper(d)["image"]}])[0], d)
    return quality


def main() -> None:
    _, predictor, dicts = begin(__doc__)
    names = predictor.model.taxonomy.main_names
    scores = {threshold: score(predictor, dicts, threshold) for threshold in THRESHOLDS}
    first = scores[THRESHOLDS[0]].quality
    rows = zip(names, first.tp, first.fn, first.fp, strict=True)
    print(f"{len(dicts)} images, threshold {THRESHOLDS[0]}")
    print(tabulate(rows, ["class", "found", "missed", "made up"], tablefmt="github"))
    rows = [[threshold, *quality.scores().values()] for threshold, quality in scores.items()]
    print(tabulate(rows, ["threshold", "PQ", "SQ", "RQ"], floatfmt=("", ".1f", ".1f", ".1f"), tablefmt="github"))


if __name__ == "__main__":
    sys.exit(report_errors(main))
