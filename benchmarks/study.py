"""Rows x seeds of short trainings, resumable and shared out over processes, and their table."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dearli_d2.checkpoint import load_weights
from dearli_d2.config import get_config
from dearli_d2.engine.checkpoints import branch_off
from dearli_d2.engine.evaluation import evaluate
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.modeling import build_model
from dearli_d2.reporting import report_errors
from dearli_d2.runs import set_up

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


def results_of(row: Row, seed: int, out: Path, dataset: str) -> dict | None:
    """The results of a finished row of one seed, None of an unfinished one."""
    folder = out / row.folder / f"seed_{seed}"
    path = folder / "evaluation" / dataset / "results.json"
    if not path.is_file() or not (row.weights_of or (folder / "model_final.pth").is_file()):
        return None
    return json.loads(path.read_text())["results"]


def train(row: Row, seed: int, out: Path, options: Sequence[str], dataset: str) -> dict:
    """Trains, or resumes, one row of one seed unless it is finished; the results of its last evaluation."""
    results = results_of(row, seed, out, dataset)
    if results is not None:
        return results
    folder = out / row.folder / f"seed_{seed}"
    options = [*options, *(option.replace("{seed}", str(seed)) for option in row.options)]
    if row.weights_of:
        weights = out / row.weights_of / f"seed_{seed}" / "model_final.pth"
        named = ["DATASETS.TEST", f"('{dataset}',)", "OUTPUT_DIR", str(folder)]
        cfg = get_config(CONFIGS / row.config, [*options, *named])
        model = build_model(cfg, load_backbone=False)
        load_weights(model, weights)
        evaluate(cfg, model)
    else:
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
    results = results_of(row, seed, out, dataset)
    assert results is not None
    return results


def train_apart(
    jobs: Sequence[tuple[Row, int]], workers: int, out: Path, dataset: str, command: Callable[[int], list[str]]
) -> None:
    """Trains what is not finished, `workers` at a time, each in a process of its own with a log in `out/logs`. A process that
    fails is named, and stops no other.

    Args:
        command: the command line that trains job i alone.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    begin = time.monotonic()

    def run(index: int) -> None:
        row, seed = jobs[index]
        log = out / "logs" / f"{row.folder}_{seed}.txt"
        with log.open("w") as stream:
            code = subprocess.run(
                command(index), stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        state = f"FAILED with code {code}, see {log}" if code else "done"
        print(f"{time.monotonic() - begin:5.0f} s  {row.folder}, seed {seed}: {state}", flush=True)

    missing = [i for i, (row, seed) in enumerate(jobs) if results_of(row, seed, out, dataset) is None]
    later = [i for i in missing if jobs[i][0].weights_of or jobs[i][0].branches_from]  # they need files of other rows
    with ThreadPoolExecutor(workers) as pool:
        for wave in ([i for i in missing if i not in later], later):
            list(pool.map(run, wave))


def table(rows: Sequence[Row], metrics: Sequence[Metric], results: list[list[dict | None]]) -> str:
    """`results[row][seed]`, None where there is none: mean ± sd, and each row's first metric by seed."""
    lines, seeds = [], len(results[0])
    for row, of_seeds in zip(rows, results, strict=True):
        values = np.array([[metric.value(r) for metric in metrics] for r in of_seeds if r is not None])
        if not len(values):
            lines.append([row.name, *("–" for _ in metrics), "no results"])
            continue
        cells = [f"{v.mean():.1f}" + (f" ± {v.std(ddof=1):.1f}" if len(v) > 1 else "") for v in values.T]
        of_first = ["–" if r is None else f"{metrics[0].value(r):.1f}" for r in of_seeds]
        lines.append([row.name, *cells, " ".join(of_first)])
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
    """The command line of a study: trains all that is missing and prints the table. With `--jobs` it does so in as many
    processes at a time, with `--shard i/n` it trains its share alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rows", nargs="+", choices=[row.folder for row in rows], metavar="ROW", help="some of %(choices)s"
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--shard", default="0/1", help="i/n: the i-th of n processes")
    parts.add_argument("--jobs", type=int, default=0, help="trainings at a time, each a process of its own")
    parser.add_argument("--out", type=Path, default=Path("output") / name)
    parser.add_argument(
        "options", nargs="*", help="KEY VALUE overrides of all rows; before --rows, or after another option"
    )
    sys.exit(report_errors(lambda: _run(parser.parse_args(), rows, metrics, options_of_seed, name, dataset)))


def _run(
    args: argparse.Namespace,
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    options_of_seed: Callable[[Path, int], Sequence[str]],
    name: str,
    dataset: str,
) -> int:
    """Trains and prints; returns the exit status."""
    chosen = [row for row in rows if not args.rows or row.folder in args.rows]
    shard, shards = map(int, args.shard.split("/"))
    jobs = [(row, seed) for seed in range(args.seeds) for row in chosen]
    if args.jobs:
        for seed in range(args.seeds):
            options_of_seed(args.out, seed)  # lists and generated scenes, made once and not by each process
        same = ["--seeds", str(args.seeds), "--out", str(args.out), "--rows", *(row.folder for row in chosen)]
        start = [sys.executable, "-m", f"benchmarks.{name}", *args.options, *same]
        train_apart(jobs, args.jobs, args.out, dataset, lambda i: [*start, "--shard", f"{i}/{len(jobs)}"])
    else:
        for row, seed in jobs[shard::shards]:
            train(row, seed, args.out, [*options_of_seed(args.out, seed), *args.options], dataset)
        if shards > 1:
            return 0
    logging.disable(logging.INFO)
    results = [[results_of(row, seed, args.out, dataset) for seed in range(args.seeds)] for row in chosen]
    print(table(chosen, metrics, results))
    if any(r is None for of_row in results for r in of_row):
        print("some trainings failed; the same command continues them", file=sys.stderr)
        return 1
    return 0
