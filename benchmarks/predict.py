"""Prediction of a folder: images per second against the code before the pipeline, and equality after kill -9.

    python -m benchmarks.predict --images FOLDER --small 200 --large 20 --rounds 1 --kills 5

The photographs of FOLDER are cut and resized to 480 x 360 and 1920 x 1080. Both versions predict the same files with the same
model on the same machine, one after the other in turns, each in a process of its own. Loading is not timed. The model is that of
configs/miniworld/m2f.yaml after a few steps, on images of 64 pixels: small, so that what lies beside the network shows, as on a
GPU. The network's own time is in the table, since it is the same in both versions. Seconds of the processor are there too: other
work on the machine changes them less.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tabulate import tabulate

from dearli_d2.data.images import find_images

REPO = Path(__file__).parents[1]
BEFORE = "41ceeea"
CONFIG = "configs/miniworld/m2f.yaml"
SIZES = {"small": (480, 360), "large": (1920, 1080)}
FILES = {"three files": ("panoptic", "semantic", "overlay"), "panoptic alone": ("panoptic",)}

# runs in either version, and prints the seconds of all images and, where it is asked, of the network alone
TIMED = """
import json, sys, time
import torch
from dearli_d2.data.images import read_image
from dearli_d2.predict import Predictor, predict_files
from dearli_d2.prediction_folder import PredictionFolder, find_inputs
config, weights, folder, out, kinds = sys.argv[1:6]
from dearli_d2.config import get_config
predictor = Predictor(get_config(config, ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"]), weights)
images = find_inputs([folder])
warm = find_inputs(images.paths[:2])
predict_files(predictor, PredictionFolder(out + "/warm", warm, {}, kinds=kinds.split(",")))
start, cpu = time.perf_counter(), time.process_time()
predict_files(predictor, PredictionFolder(out + "/all", images, {}, kinds=kinds.split(",")))
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
inputs = [predictor.model.preprocess([predictor.mapper.prepare(read_image(p))]).tensor for p in images.paths[:20]]
start = time.perf_counter()
with torch.no_grad():
    for x in inputs:
        predictor.model.predict(x)
network = (time.perf_counter() - start) / len(inputs)
count = len(images.paths)
print(json.dumps({"seconds": seconds / count, "network": 1000 * network, "cpu": 1000 * cpu / count}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--small", type=int, default=200, help="photographs of 480 x 360")
    parser.add_argument("--large", type=int, default=20, help="photographs of 1920 x 1080")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--weights", type=Path, help=f"of {CONFIG}; default: trained for 250 steps")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = args.weights or train(folder)
        photographs = {
            size: make_photographs(args.images, folder / size, getattr(args, size), SIZES[size]) for size in SIZES
        }
        if args.rounds:
            print(compare(folder, photographs, weights, args.rounds), flush=True)
        if args.kills:
            print(killed(folder, photographs["small"], weights, args.kills))


def train(folder: Path) -> Path:
    words = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "250", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]
    command = ["train", "--config-file", CONFIG, *words, "OUTPUT_DIR", str(folder / "model")]
    subprocess.run([sys.executable, "-m", "dearli_d2", *command], cwd=REPO, check=True, stdout=subprocess.DEVNULL)
    return folder / "model" / "model_final.pth"


def make_photographs(source: Path, target: Path, count: int, size: tuple[int, int]) -> Path:
    """`count` JPEG files, by the photographs of `source` in turns."""
    target.mkdir()
    found = find_images([source])
    for index in range(count):
        image = Image.open(found[index % len(found)]).convert("RGB")
        ImageOps.fit(image, size).save(target / f"{index:04}.jpg", quality=92)
    return target


def compare(folder: Path, photographs: dict[str, Path], weights: Path, rounds: int) -> str:
    archive = folder / "before.tar"
    subprocess.run(["git", "archive", "-o", str(archive), BEFORE], cwd=REPO, check=True)
    with tarfile.open(archive) as files:
        files.extractall(folder / "before", filter="data")
    trees = {"before": folder / "before", "now": REPO}
    found: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for number in range(rounds):
        for size, images in photographs.items():
            for what, kinds in FILES.items():
                for version, tree in trees.items():
                    out = folder / f"{version}_{size}_{what[:5]}_{number}"
                    words = [str(weights), str(images), str(out), ",".join(kinds)]
                    run = subprocess.run(
                        [sys.executable, "-c", TIMED, str(tree / CONFIG), *words],
                        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, capture_output=True, text=True,
                    )  # fmt: skip
                    found.setdefault((size, what, version), []).append(json.loads(run.stdout.splitlines()[-1]))
    median = {
        key: {name: float(np.median([run[name] for run in runs])) for name in runs[0]} for key, runs in found.items()
    }
    rows = []
    for size, what, version in found:
        if version == "now":
            usual, same, now = (
                median[size, "three files", "before"],
                median[size, what, "before"],
                median[size, what, "now"],
            )
            speeds = [1 / run["seconds"] for run in (usual, same, now)]
            ratios = [speeds[2] / speeds[0], speeds[2] / speeds[1], same["cpu"] / now["cpu"]]
            rows.append(
                [
                    f"{SIZES[size][0]} x {SIZES[size][1]}",
                    what,
                    *speeds,
                    *ratios,
                    same["cpu"],
                    now["cpu"],
                    now["network"],
                ]
            )
    headers = [
        "image", "written", "before, three files: images/s", "before, same files: images/s", "now: images/s", "times",
        "times, same files", "times, processor", "before: CPU ms", "now: CPU ms", "of it the network",
    ]  # fmt: skip
    return tabulate(rows, headers, floatfmt=".1f", tablefmt="github")


def killed(folder: Path, images: Path, weights: Path, kills: int) -> str:
    """Kills a run at random moments, lets it end, and compares it with one that was not killed."""
    random.seed(0)
    whole, out, count = folder / "whole", folder / "killed", len(list(images.iterdir()))
    command = ["predict", str(images), "--config-file", CONFIG, "--weights", str(weights), "--batch", "4", "--out"]
    subprocess.run([sys.executable, "-m", "dearli_d2", *command, str(whole)], cwd=REPO, check=True, capture_output=True)
    written = []
    for number in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "dearli_d2", *command, str(out)], cwd=REPO,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while len(lines(out)) < (number + 1) * count // (kills + 1) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(random.random() / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        written.append(len(lines(out)))
    subprocess.run([sys.executable, "-m", "dearli_d2", *command, str(out)], cwd=REPO, check=True, capture_output=True)
    keys = lines(out)
    assert len(keys) == len(set(keys)) == count, "an image was done twice, or lost"
    names = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and ".predictions" not in p.parts]
    others = [p for p in out.rglob("*") if p.is_file() and ".predictions" not in p.parts]
    same, different, missing = filecmp.cmpfiles(whole, out, map(str, names), shallow=False)
    assert not different, f"{len(different)} files differ: {different[:3]}"
    assert not missing, f"{len(missing)} files are missing"
    assert len(others) == len(names), "files are left over"
    return f"killed {kills} times, after {written} of {count} images: {len(same)} files equal, each image done once"


def lines(out: Path) -> Sequence[str]:
    """The images in the journals so far."""
    text = "".join(path.read_text() for path in sorted((out / ".predictions").glob("*.jsonl")))
    return [json.loads(line)["key"] for line in text.splitlines() if line.endswith("}}")]


if __name__ == "__main__":
    main()
