"""An exported model under onnxruntime beside the model in torch, on the images of a data set: PQ, mIoU, agreement, latency.

    dearli export output/camvid/labels --out model.onnx
    python -m dearli_d2.deploy.quantize model.onnx int8.onnx --calibrate photos/
    python -m benchmarks.deploy --config-file configs/camvid/labels.yaml \
        --weights output/camvid/labels/model_final.pth --data camvid_val --files model.onnx int8.onnx
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from dearli_d2 import Predictor
from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.images import read_image
from dearli_d2.data.panoptic_png import read_panoptic, segment_ids
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.deploy import OnnxPredictor
from dearli_d2.evaluation.panoptic import PanopticQuality
from dearli_d2.evaluation.semantic import confusion, mean_iou, read_semantic
from dearli_d2.prediction import Prediction
from dearli_d2.reporting import report_errors


def segment_classes(prediction: Prediction) -> np.ndarray:
    """(H, W) class of each pixel's segment, -1 = none."""
    table = np.full(max([0, *(s["id"] for s in prediction.segments)]) + 1, -1)
    for segment in prediction.segments:
        table[segment["id"]] = segment["category_id"]
    return table[prediction.panoptic]


class Score:
    """Quality and speed of one way to run the model."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self.quality, self.matrix = PanopticQuality(len(taxonomy)), np.zeros((len(taxonomy),) * 2, np.int64)
        self.seconds: list[float] = []
        self.same_classes: list[float] = []
        self.same_segments: list[float] = []

    def add(
        self, sample: dict, predict: Callable[[np.ndarray], Prediction], reference: Prediction | None
    ) -> Prediction:
        image, start = read_image(sample["file_name"]), time.perf_counter()
        found = predict(image)
        self.seconds.append(time.perf_counter() - start)
        truth = segment_ids(read_panoptic(sample["pan_seg_file_name"]))
        self.quality.add(found.panoptic, found.segments, truth, sample["segments_info"])
        self.matrix += confusion(found.semantic, read_semantic(sample), len(self.taxonomy))
        if reference is not None:
            self.same_classes.append(float((found.semantic == reference.semantic).mean()))
            self.same_segments.append(float((segment_classes(found) == segment_classes(reference)).mean()))
        return found

    def row(self) -> dict[str, float]:
        return {
            "PQ": self.quality.summary(self.taxonomy.thing_ids)["PQ"],
            "mIoU": mean_iou(self.matrix),
            "% same class": 100 * float(np.mean(self.same_classes or 1)),
            "% same class of segment": 100 * float(np.mean(self.same_segments or 1)),
            "ms an image": 1000 * float(np.median(self.seconds)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="data set")
    parser.add_argument("--files", nargs="+", type=Path, required=True, help="exported files of the model")
    parser.add_argument("--every", type=int, default=1, help="each n-th image")
    args = parser.parse_args()
    samples = dataset_dicts(args.data)[:: args.every]
    predictor = Predictor(get_config(args.config_file, ["MODEL.DEVICE", "cpu"]), args.weights)
    files = {path.name: OnnxPredictor(path, threads=torch.get_num_threads()) for path in args.files}
    scores = {name: Score(predictor.model.known_taxonomy()) for name in ("torch", *files)}
    for sample in tqdm(samples, unit="image"):
        reference = scores["torch"].add(sample, predictor, None)
        for name, other in files.items():
            scores[name].add(sample, other, reference)
    rows = {name: score.row() for name, score in scores.items()}
    sizes = {path.name: path.stat().st_size / 1e6 for path in args.files}
    table = [[name, sizes.get(name), *row.values()] for name, row in rows.items()]
    print(tabulate(table, ["", "MB", *rows["torch"]], floatfmt=".2f", tablefmt="github"))
    print(json.dumps({"images": len(samples), "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    sys.exit(report_errors(main))
