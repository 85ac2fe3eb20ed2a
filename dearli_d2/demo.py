"""The DEARLi ladder on miniworld: labels only, + SSL, + ensembled pseudo-labels (DEAR), + decoder warm-up (DEARLi).

It takes the first 400 scenes with 5 % of their labels: 20 labelled scenes for 16 classes, as few images a class as in the
paper's smallest splits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from .checkpoint import load_weights
from .config import get_config
from .data import miniworld
from .data.catalog import dataset_dicts
from .engine.checkpoints import branch_off
from .engine.evaluation import evaluate
from .engine.trainer import DualStreamTrainer
from .files import beside_package, write_atomically, write_json
from .masks.classical import ClassicalGenerator
from .masks.generate import generate
from .masks.storage import MaskFolder
from .modeling import build_model
from .runs import set_up

CONFIGS = beside_package("configs") / "miniworld"
SCORED_ON = "miniworld_val"
METRICS = ("panoptic/PQ", "panoptic/PQ_th", "panoptic/PQ_st", "semantic/mIoU")
SCENES, LABELED = 400, 20
ONE_SEED = """One seed: rungs next to each other may change places, as a step is of the size of the spread between seeds.
`make ladder` climbs with three."""


@dataclass(frozen=True)
class Rung:
    """A row of the table: which training, and the ensemble's weight of the learned posterior at inference."""

    name: str
    config: str
    alpha: float


RUNGS = (
    Rung("M2F-Lang, labels only", "m2f_lang_5", 1.0),
    Rung("  + ensembling at inference only", "m2f_lang_5", 0.6),
    Rung("M2F-Lang + SSL", "ssl", 1.0),
    Rung("DEAR: + ensembled pseudo-labels", "dear", 0.6),
    Rung("DEARLi: + decoder warm-up", "dearli", 0.6),
)


def climb(out: Path, seed: int, iterations: int, warmup: int) -> list[dict[str, float]]:
    """Trains (or resumes) every rung of one seed; scores by rung. Finished rungs are read from their results."""
    partition = write_partition(out / "lists", seed)
    masks = MaskFolder(out.parent / "masks")
    files = [d["file_name"] for name in (partition, f"{partition}:unlabeled") for d in dataset_dicts(name)]
    generate(files, ClassicalGenerator(), masks, batch_size=8)
    period, start = iterations // 5, iterations // 5 * 3
    base = [
        *("SEED", str(seed), "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"),
        *("SOLVER.CHECKPOINT_PERIOD", str(period), "SOLVER.KEEP_CHECKPOINTS", "5"),
    ]
    train = ["DATASETS.TRAIN", f"('{partition}',)", "SOLVER.MAX_ITER", str(iterations)]
    unlabeled = ["DATASETS.UNLABELED", f"('{partition}:unlabeled',)", "SSL.START", str(start)]
    warm = out / "warmup"
    overrides = {
        "warmup": [
            *("DATASETS.TRAIN", f"('{partition}', '{partition}:unlabeled')", "DATASETS.MASKS", str(masks.folder)),
            *("SOLVER.MAX_ITER", str(warmup)),
        ],
        "m2f_lang_5": train,
        "ssl": train + unlabeled,
        "dear": train + unlabeled,
        "dearli": [*train, *unlabeled, "MODEL.WEIGHTS", str(warm / "model_final.pth")],
    }
    for name, options in overrides.items():
        cfg = get_config(CONFIGS / f"{name}.yaml", [*base, *options, "OUTPUT_DIR", str(out / name)])
        if not (out / name / "model_final.pth").is_file():
            if name in ("ssl", "dear"):  # until SSL.START they are the labels-only run
                branch_off(out / "m2f_lang_5", out / name, start)
            set_up(cfg)
            DualStreamTrainer(cfg, resume=True).train()
    return [_score(out, rung, base + overrides[rung.config]) for rung in RUNGS]


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_partition(folder: Path, seed: int) -> str:
    """The seed's `labeled.txt` and `unlabeled.txt`; returns the name of the labelled view."""
    stems = [Path(d["file_name"]).stem for d in dataset_dicts("miniworld_train")[:SCENES]]
    order = np.random.default_rng(seed).permutation(len(stems))
    for name, part in (("labeled", order[:LABELED]), ("unlabeled", order[LABELED:])):
        _write_text(folder / f"{name}.txt", "".join(f"{stems[i]}\n" for i in sorted(part)))
    return f"miniworld_train@{folder / 'labeled.txt'}"


def _score(out: Path, rung: Rung, options: Sequence[str]) -> dict[str, float]:
    """Scores of a rung; evaluated once."""
    folder = out / rung.config / f"alpha_{rung.alpha:g}"
    path = folder / "scores.json"
    if not path.is_file():
        cfg = get_config(
            CONFIGS / f"{rung.config}.yaml",
            [*options, "DATASETS.TEST", f"('{SCORED_ON}',)", "OUTPUT_DIR", str(folder), "MODEL.ENSEMBLE.AT_INFERENCE", "True",
             "MODEL.ENSEMBLE.ALPHA", str(rung.alpha), "TEST.PICTURES", "8" if rung is RUNGS[-1] else "0"],
        )  # fmt: skip
        model = build_model(cfg, load_backbone=False)
        load_weights(model, out / rung.config / "model_final.pth")
        write_json(path, evaluate(cfg, model))
    return json.loads(path.read_text())


def table(scores: list[list[dict[str, float]]]) -> str:
    """The table of the rungs' scores, `scores[seed][rung]`.

    With several seeds it shows mean ± standard deviation, and the mean gain over the rung before with its standard error.
    """
    several, rows = len(scores) > 1, []
    for index, rung in enumerate(RUNGS):
        values = np.array([[seed[index][m] for m in METRICS] for seed in scores])
        cells = [f"{v.mean():.1f}" + (f" ± {v.std(ddof=1):.1f}" if several else "") for v in values.T]
        if several:
            cells.append(_step(scores, index))
        rows.append([rung.name, *cells])
    headers = ["", *(m.partition("/")[2] for m in METRICS), *(["step in PQ ± s.e."] if several else [])]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _step(scores: list[list[dict[str, float]]], index: int) -> str:
    """From the labels-only rung to the two after it, then from rung to rung."""
    before = {1: 0, 2: 0, 3: 2, 4: 3}.get(index)
    if before is None:
        return ""
    steps = np.array([seed[index]["panoptic/PQ"] - seed[before]["panoptic/PQ"] for seed in scores])
    return f"{steps.mean():+.1f} ± {steps.std(ddof=1) / np.sqrt(len(steps)):.1f}"


def pseudo_label_quality(folder: Path) -> list[tuple[int, float]]:
    """(iteration, PQ of the teacher's pseudo-labels on unlabelled images) along a run."""
    lines = (folder / "metrics.json").read_text().splitlines()
    entries = {e["iteration"] + 1: e["pseudo_label/PQ"] for e in map(json.loads, lines) if "pseudo_label/PQ" in e}
    return sorted(entries.items())


def run(out: Path, seeds: int, iterations: int, warmup: int) -> str:
    """Climbs the ladder for every seed and writes the report; returns its table, with a word of caution for one seed."""
    start = time.perf_counter()
    scores = [climb(out / f"seed_{seed}", seed, iterations, warmup) for seed in range(seeds)]
    miniworld.preview(out / "miniworld.png")
    result = table(scores)
    if seeds == 1:
        result += f"\n\n{ONE_SEED}"
    write_json(out / "scores.json", {"rungs": [r.name for r in RUNGS], "scores": scores}, indent=1)
    _write_report(out, result, seeds, iterations, warmup, time.perf_counter() - start)
    return result


def _write_report(out: Path, result: str, seeds: int, iterations: int, warmup: int, seconds: float) -> None:
    first = out / "seed_0"
    folder = first / RUNGS[-1].config / f"alpha_{RUNGS[-1].alpha:g}" / "evaluation" / SCORED_ON / "pictures"
    pictures = "\n".join(f"![{p.stem}]({p.relative_to(out)})" for p in sorted(folder.glob("*.png")))
    batches = "\n".join(
        f"![{p.stem}]({p.relative_to(out)})" for p in sorted((first / "dear" / "batches").glob("*unlab*.png"))
    )
    curves = {name: dict(pseudo_label_quality(first / name)) for name in ("ssl", "dear", "dearli")}
    steps = sorted(set().union(*curves.values()))
    quality = [[step, *(f"{c[step]:.1f}" if step in c else "" for c in curves.values())] for step in steps]
    text = f"""# Demo: the DEARLi ladder on 5 % of miniworld's labels

{LABELED} labelled and {SCENES - LABELED} unlabelled scenes of 128 x 128 pixels, {iterations} iterations of 2 labelled (and,
after three fifths of them, 4 unlabelled) crops, {warmup} iterations of warm-up on class-agnostic masks of all scenes; 100 scenes for evaluation; {seeds} seed(s). This run
took {seconds:.0f} seconds. Figures in percent.

{result}

Panoptic quality of the teacher's pseudo-labels on unlabelled scenes along the run (seed 0):

{tabulate(quality, ["iteration", "SSL", "DEAR", "DEARLi"], tablefmt="github", disable_numparse=True)}

DEARLi's predictions ([more scenes](miniworld.png)); image, prediction and ground truth:

{pictures}

What DEAR's student is trained on: weak view, the teacher's pseudo-label of it, strong view with CutMix, its targets:

{batches}
"""
    write_atomically(out / "report.md", lambda temporary: temporary.write_text(text))
