"""Tiny models with random weights, exported: one for each way to read out.

    python -m tests.export.tiny FOLDER      writes masks.onnx, open.onnx (with open.npz), sigmoid.onnx, argmax.onnx, pixels.onnx, resized.onnx

Beside each stands the checkpoint of the same model, `NAME.pth`, for `Predictor`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dearli_d2.config import get_config
from dearli_d2.export.write import export_model
from dearli_d2.modeling import build_model
from dearli_d2.predict import Predictor
from tests.conftest import REPO

SMALL = (
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TEXT.TEMPLATES", "name", "MODEL.PIXEL_DECODER.LAYERS", "1",
    "MODEL.MASK_FORMER.LAYERS", "1", "MODEL.MASK_FORMER.NUM_QUERIES", "10", "TEST.WEIGHTS", "student",
)  # fmt: skip
CAPTION = "a meadow with red things"
# name: (config of miniworld, overrides, options of `export_model`)
MODELS = {
    "masks": ("m2f.yaml", (), {}),
    "open": ("m2f_lang.yaml", (), {"open_vocabulary": True}),
    "sigmoid": ("split_matching.yaml", ("MODEL.SPLIT.SEEN_PENALTY", "0.1"), {}),
    "argmax": ("hvl.yaml", ("MODEL.HVL.INFERENCE", "argmax"), {}),
    "pixels": ("semidavil.yaml", (), {"caption": CAPTION}),
    "resized": ("segkc.yaml", (), {}),
}


def checkpoint(folder: Path, name: str, file: str, *overrides: str) -> Path:
    """A checkpoint of a config of miniworld whose weights are all random: layers that start at zero would hide faults."""
    config = get_config(REPO / "configs" / "miniworld" / file, [*SMALL, *overrides])
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    path = folder / f"{name}.pth"
    torch.save(
        {"model": model.state_dict(), "config": config.dump(), "taxonomy": model.known_taxonomy().to_json()}, path
    )
    return path


def predictor(folder: Path, name: str) -> Predictor:
    """The model of a name of `MODELS`, and its checkpoint in the folder."""
    from dearli_d2.export.command import predictor_of

    file, overrides, _ = MODELS[name]
    return predictor_of((), None, str(checkpoint(folder, name, file, *overrides)), None)


def write(folder: Path, name: str) -> Path:
    """Exports a model of `MODELS` as `NAME.onnx`."""
    path = folder / f"{name}.onnx"
    export_model(predictor(folder, name), path, **MODELS[name][2])
    return path


if __name__ == "__main__":
    for model in sys.argv[2:] or MODELS:
        print(write(Path(sys.argv[1]), model))
