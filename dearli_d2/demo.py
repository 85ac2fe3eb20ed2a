"""`make demo`: trains M2F-Lang on 10 % of miniworld's labels and shows what came out, in minutes on a CPU.

python -m dearli_d2.demo [--out output/demo] [--iterations 450]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tabulate import tabulate

from .checkpoint import load_weights
from .cli import report_errors, set_up
from .config import get_config
from .data import miniworld
from .engine.evaluation import evaluate
from .engine.trainer import DualStreamTrainer
from .files import write_atomically
from .modeling import build_model

CONFIG = Path(__file__).parents[1] / "configs" / "miniworld" / "m2f_lang.yaml"
# what is shown: name, weight of the learned posterior (1 = decoder only, 0 = zero-shot CLIP only)
ROWS = (
    ("zero-shot CLIP on the learned masks", "0.0"),
    ("M2F-Lang (learned classifier)", "1.0"),
    ("M2F-Lang + ensembling at inference", "0.6"),
)
SCORED_ON = "miniworld_val"
METRICS = ("panoptic/PQ", "panoptic/PQ_th", "panoptic/PQ_st", "semantic/mIoU")


def run(out: Path, iterations: int) -> str:
    """Trains (or resumes), evaluates each row, writes the report; returns its table."""
    start = time.perf_counter()
    base = ["SOLVER.MAX_ITER", str(iterations), "TEST.EVAL_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD", "100"]
    training = get_config(CONFIG, [*base, "OUTPUT_DIR", str(out / "training"), "DATASETS.TEST", "()"])
    set_up(training)
    DualStreamTrainer(training, resume=True).train()
    rows = []
    for index, (name, alpha) in enumerate(ROWS):
        pictures = "8" if index == len(ROWS) - 1 else "0"
        cfg = get_config(
            CONFIG,
            [
                *base,
                "OUTPUT_DIR",
                str(out / f"alpha_{alpha}"),
                "MODEL.ENSEMBLE.ALPHA",
                alpha,
                "TEST.PICTURES",
                pictures,
            ],
        )
        model = build_model(cfg, load_backbone=False)
        load_weights(model, Path(training.OUTPUT_DIR) / "model_final.pth")
        scores = evaluate(cfg, model)
        rows.append([name] + [scores[metric] for metric in METRICS])
    table = tabulate(rows, ["", *(m.partition("/")[2] for m in METRICS)], floatfmt=".1f", tablefmt="github")
    miniworld.preview(out / "miniworld.png")
    _write_report(out, table, iterations, time.perf_counter() - start)
    return table


def _write_report(out: Path, table: str, iterations: int, seconds: float) -> None:
    folder = out / f"alpha_{ROWS[-1][1]}" / "evaluation" / SCORED_ON / "pictures"
    pictures = "\n".join(f"![{p.stem}]({p.relative_to(out)})" for p in sorted(folder.glob("*.png")))
    text = f"""# Demo: M2F-Lang on 10 % of miniworld's labels

100 labelled scenes of 128 x 128 pixels, {iterations} iterations of 8 crops, 100 scenes for evaluation; this run took
{seconds:.0f} seconds. Figures in percent.

{table}

Some scenes ([more](miniworld.png)); image, prediction and ground truth:

{pictures}
"""
    write_atomically(out / "report.md", lambda temporary: temporary.write_text(text))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dearli_d2.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/demo"))
    parser.add_argument("--iterations", type=int, default=450)
    args = parser.parse_args(argv)

    def command() -> int:
        print(f"\n{run(args.out, args.iterations)}\n\nreport: {args.out / 'report.md'}")
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main())
