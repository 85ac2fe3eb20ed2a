"""Class-agnostic masks: images per second and host time beside the network, against the code before shards and threads.

    python -m benchmarks.masks --images 24 --rounds 3 --records 100000

Both versions segment the same scenes of miniworld, enlarged to 640 x 480, with the same tiny random SAM on the same machine, in turns,
each in a process of its own. The filters let all masks through (about 190 an image), so that what lies beside the network shows, as on
a GPU. "Beside" is the time of the thread that has the network for run lengths and files: what a GPU waits for. Then a folder of
made-up masks is read by chance, as a training worker does, from shards and from a file for each image.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tabulate import tabulate

from dearli_d2.data import miniworld
from dearli_d2.masks.shards import Record
from dearli_d2.masks.storage import MaskFolder, encode

REPO = Path(__file__).parents[1]
BEFORE = "41ceeea"

# runs in either version: seconds of all images, of the processor, and of the network's thread beside the network
TIMED = """
import json, sys, threading, time
import dearli_d2.masks.generate as generate
import dearli_d2.masks.storage as storage
from tests.masks import test_masks
folder, out = sys.argv[1:3]
files = sorted(str(p) for p in __import__("pathlib").Path(folder).iterdir())
beside, main = [0.0], threading.main_thread()

def timed(owner, name):
    original = getattr(owner, name)
    def call(*args, **options):
        start = time.perf_counter()
        try:
            return original(*args, **options)
        finally:
            if threading.current_thread() is main:
                beside[0] += time.perf_counter() - start
    setattr(owner, name, call)

options = {"predicted_iou": -1e9, "stability": 0.0, "nms": 1.0}
sam = test_masks.tiny_sam()
try:
    from dearli_d2.masks import run_lengths
    generator = test_masks.sam_generator(sam, **options)
    timed(run_lengths.RunLengths, "of")
    timed(run_lengths.RunLengths, "encoded")
except ImportError:
    from dearli_d2.masks import sam as old
    generator = old.SamGenerator(sam, 8, **options)
    timed(old, "annotation")
timed(storage.MaskFolder, "write")
generate.generate(files[:2], generator, storage.MaskFolder(out + "/warm"))
beside[0] = 0.0
start, cpu = time.perf_counter(), time.process_time()
counts = generate.generate(files, generator, storage.MaskFolder(out + "/all"))
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
n = len(files)
print(json.dumps({"seconds": seconds / n, "cpu": cpu / n, "beside": beside[0] / n, "masks": counts["masks"] / n}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        generation(Path(name), args.images, args.rounds)
        storage(Path(name), args.records)


def generation(folder: Path, images: int, rounds: int) -> None:
    """Prints the table of both versions: the best of the rounds."""
    (folder / "images").mkdir()
    for index in range(images):
        scene = Image.fromarray(miniworld.make_scene(0, index, size=256).image)
        scene.resize((640, 480)).save(folder / "images" / f"{index:04}.png")
    archive = subprocess.run(["git", "archive", BEFORE], cwd=REPO, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as file:
        file.extractall(folder / "before", filter="data")
    found: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    for number in range(rounds):
        for version, tree in (("before", folder / "before"), ("now", REPO)):
            command = [sys.executable, "-c", TIMED, str(folder / "images"), str(folder / f"{version}_{number}")]
            run = subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, stdout=-1)
            found[version].append(json.loads(run.stdout.splitlines()[-1]))
    rows = []
    for version, runs in found.items():
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        per_second, milliseconds = 1 / best["seconds"], (1000 * best[key] for key in ("cpu", "beside"))
        rows.append([version, f"{per_second:.2f}", *(f"{ms:.1f}" for ms in milliseconds), f"{best['masks']:.0f}"])
    ratio = min(r["seconds"] for r in found["before"]) / min(r["seconds"] for r in found["now"])
    print(tabulate(rows, ["version", "images/s", "processor ms", "beside ms", "masks an image"], "github"))
    print(f"ratio {ratio:.2f}, {images} images of 640 x 480, best of {rounds} rounds in turns\n")


def storage(folder: Path, count: int) -> None:
    """Prints seconds and megabytes of a folder of `count` images in shards, and of a part of it with a file for each image."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    circles = [
        (y - rng.integers(480)) ** 2 + (x - rng.integers(640)) ** 2 < rng.integers(10, 90) ** 2 for _ in range(100)
    ]
    annotations = [{"segmentation": encode(c), "area": int(c.sum()), "predicted_iou": 0.9} for c in circles]
    content = json.dumps({"image": {"height": 480, "width": 640}, "annotations": annotations}).encode()
    shards = MaskFolder(folder / "shards").shards
    start = time.perf_counter()
    for first in range(0, count, 1000):
        shards.write([Record(f"{i:09}", content) for i in range(first, min(first + 1000, count))])
    rows = [["write all", f"{time.perf_counter() - start:.1f} s"]]
    stems = [f"{i:09}" for i in rng.choice(count, 2000, replace=False)]
    reader = MaskFolder(folder / "shards")
    for what in ("index anew", "index from its file"):
        reader.refresh()
        start = time.perf_counter()
        reader.shards.read(stems[0])
        rows.append([what, f"{time.perf_counter() - start:.3f} s"])
    start = time.perf_counter()
    reader.have([f"{i:09}" for i in range(count)])
    rows.append(["which of all images have masks", f"{time.perf_counter() - start:.2f} s"])
    rows.append(["read one by chance, from a shard", f"{1e3 * seconds(lambda s: reader.shards.read(s), stems):.3f} ms"])
    alone = MaskFolder(folder / "files", shard=0)
    for stem in stems:
        alone.write_record(Record(stem, content))
    rows.append(
        ["the same, a file for each", f"{1e3 * seconds(lambda s: alone.path(s + '.jpg').read_bytes(), stems):.3f} ms"]
    )
    rows.append(["decode its masks", f"{1e3 * seconds(lambda s: alone.read(s + '.jpg'), stems[:50]):.1f} ms"])
    size = sum(path.stat().st_size for path in shards.files())
    index = (folder / "shards" / "shards" / "index.bin").stat().st_size
    rows.append(
        ["mask files, an image", f"{len(content) / 1024:.1f} KiB in a file, {size / count / 1024:.1f} KiB in a shard"]
    )
    rows.append(["index", f"{index / 1e6:.1f} MB"])
    print(tabulate(rows, [f"{count} images of 100 masks", ""], "github"))


def seconds(call, items: list[str]) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for item in items:
        call(item)
    return (time.perf_counter() - start) / len(items)


if __name__ == "__main__":
    main()
