"""Rows x seeds of short trainings, resumable and shared out over processes, and their table."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dearli_d2.checkpoint import load_weights
from dearli_d2.cli import set_up
from dearli_d2.config import get_config
from dearli_d2.engine.checkpoints import branch_off
from dearli_d2.engine.evaluation import evaluate
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.modeling import build_model

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Row:
    """One training: name in the table, short name of its folder, config below `configs/`, overrides, in which "{seed}" stands
    for the seed; `weights_of`: folder of another row whose weights are evaluated instead; `branches_from`: folder of another row
    that is the same training until SSL.START."""

    name: str
    folder: str
    config: str
    options: tuple[str, ...] = ()
    weights_of: str = ""
    branches_from: str = ""


@dataclass(frozen=True)
class Metric:
    """A column: name, and its value from the results of a data set."""

    name: str
    value: Callable[[dict], float]


def semantic(name: str) -> Callable[[dict], float]:
    """A semantic score, such as hIoU, in percent."""
    return lambda results: results["semantic"][name]


def panoptic(name: str) -> Callable[[dict], float]:
    """A panoptic score, such as PQ, in percent."""
    return lambda results: results["panoptic"][name]


def mean_iou_of(*names: str) -> Callable[[dict], float]:
    """Mean IoU of some classes in percent."""
    return lambda results: float(np.mean([results["semantic"]["per_class"][n]["IoU"] or 0.0 for n in names]))


def train(row: Row, seed: int, out: Path, options: Sequence[str], dataset: str) -> dict:
    """Trains, or resumes, one row of one seed; the results of its last evaluation."""
    folder = out / row.folder / f"seed_{seed}"
    path = folder / "evaluation" / dataset / "results.json"
    options = [*options, *(option.replace("{seed}", str(seed)) for option in row.options)]
    if row.weights_of and not path.is_file():
        weights = out / row.weights_of / f"seed_{seed}" / "model_final.pth"
        named = ["DATASETS.TEST", f"('{dataset}',)", "OUTPUT_DIR", str(folder)]
        cfg = get_config(CONFIGS / row.config, [*options, *named])
        model = build_model(cfg, load_backbone=False)
        load_weights(model, weights)
        evaluate(cfg, model)
    elif not row.weights_of and not ((folder / "model_final.pth").is_file() and path.is_file()):
        fixed = [
            "SEED",
            str(seed),
            "DATASETS.TEST",
            f"('{dataset}',)",
            "TEST.EVAL_PERIOD",
            "0",
            "OUTPUT_DIR",
            str(folder),
        ]
        cfg = get_config(CONFIGS / row.config, [*options, *fixed])
        if row.branches_from:
            branch_off(out / row.branches_from / f"seed_{seed}", folder, cfg.SSL.START)
        set_up(cfg)
        DualStreamTrainer(cfg, resume=True).train()
    return json.loads(path.read_text())["results"]


def table(rows: Sequence[Row], metrics: Sequence[Metric], results: list[list[dict]], seeds: int) -> str:
    """`results[row][seed]`: mean ± sd, and each row's first metric by seed."""
    lines = []
    for row, of_seeds in zip(rows, results, strict=True):
        values = np.array([[metric.value(r) for metric in metrics] for r in of_seeds])
        cells = [f"{v.mean():.1f}" + (f" ± {v.std(ddof=1):.1f}" if seeds > 1 else "") for v in values.T]
        lines.append([row.name, *cells, " ".join(f"{v:.1f}" for v in values[:, 0])])
    headers = [f"{seeds} seeds", *(metric.name for metric in metrics), f"{metrics[0].name} by seed"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def main(
    description: str,
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    options_of_seed: Callable[[Path, int], Sequence[str]],
    name: str,
    dataset: str = "miniworld_val",
) -> None:
    """The command line of a study. With `--shard i/n` a process trains its share; without, all that is missing, and prints
    the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rows", nargs="+", choices=[row.folder for row in rows], metavar="ROW", help="some of %(choices)s"
    )
    parser.add_argument("--shard", default="0/1", help="i/n: the i-th of n processes")
    parser.add_argument("--out", type=Path, default=Path("output") / name)
    parser.add_argument(
        "options", nargs="*", help="KEY VALUE overrides of all rows; before --rows, or after another option"
    )
    args = parser.parse_args()
    chosen = [row for row in rows if not args.rows or row.folder in args.rows]
    shard, shards = map(int, args.shard.split("/"))
    jobs = [(row, seed) for seed in range(args.seeds) for row in chosen]
    for row, seed in jobs[shard::shards]:
        train(row, seed, args.out, [*options_of_seed(args.out, seed), *args.options], dataset)
    if shards > 1:
        return
    logging.disable(logging.INFO)
    results = [[train(row, s, args.out, [], dataset) for s in range(args.seeds)] for row in chosen]
    print(table(chosen, metrics, results, args.seeds))
