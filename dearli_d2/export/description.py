"""The description of a model that is written into its exported file."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from .. import __version__
from ..data.sizes import READ_OUT_PIXELS
from ..data.taxonomy import Taxonomy
from ..deploy.metadata import (
    CLASS_ALPHA,
    CLASS_EMBEDDINGS,
    IMAGE,
    ClassInfo,
    Metadata,
    Preparation,
    ReadOut,
    VocabularyInput,
)
from ..errors import ConfigError
from ..modeling.mask_classifier import MaskClassifier
from ..modeling.segmenter import Segmenter, Words
from ..predict import Predictor

OPSET = 18
Size = tuple[int, int]


def class_infos(taxonomy: Taxonomy) -> tuple[ClassInfo, ...]:
    """The classes in the order of the logits."""
    rows = zip(taxonomy.names, taxonomy.colors, taxonomy.dataset_ids, strict=True)
    return tuple(
        ClassInfo(names[0], i in taxonomy.thing_ids, color, number, tuple(names[1:]))
        for i, (names, color, number) in enumerate(rows)
    )


def check_exportable(predictor: Predictor, caption: str, static: Size | None) -> None:
    """Raises `ConfigError` for a model that no graph can stand for, or a size or caption that does not fit it."""
    model, config = predictor.model, predictor.config
    if config.MODEL.CLASSIFIER == "none":
        raise ConfigError(
            "a class-agnostic model (MODEL.CLASSIFIER none) names no classes, so it predicts nothing to export"
        )
    if model.reads_captions != bool(caption):
        raise ConfigError(
            "this model reads a caption beside each image; give the one that its file has for all images: --caption TEXT"
            if model.reads_captions
            else "--caption: this model reads no captions"
        )
    if static is None:
        return
    fitting, window = model.fitting, config.TEST.WINDOW
    wrong = [side for side in static if side % fitting.divisor or side < max(fitting.least, window)]
    if wrong:
        least = max(fitting.least, window, fitting.divisor)
        near = max(round(wrong[0] / fitting.divisor) * fitting.divisor, -(-least // fitting.divisor) * fitting.divisor)
        raise ConfigError(
            f"--static {static[0]}x{static[1]}: sides must be multiples of {fitting.divisor} and at least {least}; near {wrong[0]} is "
            f"{near}"
        )


def describe(
    predictor: Predictor,
    outputs: tuple[str, ...],
    static: Size | None = None,
    half: bool = False,
    words: Words | None = None,
    caption: str = "",
) -> Metadata:
    """Everything that a program needs to know of the exported model.

    Args:
        predictor: the model with its config.
        outputs: names of the graph's outputs.
        static: fixed (H, W) of the input.
        half: see `Metadata`.
        words: of the model, where its classes are an input.
        caption: see `Metadata`.
    """
    model, config = predictor.model, predictor.config
    vocabulary = None
    if words is not None:
        vocabulary = VocabularyInput(words.embeddings.shape[-1], words.fingerprint, words.alpha is not None)
    return Metadata(
        method=config.MODEL.META_ARCHITECTURE,
        classes=class_infos(model.known_taxonomy()),
        preparation=_preparation(predictor, static),
        read_out=_read_out(model),
        inputs=(IMAGE, *input_names(words)),
        outputs=outputs,
        half=half,
        ensembled=isinstance(model, MaskClassifier) and model.scoring.ensembled,
        vocabulary=vocabulary,
        caption=caption,
        versions={"dearli_d2": __version__, "torch": torch.__version__, "timm": version("timm"), "opset": str(OPSET)},
    )


def input_names(words: Words | None) -> tuple[str, ...]:
    """Names of the inputs beside the image."""
    if words is None:
        return ()
    return (CLASS_EMBEDDINGS,) if words.alpha is None else (CLASS_EMBEDDINGS, CLASS_ALPHA)


def _preparation(predictor: Predictor, static: Size | None) -> Preparation:
    model, config = predictor.model, predictor.config
    mean, std = (_colour(x) for x in (model.pixel_mean, model.pixel_std))
    fitting = model.fitting
    return Preparation(
        mean=mean,
        std=std,
        min_size=config.INPUT.MIN_SIZE_TEST,
        max_size=config.INPUT.MAX_SIZE_TEST,
        divisor=fitting.divisor,
        pad=mean if fitting.pad is None else fitting.pad,
        fit=fitting.fit,
        least=fitting.least,
        static=static,
        window=model.read_out.window,
        window_stride=model.read_out.window_stride if model.read_out.window else 0,
    )


def _colour(values: torch.Tensor) -> tuple[float, float, float]:
    red, green, blue = values.flatten().tolist()
    return red, green, blue


def _read_out(model: Segmenter) -> ReadOut:
    options = model.read_out
    common: dict[str, Any] = {
        "panoptic": options.panoptic and not options.window,
        "object_threshold": options.object_threshold,
        "overlap_threshold": options.overlap_threshold,
        "max_pixels": READ_OUT_PIXELS,
    }
    if not isinstance(model, MaskClassifier):
        return ReadOut("pixels", **common)
    scoring = model.scoring
    return ReadOut("masks", activation=scoring.activation, semantic=scoring.semantic, penalty=scoring.penalty, **common)
