"""Start-up and memory of a training with a million unlabelled images, beside an older commit of the project in the same run.

    python -m benchmarks.many_images --images 1000000 --before 41ceeea --images-before 100000

A folder of made-up images is written below --folder: one small PNG and hard links to it. Each side runs in processes of its own: it
registers the folder, makes the unlabelled stream with workers, and reads batches until each worker has read many images. A rank's
seconds are those until the stream is made. Megabytes are what the images add, against a folder with 1000 of them: USS (pages of a
process alone) and PSS (shared pages divided among their users), from /proc/PID/smaps_rollup.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

REPO = Path(__file__).parents[1]
PER_FOLDER = 1000
FEW = 1000  # images of the run whose memory is subtracted

# runs on both sides, so it uses what both have
SIDE = r"""
import json, multiprocessing, os, sys, time
from pathlib import Path

folder, labels, workers, samples = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
import torch
from dearli_d2.data import catalog
from dearli_d2.data.catalog import ImageFolder, PanopticSource, dataset_dicts, register
from dearli_d2.data.streams import build_stream

records = getattr(catalog, "dataset_records", dataset_dicts)
torch.set_num_threads(1)


def memory(pid):
    lines = open(f"/proc/{pid}/smaps_rollup").read().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return found["Private_Clean"] + found["Private_Dirty"], found["Pss"]


def mapper(d):
    return {"file": d["file_name"], "worker": os.getpid()}


if labels:
    register("made_up", PanopticSource(folder, Path(labels), folder))
else:
    register("made_up", ImageFolder(folder))
start = time.perf_counter()
found = records("made_up")
first = time.perf_counter() - start
start = time.perf_counter()
found = records("made_up")
again = time.perf_counter() - start
stream = build_stream(found, mapper, 64, seed=0, num_workers=workers)
seen, pids = 0, set()
while seen < samples:
    batch = next(stream)
    seen += len(batch)
    pids |= {s["worker"] for s in batch}
rank, workers = memory(os.getpid()), [memory(pid) for pid in sorted(pids)]
print("RESULT " + json.dumps({"images": len(found), "first": first, "again": again, "rank": rank, "workers": workers}))
os._exit(0)
"""


def make_folder(root: Path, images: int) -> Path:
    """Folders of a thousand hard links to one small PNG."""
    from PIL import Image

    root.mkdir(parents=True)
    for number in range(-(-images // PER_FOLDER)):
        folder = root / f"{number:05d}"
        folder.mkdir()
        first = folder / "image_00000000.png"  # a file has at most 65,000 links on some file systems
        Image.new("RGB", (4, 4), (number % 256, 0, 0)).save(first)
        for index in range(1, min(PER_FOLDER, images - number * PER_FOLDER)):
            os.link(first, folder / f"image_{index:08d}.png")
    return root


def make_labels(path: Path, images: int) -> Path:
    """A COCO-panoptic JSON file with eleven segments an image, as COCO has."""
    segment = {"iscrowd": 0, "bbox": [0, 0, 10, 10], "area": 1234}
    content = {
        "images": [
            {"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640, "license": 1, "flickr_url": "x" * 60}
            for i in range(images)
        ],
        "annotations": [
            {
                "image_id": i,
                "file_name": f"{i:012d}.png",
                "segments_info": [
                    {"id": 1000 * (i % 5000) + s + 1, "category_id": s % 133 + 1, **segment} for s in range(11)
                ],
            }
            for i in range(images)
        ],
        "categories": [{"id": c, "name": f"class {c}", "isthing": c % 2} for c in range(1, 134)],
    }
    path.write_text(json.dumps(content))
    return path


def run(code: Path, cache: Path, folder: Path, labels: Path | None, workers: int, samples: int) -> dict:
    """One process of a side, with the code of a checkout."""
    env = {**os.environ, "PYTHONPATH": str(code), "DEARLI_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", SIDE, str(folder), str(labels or ""), str(workers), str(samples)],
        env=env, cwd=cache, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{code}: {done.stderr[-2000:]}")
    return {**json.loads(lines[0].removeprefix("RESULT ")), "seconds": time.perf_counter() - start}


def row(side: str, what: str, found: dict, few: dict) -> list:
    """Seconds, and megabytes more than with few images: of the rank, and the mean of its workers."""
    added = []
    for kind in (0, 1):
        workers = [sum(w[kind] for w in run["workers"]) / len(run["workers"]) for run in (found, few)]
        added += [found["rank"][kind] - few["rank"][kind], workers[0] - workers[1]]
    return [side, what, found["images"], found["first"], found["again"], added[0], added[2], added[1], added[3]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10**6)
    parser.add_argument("--before", default="41ceeea", help="commit to compare with; '' = none")
    parser.add_argument("--images-before", type=int, default=10**5)
    parser.add_argument("--labelled", type=int, default=118_000, help="images of the JSON file; 0 = none")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=40_000, help="images that the workers read together")
    parser.add_argument(
        "--folder", type=Path, help="for the made-up files; deleted at the end. Default: a temporary one"
    )
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="many-images-", dir=args.folder))
    older = place / "before"
    try:
        folders = {n: make_folder(place / f"images-{n}", n) for n in {FEW, args.images_before, args.images}}
        labels = {n: make_labels(place / f"labels-{n}.json", n) for n in {FEW, args.labelled} if args.labelled}
        if args.before:
            subprocess.run(
                ["git", "worktree", "add", "--detach", older, args.before], cwd=REPO, check=True, capture_output=True
            )
        rows = []
        for side, code, images in (("before", older, args.images_before), ("now", REPO, args.images)):
            if side == "before" and not args.before:
                continue
            cache = place / f"cache-{side}"
            cache.mkdir()
            options = args.workers, args.samples
            few = run(code, cache, folders[FEW], None, *options)
            rows.append(row(side, "folder", run(code, cache, folders[images], None, *options), few))
            if side == "now":
                rows.append(row(side, "folder, from the cache", run(code, cache, folders[images], None, *options), few))
            if args.labelled:
                few = run(code, cache, folders[FEW], labels[FEW], *options)
                rows.append(row(side, "JSON", run(code, cache, folders[FEW], labels[args.labelled], *options), few))
                if side == "now":
                    found = run(code, cache, folders[FEW], labels[args.labelled], *options)
                    rows.append(row(side, "JSON, from the cache", found, few))
        headers = [
            "code", "data", "images", "s, first", "s, again", "rank USS MB", "rank PSS MB", "worker USS MB", "worker PSS MB",
        ]  # fmt: skip
        print(tabulate(rows, headers, tablefmt="github", floatfmt=".1f"))
    finally:
        if older.exists():
            subprocess.run(["git", "worktree", "remove", "--force", older], cwd=REPO, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
