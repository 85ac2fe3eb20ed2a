"""Does the text carry the recognition, and does zero-shot ensembling help a model that saw few labels?

    python -m benchmarks.text_matters --seeds 0 1 2 --labels 0.03 --iterations 200

Trains M2F-Lang on a few labelled scenes of miniworld, then evaluates the same weights with the learned posterior, the
zero-shot posterior and their ensemble, each with the true class names and with the names dealt out at random.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dearli_d2.checkpoint import load_weights
from dearli_d2.config import get_config
from dearli_d2.engine.evaluation import evaluate
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.modeling import build_model
from dearli_d2.runs import set_up

CONFIG = Path(__file__).parents[1] / "configs" / "miniworld" / "m2f_lang.yaml"
CASES = [
    (f"{posterior}, {'permuted' if permuted else 'true'} names", alpha, permuted)
    for posterior, alpha in (("zero-shot", 0.0), ("learned", 1.0), ("ensemble", 0.6))
    for permuted in (False, True)
]
METRICS = ("panoptic/PQ", "semantic/mIoU")


def run_seed(seed: int, labels: float, iterations: int, out: Path) -> dict[str, dict[str, float]]:
    """Trains one model, or resumes it; scores by case."""
    base = [
        "SEED", str(seed), "SOLVER.MAX_ITER", str(iterations), "TEST.EVAL_PERIOD", "0", "TEST.PICTURES", "0",
        "DATASETS.TRAIN", f"('miniworld_train@{labels}~{seed}',)", "OUTPUT_DIR", str(out / f"seed{seed}"),
    ]  # fmt: skip
    cfg = get_config(CONFIG, [*base, "DATASETS.TEST", "()"])
    set_up(cfg)
    DualStreamTrainer(cfg, resume=True).train()
    scores = {}
    for name, alpha, permuted in CASES:
        cfg = get_config(CONFIG, [*base, "MODEL.ENSEMBLE.ALPHA", str(alpha)])
        model = build_model(cfg, load_backbone=False)
        load_weights(model, Path(cfg.OUTPUT_DIR) / "model_final.pth")
        if permuted:
            order = np.random.default_rng(seed).permutation(len(model.taxonomy))
            model.set_taxonomy(model.taxonomy.with_names([model.taxonomy.names[i] for i in order]))
        scores[name] = evaluate(cfg, model)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=float, default=0.03)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("output/text_matters"))
    args = parser.parse_args()
    runs = [run_seed(seed, args.labels, args.iterations, args.out) for seed in args.seeds]
    rows = []
    for name, _, _ in CASES:
        row = [name]
        for metric in METRICS:
            values = [run[name][metric] for run in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            row.append(f"{statistics.mean(values):.1f} ± {deviation:.1f}")
        rows.append(row)
    print(tabulate(rows, [f"{len(runs)} seeds, mean ± sd", "PQ", "mIoU"], tablefmt="github"))


if __name__ == "__main__":
    main()
