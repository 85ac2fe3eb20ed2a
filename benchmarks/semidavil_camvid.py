"""Adaptation on photographs: from recoloured CamVid street scenes to the original ones.

Every second training image, recoloured (another white balance, contrast and grain, the same for all), is the labelled source;
a few of the others are the labelled target, the rest of them unlabelled. It shows that adaptation works on photographs across a
shift of colours; the scenes are of one city and one camera, so it says nothing about a shift from rendered to real scenes.

    python -m benchmarks.semidavil_camvid --seeds 1     # needs dearli prepare camvid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dearli_d2.data.catalog import dataset_dicts, register, source_of
from dearli_d2.data.mappers import read_image
from dearli_d2.files import write_atomically

from . import study

CONFIG = "camvid/semidavil.yaml"
NO_CONSISTENCY = ("DATASETS.UNLABELED", "()")
NO_LABELS = ("DATASETS.TRAIN", "()")
CE = ("MODEL.SEMIDAVIL.LOSS", "ce")
ROWS = (
    study.Row("source only", "source", CONFIG, (*NO_LABELS, *NO_CONSISTENCY, *CE)),
    study.Row("  + consistency", "adapted", CONFIG, (*NO_LABELS, *CE)),
    study.Row("source and 12 target labels", "labels", CONFIG, (*NO_CONSISTENCY, *CE)),
    study.Row("  + consistency", "consistency", CONFIG, CE),
    study.Row("  + DyCE", "dyce", CONFIG, ("SSL.CONFIDENCE", "0.6")),
)
METRICS = (
    study.Metric("mIoU", study.semantic("mIoU")),
    study.Metric("rarest third", study.mean_iou_of("sign symbol", "pedestrian", "bicyclist")),
)


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 as by another camera at another hour: warm, dark, of high contrast and with grain."""
    tone = (image / 255.0) ** 1.6 * np.array([1.05, 0.75, 0.5]) + 0.05
    return (255 * np.clip(tone + rng.normal(0, 0.04, image.shape), 0, 1)).round().astype(np.uint8)


def register_domains(folder: Path) -> None:
    """`camvid_warm_train`, the recoloured source, and lists of both halves; images are made on first use."""
    dicts = dataset_dicts("camvid_train")
    source, target = dicts[::2], dicts[1::2]
    original = source_of("camvid_train")
    for d in tqdm(source, desc="recolouring", leave=False):
        path = folder / "images" / Path(d["file_name"]).relative_to(original.image_root)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(int.from_bytes(path.stem.encode(), "little") % 2**32)
            picture = Image.fromarray(recolour(read_image(d["file_name"]), rng))
            write_atomically(path, partial(picture.save, quality=95))
    lists = {"labeled": target[::16], "unlabeled": [d for i, d in enumerate(target) if i % 16], "source": source}
    for name, chosen in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{Path(d['file_name']).stem}\n" for d in chosen))
    register("camvid_warm_train", replace(original, image_root=folder / "images"))


def options_of_seed(out: Path, seed: int) -> Sequence[str]:
    """12 labelled and 171 unlabelled target images, 184 source images."""
    folder = out / "domains"
    register_domains(folder)
    labeled = f"camvid_train@{folder / 'labeled.txt'}"
    data = {
        "SOURCE": f"camvid_warm_train@{folder / 'source.txt'}",
        "TRAIN": labeled,
        "UNLABELED": f"{labeled}:unlabeled",
    }
    return [part for key, name in data.items() for part in (f"DATASETS.{key}", f"('{name}',)")]


if __name__ == "__main__":
    study.main(__doc__, ROWS, METRICS, options_of_seed, "semidavil_camvid", "camvid_val")
