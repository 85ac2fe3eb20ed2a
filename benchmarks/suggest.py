"""What chosen labels are worth: a model of a few labels chooses as many more, and a new training has both.

    python -m benchmarks.suggest --data miniworld --seeds 3     # 20 + 20 images
    python -m benchmarks.suggest --data camvid --seeds 1 --ways both random     # 46 + 46 images, needs dearli prepare camvid
    python -m benchmarks.suggest --errors --seeds 3             # finding labels whose class was changed

The chosen images get their true labels, in place of a person's. All trainings of a data set have the same number of steps. The
same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.data.custom import TRAIN, register_custom
from dearli_d2.reporting import report_errors
from dearli_d2.run_model import RunModel
from dearli_d2.suggest.choose import WAYS
from dearli_d2.suggest.doubted import doubted_segments, judge_image, labeled_and_held_back
from dearli_d2.suggest.unlabeled import rank, score_images

from . import study

_METRICS = {
    "miniworld": (study.Metric("mIoU", study.semantic("mIoU")),),
    "camvid": (study.Metric("PQ", study.panoptic("PQ")), study.Metric("mIoU", study.semantic("mIoU"))),
}
_QUIET = ("SOLVER.KEEP_CHECKPOINTS", "1", "TEST.PICTURES", "0")
# of a short training on miniworld that separates 20 labels from 40: the pretrained tower with a head for each pixel
_PIXELS = (
    "MODEL.SEMIDAVIL.GUIDANCE", "False", "DATASETS.SOURCE", "()", "DATASETS.UNLABELED", "()", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_ITER", "300",
)  # fmt: skip
# config, labelled images of a seed, how many are chosen, set of the evaluation, options
_DATA = {
    "miniworld": ("miniworld/semidavil.yaml", "miniworld_train@n20~{seed}", 20, "miniworld_val", _PIXELS),
    "camvid": (
        "camvid/labels.yaml", "camvid_train@1_8", 46, "camvid_val", ("SOLVER.MAX_ITER", "250", "DATALOADER.NUM_WORKERS", "0"),
    ),
}  # fmt: skip
_NAMES = {"both": "suggested", "uncertainty": "uncertainty alone", "random": "chance"}


def chosen_lists(run: Path, start: str, count: int, out: Path, seed: int) -> dict[str, Path]:
    """Lists of the labelled images and those that each way chooses, by its name."""
    lists = {way: out / "lists" / f"{way}_{seed}.txt" for way in WAYS}
    if all(path.is_file() for path in lists.values()):
        return lists
    labeled, rest = dataset_dicts(start), dataset_dicts(f"{start}:unlabeled")
    model = RunModel(run)
    scored = score_images(
        model, model.predictor(), [Path(d["file_name"]) for d in rest], labeled, out / f"scores_{seed}"
    )
    for way, path in lists.items():
        chosen = rank(scored, labeled, taxonomy_of(start), count, way, seed)
        files = [d["file_name"] for d in labeled] + [str(scored.paths[s.place]) for s in chosen]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{file}\n" for file in files))
    return lists


def choices(data: str, seeds: int, out: Path, ways: Sequence[str] = WAYS) -> str:
    """Trains all rows of all seeds; the table."""
    config, start, count, dataset, options = _DATA[data]
    results: dict[str, list[dict]] = {}
    for seed in range(seeds):
        view = start.replace("{seed}", str(seed))
        first = study.Row("", "start", config, (*options, *_QUIET, "DATASETS.TRAIN", f"('{view}',)"))
        results.setdefault(f"{count} labelled images", []).append(study.train(first, seed, out, [], dataset))
        lists = chosen_lists(out / "start" / f"seed_{seed}", view, count, out, seed)
        for way in ways:
            name = f"('{view.partition('@')[0]}@{lists[way].absolute()}',)"
            row = study.Row("", way, config, (*options, *_QUIET, "DATASETS.TRAIN", name))
            results.setdefault(f"+ {count}: {_NAMES[way]}", []).append(study.train(row, seed, out, [], dataset))
    rows, metrics = [], _METRICS[data]
    for name, of_seeds in results.items():
        values = np.array([[metric.value(r) for metric in metrics] for r in of_seeds])
        rows.append([name, *(with_error(v) for v in values.T), " ".join(f"{v:.1f}" for v in values[:, 0])])
    return tabulate(
        rows, [f"{data}, {seeds} seeds", *(m.name for m in metrics), f"{metrics[0].name} by seed"], tablefmt="github"
    )


def with_error(values: np.ndarray) -> str:
    """Mean ± standard error of the mean."""
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{error}"


def write_with_errors(folder: Path, part: str, share: float, seed: int) -> set[tuple[str, int]]:
    """Own data of a part of miniworld in which the class of some segments is another of the same kind.

    Returns:
        (name of the image, segment id) of the changed ones.
    """
    dicts, taxonomy = dataset_dicts(part), taxonomy_of(part)
    generator = np.random.default_rng(seed)
    every = [(d, s) for d in dicts for s in d["segments_info"] if not s["iscrowd"]]
    wrong = set(generator.permutation(len(every))[: round(share * len(every))].tolist())
    changed, classes = set(), {}
    for i, (d, s) in enumerate(every):
        name, category = Path(d["file_name"]).name, s["category_id"]
        if i in wrong:
            things = category in taxonomy.thing_ids
            shown = {x["category_id"] for x in d["segments_info"]}
            free = [c for c in range(len(taxonomy)) if (c in taxonomy.thing_ids) == things and c not in shown]
            category = int(generator.choice(free))
            changed.add((name, s["id"]))
        classes[name, s["id"]] = category
    for sub, key in (("images", "file_name"), ("masks", "pan_seg_file_name")):
        (folder / sub).mkdir(parents=True, exist_ok=True)
        for d in dicts:
            link = folder / sub / Path(d[key]).name
            if not link.exists():
                os.symlink(d[key], link)
    content = {
        "images": [{"id": n, "file_name": Path(d["file_name"]).name, "height": d["height"], "width": d["width"]} for n, d in enumerate(dicts)],
        "annotations": [
            {
                "image_id": n, "file_name": Path(d["pan_seg_file_name"]).name,
                "segments_info": [
                    {"id": s["id"], "category_id": taxonomy.dataset_ids[classes[Path(d["file_name"]).name, s["id"]]], "area": s["area"], "iscrowd": 0, "bbox": [0, 0, 1, 1]}
                    for s in d["segments_info"] if not s["iscrowd"]
                ],
            }
            for n, d in enumerate(dicts)
        ],
        "categories": [{"id": taxonomy.dataset_ids[c], "name": taxonomy.main_names[c], "isthing": int(c in taxonomy.thing_ids)} for c in range(len(taxonomy))],
    }  # fmt: skip
    (folder / "labels.json").write_text(json.dumps(content))
    return changed


def errors(seeds: int, out: Path) -> str:
    """Changes the class of 10 % of the segments of 100 images; how many are among the most doubtful fifth."""
    config, start, _, dataset, options = _DATA["miniworld"]
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        folder = out / f"data_{seed}"
        changed = write_with_errors(folder, f"miniworld_train@n100~{seed}", 0.1, seed)
        own = (
            "DATASETS.CUSTOM.ROOT", str(folder.absolute()), "DATASETS.CUSTOM.PANOPTIC_JSON", "labels.json",
            "DATASETS.CUSTOM.VAL_FRACTION", "0", "DATASETS.TRAIN", f"('{TRAIN}',)",
        )  # fmt: skip
        register_custom(get_config(study.CONFIGS / config, own).DATASETS.CUSTOM)
        study.train(study.Row("", "wrong", config, (*options, *_QUIET, *own)), seed, out, [], dataset)
        wrong = RunModel(out / "wrong" / f"seed_{seed}")
        dicts = {key: d for key, (d, _) in labeled_and_held_back(wrong.config).items()}
        study.train(
            study.Row("", "start", config, (*options, *_QUIET, "DATASETS.TRAIN", f"('{start}',)")), seed + 100, out, [], dataset
        )  # fmt: skip
        other = RunModel(out / "start" / f"seed_{seed + 100}")
        for name, model in (("trained on these labels", wrong), ("trained on 20 other images", other)):
            predictor = model.predictor()
            judge = partial(judge_image, predictor.model, predictor.mapper, dicts)
            ranked = doubted_segments(
                [{"image": d["file_name"], **s} for key, d in dicts.items() for s in judge(key)["segments"]]
            )
            hits = [(Path(r["image"]).name, r["id"]) in changed for r in ranked]
            found.setdefault(f"{name}: first 20 %", []).append(100 * sum(hits[: round(0.2 * len(hits))]) / sum(hits))
            suspected = [hit for hit, r in zip(hits, ranked, strict=True) if r["suspected"]]
            found.setdefault(f"{name}: suspected", []).append(100 * sum(suspected) / sum(hits))
            found.setdefault(f"{name}: share of the suspected that is wrong", []).append(
                100 * sum(suspected) / max(len(suspected), 1)
            )
    rows = [[name, with_error(np.array(v)), " ".join(f"{x:.0f}" for x in v)] for name, v in found.items()]
    return tabulate(rows, ["changed labels found, %", "mean ± s.e.", "by seed"], tablefmt="github")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=_DATA, default="miniworld")
    parser.add_argument("--errors", action="store_true", help="finding of wrong labels instead")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="some of the ways to choose")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: output/suggest/DATA, or output/suggest/errors")
    args = parser.parse_args()
    out = args.out or Path("output/suggest") / ("errors" if args.errors else args.data)
    text = errors(args.seeds, out) if args.errors else choices(args.data, args.seeds, out, args.ways)
    logging.disable(logging.INFO)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
