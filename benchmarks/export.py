"""Exported models of all methods: size of the file, latency and agreement with torch.

    python -m benchmarks.export
    python -m benchmarks.export --models m2f full     # these alone; full is Mask2Former with a ResNet-50 at 640 x 640

The models are those of configs/miniworld/ with random weights, which are harder to agree with than trained ones: no class is sure.
`Predictor` and `dearli_d2.deploy` predict the same scenes. Latency is that of the network alone, on one image.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.deploy.predictor import OnnxPredictor
from dearli_d2.export.command import predictor_of
from dearli_d2.export.graph import Examples, Network
from dearli_d2.export.write import export_model
from dearli_d2.files import beside_package
from dearli_d2.modeling import build_model
from dearli_d2.predict import Predictor
from dearli_d2.rehearsal import made_up_taxonomy

from .measure import interleaved_seconds

CONFIGS = ("m2f", "m2f_lang", "dear", "hvl", "split_matching", "semidavil", "segkc", "unimatch_v2", "eomt")
CAPTION = "a meadow with red things"
FULL = "coco_panoptic/m2f_r50"
Row = list[str | float]


def random_checkpoint(folder: Path, name: str, config_file: str, *overrides: str) -> Path:
    """A checkpoint with random weights. Layers that start at zero get values too, since zeros would hide faults."""
    config = get_config(
        beside_package("configs") / config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *overrides]
    )
    torch.manual_seed(0)
    model = build_model(config, None if config_file.startswith("miniworld") else made_up_taxonomy(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    path = folder / f"{name}.pth"
    content = {"model": model.state_dict(), "config": config.dump(), "taxonomy": model.known_taxonomy().to_json()}
    torch.save(content, path)
    return path


def row(label: str, predictor: Predictor, path: Path, rounds: int, images: list[str], half: bool = False) -> Row:
    """Exports a model and measures its file."""
    caption = CAPTION if predictor.model.reads_captions else ""
    side = predictor.config.INPUT.MIN_SIZE_TEST if images else 640
    static = None if images else (side, side)
    found = export_model(predictor, path, half=half, static=static, caption=caption)
    deployed = OnnxPredictor(path, threads=torch.get_num_threads())
    examples = Examples(predictor.model, (side, side))
    network, inputs = Network(predictor.model, caption).eval(), examples.of(1, 0, 0)
    arrays = {name: value.numpy() for name, value in inputs.items()}

    def by_torch() -> object:
        with torch.no_grad():
            return network(**inputs)

    seconds = interleaved_seconds({"torch": by_torch, "onnx": lambda: deployed._session.run(None, arrays)}, rounds)
    same = [float((predictor(image, caption or None).semantic == deployed(image).semantic).mean()) for image in images]
    return [
        label,
        f"{side}²",
        path.stat().st_size / 1e6,
        1000 * seconds["torch"],
        1000 * seconds["onnx"],
        f"{found.difference:.1e}",
        f"{100 * np.mean(same):.3f} %" if same else f"{100 * found.labels:.3f} %",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--models", nargs="+", choices=(*CONFIGS, "full"), default=(*CONFIGS, "full"))
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    images = [d["file_name"] for d in dataset_dicts("miniworld_val")[: arguments.images]]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for config in (name for name in arguments.models if name != "full"):
            weights = random_checkpoint(folder, config, f"miniworld/{config}.yaml", "TEST.WEIGHTS", "student")
            predictor = predictor_of((), None, str(weights), None)
            rows.append(row(config, predictor, folder / f"{config}.onnx", arguments.rounds, images))
            print(rows[-1], flush=True)
        if "full" in arguments.models:
            weights = random_checkpoint(folder, "full", f"{FULL}.yaml", "MODEL.BACKBONE.WEIGHTS", "")
            predictor = predictor_of((), None, str(weights), None)
            for half in (False, True):
                label = f"Mask2Former R50{', --half' if half else ''}"
                rows.append(row(label, predictor, folder / f"full{half}.onnx", arguments.rounds, [], half))
                print(rows[-1], flush=True)
    headers = ["model", "input", "file MB", "torch ms", "onnxruntime ms", "difference", "same labels"]
    print(tabulate(rows, headers, floatfmt=("", "", ".1f", ".0f", ".0f", "", ""), tablefmt="github"))


if __name__ == "__main__":
    main()
