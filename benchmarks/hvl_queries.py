"""What the two kinds of queries of a trained HVL know, apart and together, and what its presence filter costs.

    python -m benchmarks.hvl_queries --config-file configs/miniworld/hvl.yaml \
        --weights output/hvl/hvl/seed_0/model_final.pth --data miniworld_val --every 1

mIoU of the marginal read-out of all, of the textual and of the free queries, and of all of them with the classes of the ground
truth present; on how many pixels textual and free queries agree; classes that the filter misses and lets in.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from dearli_d2 import Predictor
from dearli_d2.data.sizes import resize_labels
from dearli_d2.evaluation.semantic import confusion, mean_iou, read_semantic
from dearli_d2.methods.hvl.textual_queries import presence_of_targets
from dearli_d2.modeling.mask2former.inference import resize_logits, semantic_inference
from dearli_d2.reporting import report_errors

from .diagnosis import begin

ALL, TEXTUAL, FREE, ORACLE = (
    "all queries",
    "textual queries",
    "free queries",
    "all queries, presence of the ground truth",
)


@torch.no_grad()
def measure(predictor: Predictor, dicts: list[dict]) -> tuple[dict[str, float], float, tuple[float, float]]:
    """mIoU by kind; share of the pixels on which textual and free queries agree; classes an image that the filter misses, and
    that it lets in without their being there."""
    model = predictor.model
    classes = model.num_classes
    textual = classes * model.levels
    matrices = {kind: np.zeros((classes, classes), dtype=np.int64) for kind in (ALL, TEXTUAL, FREE, ORACLE)}
    same = pixels = 0
    missed, made_up = [], []
    for d in tqdm(dicts, unit="image"):
        images = model.preprocess([predictor.mapper(d)]).tensor
        truth = resize_labels(read_semantic(d), tuple(images.shape[-2:]))
        shown = torch.tensor(np.unique(truth[truth < classes]).astype(np.int64), device=images.device)
        of_truth = presence_of_targets([shown], model.background)
        guessed, features = model.zero_shot_presence(images), model.backbone(images)
        queries = model.generator(model.embedded_names()[1])
        labels = {}
        for kinds, presence in (((ALL, TEXTUAL, FREE), guessed), ((ORACLE,), of_truth)):
            output = model.decode(features, presence, queries)
            masks = resize_logits(output.mask_logits(), images.shape[-2:])
            for kind in kinds:
                rows = {TEXTUAL: slice(0, textual), FREE: slice(textual, None)}.get(kind, slice(None))
                scores = semantic_inference(output.class_outputs[-1][:, rows], masks[:, rows])
                labels[kind] = scores[0].argmax(0).cpu().numpy()
                matrices[kind] += confusion(labels[kind], truth, classes)
        same, pixels = same + int((labels[TEXTUAL] == labels[FREE]).sum()), pixels + truth.size
        there, found = of_truth[0] > 0, guessed[0] > 0
        missed.append(int((there & ~found).sum()))
        made_up.append(int((found & ~there).sum()))
    return (
        {kind: mean_iou(matrix) for kind, matrix in matrices.items()},
        same / pixels,
        (float(np.mean(missed)), float(np.mean(made_up))),
    )


def main() -> None:
    _, predictor, dicts = begin(__doc__)
    scores, agreement, (missed, made_up) = measure(predictor, dicts)
    print(tabulate(scores.items(), ["", "mIoU"], floatfmt=".1f", tablefmt="github"))
    print(f"textual and free queries agree on {100 * agreement:.1f} % of the pixels")
    print(f"the filter misses {missed:.1f} classes an image and lets in {made_up:.1f} that are not there")


if __name__ == "__main__":
    sys.exit(report_errors(main))
