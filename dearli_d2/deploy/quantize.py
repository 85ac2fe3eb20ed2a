"""`python -m dearli_d2.deploy.quantize MODEL.onnx OUT.onnx --calibrate IMAGE`: an exported model with weights of 8 bits.

It also needs the package onnx; `dearli_d2.deploy` then predicts from the file as from any other.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import find_images, read_image
from ..errors import ConfigError, WeightsError
from ..files import write_atomically
from ..reporting import report_errors
from .metadata import KEY
from .predictor import OnnxPredictor

CALIBRATION = 32  # images, evenly chosen; each passes through the float32 network once


def quantize(
    model: str | Path, out: str | Path, images: Sequence[Path] = (), vocabulary: str | Path | None = None
) -> None:
    """Writes a copy of an exported model that computes with integers of 8 bits.

    Matrix products by weights are quantised with the range of each input as it comes. Convolutions need images, which tell the
    ranges of their inputs; without images they stay in float32. So do the first one and those in groups: they have few weights, and an
    EfficientNet loses 14 of 35 PQ with them in 8 bits.

    Args:
        model: file that `dearli export` wrote as ONNX.
        out: file to write.
        images: calibrate the convolutions; at most `CALIBRATION` of them are read.
        vocabulary: as for `OnnxPredictor`.

    Raises:
        ConfigError: the package onnx is missing, or `out` is `model`.
        WeightsError: the model cannot be quantised.
    """
    model, out = Path(model), Path(out)
    try:
        import onnx
        from onnxruntime import quantization as ort
    except ImportError as error:
        raise ConfigError(
            f"quantising needs the packages onnx and onnxruntime: pip install onnx onnxruntime ({error})"
        ) from error
    predictor = OnnxPredictor(model, vocabulary)
    if out.resolve() == model.resolve():
        raise ConfigError(f"{out} is the model itself; name another file")
    if predictor.metadata.half:
        raise WeightsError(f"{model} was exported with --half; quantise one of float32")
    with tempfile.TemporaryDirectory() as folder:
        current = Path(folder) / "prepared.onnx"
        ort.shape_inference.quant_pre_process(str(model), str(current), skip_symbolic_shape=True)
        # one bit less for the weights: without VNNI a processor's sums of 8-bit products overflow
        common: dict[str, Any] = {"weight_type": ort.QuantType.QInt8, "reduce_range": True}
        if images:
            calibrated = Path(folder) / "calibrated.onnx"
            ort.quantize_static(
                str(current),
                str(calibrated),
                _reader(predictor, images),
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=_delicate(onnx.load(str(current))),
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                extra_options={"ActivationSymmetric": False},
                **common,
            )
            current = calibrated
        dynamic = Path(folder) / "dynamic.onnx"
        ort.quantize_dynamic(str(current), str(dynamic), op_types_to_quantize=["MatMul", "Gemm"], **common)
        written = onnx.load(str(dynamic))
    entries = {entry.key: entry.value for entry in onnx.load(str(model), load_external_data=False).metadata_props}
    del written.metadata_props[:]
    written.metadata_props.add(key=KEY, value=entries[KEY])
    write_atomically(out, lambda temporary: onnx.save(written, str(temporary)))


def _delicate(model: Any) -> list[str]:
    """Names of the convolutions that stay in float32: the first, which reads the image, and those in groups."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    grouped = [n.name for n in convolutions if any(a.name == "group" and a.i > 1 for a in n.attribute)]
    return [*(n.name for n in convolutions[:1]), *grouped]


def _reader(predictor: OnnxPredictor, images: Sequence[Path]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    chosen = [images[i] for i in np.linspace(0, len(images) - 1, min(len(images), CALIBRATION)).round().astype(int)]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs: Iterator[dict[str, np.ndarray]] = (
                inputs for path in chosen for inputs in predictor.inputs(read_image(path))
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    return Reader()


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dearli_d2.deploy.quantize",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a copy of an exported ONNX model that computes with integers of 8 bits.\n"
        "Measure what it loses on your images: docs/export.md.",
        epilog="example:\n  python -m dearli_d2.deploy.quantize model.onnx small.onnx --calibrate photos/",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="exported model, float32")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="file to write")
    parser.add_argument(
        "--calibrate",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help=f"image files or folders that tell the ranges of the convolutions' inputs; {CALIBRATION} of them are read. "
        "Without it, convolutions stay in float32",
    )
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="classes, for a model with an open vocabulary")
    options = parser.parse_args(words)
    logging.disable(logging.WARNING)  # onnxruntime's advice, which is followed
    quantize(
        options.model, options.out, find_images(options.calibrate) if options.calibrate else (), options.vocabulary
    )
    sizes = [round(path.stat().st_size / 1e6, 1) for path in (options.model, options.out)]
    print(json.dumps({"out": str(options.out), "megabytes_before": sizes[0], "megabytes": sizes[1]}))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
