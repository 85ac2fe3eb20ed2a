"""Writes an exported model, and says how well its file agrees with the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..deploy.metadata import CLASS_LOGITS, MASK_LOGITS, PIXEL_LOGITS, Metadata
from ..deploy.vocabulary import VocabularyFile
from ..errors import ConfigError
from ..files import write_atomically
from ..modeling.mask_classifier import MaskClassifier
from ..modeling.segmenter import Segmenter, Words
from ..predict import Predictor
from .description import Size, check_exportable, class_infos, describe
from .graph import Examples, Inputs, Network, trace

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "vocabulary": ".npz"}
_WRONG = 0.02
"""Largest difference of outputs, as a share of the largest output, that rounding can make in float32."""


@dataclass(frozen=True)
class Agreement:
    """Says how well a file agrees with the model on random images.

    Attributes:
        difference: the largest difference of an output, divided by the largest output.
        labels: share of pixels whose most probable class is the same.
    """

    difference: float
    labels: float


def export_model(
    predictor: Predictor,
    out: Path,
    format: str = "onnx",
    half: bool = False,
    static: Size | None = None,
    open_vocabulary: bool = False,
    caption: str = "",
    say: Callable[[str], None] = lambda message: None,
) -> Agreement:
    """Writes a model for other programs. The file is there only after it was checked and has run.

    Args:
        predictor: the model with its config, on the CPU.
        out: file to write, `.onnx` or `.pt2`.
        format: "onnx" or "torch".
        half: float16 for layers with weights; for ONNX alone.
        static: fixed (H, W) of the network's input; None = any multiples.
        open_vocabulary: the classes are an input. The file of the model's own classes is written beside `out`, as `.npz`.
        caption: for all images, where the model reads captions.
        say: takes a message before each long step.

    Raises:
        ConfigError: the model cannot be exported so.
    """
    check_suffix(out, format)
    if half and format == "torch":
        raise ConfigError("--half is for --format onnx; run the program of torch under torch.autocast")
    if format == "onnx":
        from .onnx_file import check_packages, check_size

        check_packages()
        weights = sum(p.numel() * p.element_size() for p in predictor.model.backbone.parameters())
        if not hasattr(predictor.model.backbone, "clip_model"):  # a text tower is no part of the graph
            check_size(weights // 2 if half else weights)
    model = predictor.model.eval()
    check_exportable(predictor, caption, static)
    words = model.words() if open_vocabulary else None
    network, examples = Network(model, caption).eval(), Examples(model, static, words)
    say("tracing the model")
    program = trace(network, examples)
    with torch.no_grad():
        inputs = examples.of(1, 4, 2)
        expected = network(**inputs)
    metadata = describe(predictor, tuple(expected), static, half, words, caption)
    results: list[Agreement] = []

    def write(temporary: Path) -> None:
        say(f"writing the graph as {format}")
        found = _write(program, temporary, metadata, format, inputs, say)
        results.append(agreement(model, expected, found))
        if not half and not results[0].difference < _WRONG:
            raise RuntimeError(f"the file does not compute what the model does: {results[0]}")

    if words is not None:
        write_vocabulary(predictor, out.with_suffix(SUFFIXES["vocabulary"]), words)
    write_atomically(out, write)
    return results[0]


def _write(
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: Metadata,
    format: str,
    inputs: Inputs,
    say: Callable[[str], None],
) -> Inputs:
    """Writes and checks the file; returns what it computes for `inputs`."""
    if format == "torch":
        from .torch_file import run_program, write_program

        write_program(program, path, metadata)
        say("running the file")
        return run_program(path, inputs)
    from .onnx_file import check_file, onnx_model, run_file

    path.write_bytes(onnx_model(program, metadata).SerializeToString())
    say("checking and running the file")
    check_file(path)
    return run_file(path, inputs)


def write_vocabulary(predictor: Predictor, out: Path, words: Words | None = None) -> None:
    """Writes the classes of a model with a text classifier as a file for graphs whose classes are an input.

    Raises:
        ConfigError: the model has no text classifier, or the file another suffix.
    """
    check_suffix(out, "vocabulary")
    model = predictor.model
    words = model.words() if words is None else words
    alpha = None if words.alpha is None else words.alpha.float().cpu().numpy()
    file = VocabularyFile(
        class_infos(model.known_taxonomy()), words.embeddings.float().cpu().numpy(), alpha, words.fingerprint
    )
    file.write(out)


def check_suffix(out: Path, format: str) -> None:
    """Raises `ConfigError` for a file whose suffix is not that of its format."""
    if out.suffix != SUFFIXES[format]:
        raise ConfigError(f"--out {out}: a file of --format {format} is named {SUFFIXES[format]}")


def agreement(model: Segmenter, expected: Inputs, found: Inputs) -> Agreement:
    """Compares outputs of the model with those of a file."""
    differences = [
        float((expected[n] - found[n]).abs().max() / expected[n].abs().max().clamp(min=1e-12)) for n in expected
    ]
    same = _labels(model, expected) == _labels(model, found)
    return Agreement(max(differences), float(same.float().mean()))


def _labels(model: Segmenter, outputs: Inputs) -> torch.Tensor:
    if isinstance(model, MaskClassifier):
        return model.semantic_scores(outputs[CLASS_LOGITS], outputs[MASK_LOGITS]).argmax(1)
    return outputs[PIXEL_LOGITS].argmax(1)
