"""Tiny models with random weights, exported: one for each way to read out.

    python -m tests.export.tiny FOLDER      writes masks.onnx, open.onnx (with open.npz), sigmoid.onnx, argmax.onnx, pixels.onnx, resized.onnx

Beside each stands the checkpoint of the same model, `NAME.pth`, for `Predictor`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.export import random_checkpoint
from dearli_d2.export.write import export_model
from dearli_d2.predict import Predictor

SMALL = (
    "MODEL.TEXT.TEMPLATES", "name", "MODEL.PIXEL_DECODER.LAYERS", "1",
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
    """A checkpoint of the smallest networks of a config of miniworld, with random weights."""
    return random_checkpoint(folder, name, f"miniworld/{file}", *SMALL, *overrides)


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
