"""Cost of training samples on one core: labelled, unlabelled, and of the decoder warm-up with 100 masks.

    python -m benchmarks.loader --before ../checkout-of-an-older-commit

The mappers are those of configs/ade20k (crops of 640²). The images are photographs of scikit-image in the median size of ADE20K,
683 x 512, with made-up segments and masks. Each checkout runs in a process of its own with one thread. In each round one of them
makes a sample, then the other makes the same one. Without --before only this checkout is measured. --profile shows where the time
goes.

| column | meaning |
|---|---|
| ms | processor time of one sample: the least of three, since other work only adds to it, as a mean over the rounds |
| unpacked, ms | the same with the unpacking of the targets on the same core; a GPU does this part itself |
| MiB | tensors of a sample as they go from the worker to the GPU |
| tensors | their number |
| through a process, ms | wall time of a sample from a loader process to the training process, in batches of 8: the median of --streams |
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data
from tabulate import tabulate

from dearli_d2.data.panoptic_png import ids_to_rgb
from dearli_d2.masks.storage import MaskFolder, encode

REPO = Path(__file__).parents[1]
HEIGHT, WIDTH, SEGMENTS, MASKS = 512, 683, 12, 100
KINDS = ("labelled", "unlabelled", "warm-up")

# It runs with either checkout, so it uses only what both have. Each line of its input asks for a sample.
SIDE = r"""
import cProfile, inspect, json, pstats, sys, time
from dataclasses import fields, is_dataclass
from pathlib import Path
import cv2, torch
from dearli_d2.data import build
from dearli_d2.data.streams import build_stream, seeded
from dearli_d2.config import get_config

folder, repo = Path(sys.argv[1]), Path(sys.argv[2])
cv2.setNumThreads(0)
torch.set_num_threads(1)
labelled = get_config(str(repo / "configs/ade20k/dearli_convnext_b.yaml"), ["MODEL.DEVICE", "cpu"])
warm = labelled.clone()
warm.defrost()
warm.MODEL.CLASSIFIER, warm.DATASETS.MASKS = "none", str(folder / "masks")
mappers = {
    "labelled": build.build_labeled_mapper(labelled),
    "unlabelled": build.build_unlabeled_mapper(labelled),
    "warm-up": build.build_labeled_mapper(warm),
}
dicts = json.loads((folder / "dicts.json").read_text())


def tensors(x):
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    elif is_dataclass(x):
        x = [getattr(x, f.name) for f in fields(x)]
    return [t for part in x for t in tensors(part)] if isinstance(x, (list, tuple)) else []


def unpacked(sample):
    for value in sample.values():
        if hasattr(value, "unpacked"):
            value.unpacked("cpu")


profiles = {kind: cProfile.Profile() for kind in mappers}
def through_a_process(kind, position):
    # milliseconds of a sample that a loader process makes, until it is in the training process
    stream = build_stream(dicts, mappers[kind], 8, 0, position, num_workers=1)
    next(stream)
    start = time.perf_counter()
    for _ in range(4):
        next(stream)
    return 1000 * (time.perf_counter() - start) / 32


for line in sys.stdin:
    kind, position, profile = json.loads(line)
    if profile == "stream":
        print("RESULT " + json.dumps(through_a_process(kind, position)), flush=True)
        continue
    made, whole = [], []
    for _ in range(3):
        if profile:
            profiles[kind].enable()
        start = time.process_time()
        with seeded(0, position):
            sample = mappers[kind](dicts[position % len(dicts)])
        middle = time.process_time()
        profiles[kind].disable()
        unpacked(sample)
        made.append(1000 * (middle - start))
        whole.append(1000 * (time.process_time() - start))
    parts = tensors(sample)
    found = [min(made), min(whole), sum(t.nbytes for t in parts) / 2**20, len(parts)]
    print("RESULT " + json.dumps(found), flush=True)
for kind, found in profiles.items():
    if found.getstats():
        print(kind, file=sys.stderr)
        pstats.Stats(found, stream=sys.stderr).sort_stats("tottime").print_stats(22)
"""


def photographs() -> list[np.ndarray]:
    """Photographs of scikit-image, cut to the usual ratio of sides."""
    found = []
    for whole in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.retina()):
        height = min(whole.shape[0], whole.shape[1] * HEIGHT // WIDTH)
        found.append(Image.fromarray(whole[:height, : height * WIDTH // HEIGHT]).resize((WIDTH, HEIGHT)))
    return [np.asarray(image) for image in found]


def make_images(folder: Path) -> None:
    """JPEG files, panoptic labels whose segments are the cells around random points, and masks that are random ellipses."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    masks, dicts = MaskFolder(folder / "masks"), []
    for index, pixels in enumerate(photographs()):
        image, label = folder / f"{index}.jpg", folder / f"{index}.png"
        Image.fromarray(pixels).save(image, quality=90)
        y, x = rng.integers(HEIGHT, size=SEGMENTS), rng.integers(WIDTH, size=SEGMENTS)
        nearest = ((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2).argmin(-1)
        ids = 1 + 256 * rng.permutation(SEGMENTS)
        Image.fromarray(ids_to_rgb(ids[nearest])).save(label)
        annotations = []
        for _ in range(MASKS):
            (cy, cx), (ry, rx) = rng.uniform(0, (HEIGHT, WIDTH)), np.exp(rng.uniform(np.log(8), np.log(160), 2))
            inside = ((rows - cy) / ry) ** 2 + ((columns - cx) / rx) ** 2 < 1
            annotations.append({"segmentation": encode(inside), "area": int(inside.sum()), "bbox": [0, 0, 1, 1]})
        masks.write(str(image), (HEIGHT, WIDTH), annotations)
        segments = [{"id": int(i), "category_id": n % 150, "iscrowd": 0} for n, i in enumerate(ids)]
        dicts.append(
            {
                "file_name": str(image), "pan_seg_file_name": str(label), "segments_info": segments, "image_id": index,
                "height": HEIGHT, "width": WIDTH,
            }
        )  # fmt: skip
    (folder / "dicts.json").write_text(json.dumps(dicts))


class Side:
    """A checkout in a process of its own."""

    def __init__(self, code: Path, folder: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SIDE, str(folder), str(code)],
            cwd=code, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, kind: str, position: int, what: bool | str = False) -> Any:
        print(json.dumps([kind, position, what]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise SystemExit("a checkout failed, see above")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="an older checkout to compare with")
    parser.add_argument("--rounds", type=int, default=40, help="number of samples of each kind")
    parser.add_argument(
        "--streams", type=int, default=3, help="number of streams through a loader process, of 5 batches each"
    )
    parser.add_argument("--profile", action="store_true", help="print the functions that take most time themselves")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_images(Path(name))
        checkouts = {"before": args.before.resolve()} if args.before else {}
        sides = {which: Side(code, Path(name)) for which, code in {**checkouts, "now": REPO}.items()}
        found: dict[tuple[str, str], list] = {}
        through: dict[tuple[str, str], list] = {}
        for kind in KINDS:  # one after another: a loader process makes samples of one kind
            for position in range(args.rounds + 2):
                for which, side in sides.items():
                    made = side(kind, position, args.profile)
                    if position >= 2:
                        found.setdefault((kind, which), []).append(made)
            for position in range(args.streams):
                for which, side in sides.items():
                    through.setdefault((kind, which), []).append(side(kind, position, "stream"))
        for side in sides.values():
            side.close()
    means = {key: np.append(np.mean(values, 0), np.median(through.get(key, np.nan))) for key, values in found.items()}
    rows = []
    for kind in KINDS:
        rows += [[kind, which, *means[kind, which]] for which in sides]
        if args.before:
            rows.append([kind, "ratio", *(means[kind, "now"] / means[kind, "before"])])
    headers = ["sample", "code", "ms", "unpacked, ms", "MiB", "tensors", "through a process, ms"]
    print(tabulate(rows, headers, floatfmt=("", "", ".2f", ".2f", ".2f", ".1f", ".2f"), tablefmt="github"))


if __name__ == "__main__":
    main()
