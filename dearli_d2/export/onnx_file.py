"""ONNX files: written, checked, and compared with the model."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..deploy.metadata import KEY, Metadata
from ..errors import ConfigError, first_few
from .description import OPSET
from .graph import Inputs
from .half import halve

LIMIT = 2**31
"""Bytes of a file of ONNX, whose format (protobuf) holds no more."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir")


def check_packages() -> None:
    """Raises `ConfigError` where a package is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX files need {', '.join(missing)}: pip install {' '.join(missing)}, or dearli_d2[export]"
        )


def check_size(size: int) -> None:
    """Raises `ConfigError` if `size` bytes of weights do not fit into one file."""
    if size >= LIMIT:
        raise ConfigError(
            f"the weights are {size / 2**30:.1f} GiB, one ONNX file holds less than 2; use --half, or --format torch"
        )


def onnx_model(program: ExportedProgram, metadata: Metadata) -> Any:
    """The graph as a model of the package onnx, without any operator beyond those of ONNX itself.

    Raises:
        ConfigError: the weights do not fit into a file.
    """
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(metadata.inputs),
            output_names=list(metadata.outputs),
            verbose=False,
        )
    assert converted is not None  # it is None with the old exporter alone
    initializers = converted.model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in initializers if value.const_value is not None)
    check_size(size // 2 if metadata.half else size)
    model = converted.model_proto
    if metadata.half:
        halve(model)
    for node in model.graph.node:  # where in this program's files a node comes from
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=metadata.to_json())
    model.producer_name, model.producer_version = "dearli_d2", metadata.versions["dearli_d2"]
    return model


def check_file(path: Path) -> None:
    """Checks a file by onnx's own checker. No operator may be beyond ONNX."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain} - {"ai.onnx"})
    if foreign or model.functions:
        raise RuntimeError(f"{path} has operators that are none of ONNX: {first_few(foreign)}")


def run_file(path: Path, inputs: Inputs) -> Inputs:
    """The outputs of a file under onnxruntime on a CPU, by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(result) for name, result in zip(names, results, strict=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks are about its own work; its errors are raised."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
