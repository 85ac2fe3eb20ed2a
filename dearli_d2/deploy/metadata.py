"""What an exported file says about itself: how to prepare an image for its graph, and how to read its outputs.

It needs the standard library alone. `dearli export` writes it, `dearli_d2.deploy` reads it. In an ONNX file it is the entry `KEY` of
the model's `metadata_props`, in a `.pt2` file of torch the extra file `KEY`; both hold the JSON text of `Metadata.to_json`.

The graph, with every tensor in float32, also where `half` is set:

    image              (B, 3, H, W), prepared as `Preparation` says
    class_embeddings   (K, S, E), only with `vocabulary`
    class_alpha        (K,), only where `vocabulary.alpha` is True

    class_logits       (B, Q, C + 1) or (B, Q, C), see `ReadOut`        kind "masks"
    mask_logits        (B, Q, h, w), before the sigmoid                 kind "masks"
    logits             (B, C, h, w), before the softmax over classes    kind "pixels"

B, H, W and K, S are free, or H and W are those of `Preparation.static`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from ..errors import WeightsError

KEY = "dearli_d2"
FORMAT = 1
"""Raised by a change that an older reader would misread."""

IMAGE, CLASS_EMBEDDINGS, CLASS_ALPHA = "image", "class_embeddings", "class_alpha"
"""Names of the inputs."""
CLASS_LOGITS, MASK_LOGITS, PIXEL_LOGITS = "class_logits", "mask_logits", "logits"
"""Names of the outputs."""

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class ClassInfo:
    """A class, in the order of the logits.

    Attributes:
        name: the main name.
        isthing: whether its segments are objects.
        color: RGB, 0..255.
        category_id: its id in the training data's annotations.
        synonyms: other names.
    """

    name: str
    isthing: bool
    color: tuple[int, int, int]
    category_id: int
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """From an image to the graph's input.

    1. Resize the uint8 image (Pillow, bilinear): the short side becomes `min_size`, unless the long side would be longer than
       `max_size`; then that side becomes `max_size`. `min_size` 0 keeps the size. With `static` the sizes are not used: the image
       becomes the largest that fits into `static` with its proportions.
    2. Take the channels in the order `channels`; subtract `mean`, divide by `std`.
    3. Make the sides fit. `fit` "pad" pads on the right and at the bottom with the colour `pad` (normalised as in 2; for most
       models that is 0), up to multiples of `divisor` and at least to `least`. "resize" resizes (bilinear, half-pixel centres, no
       antialiasing) to the nearest multiples of `divisor`, of two that are as near to the larger one, and at least to one multiple.
       With `static` the image is padded or resized to that size.

    With `window` the steps 2 and 3 and the graph run on square windows of the image of step 1, and semantic scores are the mean
    over windows: `window` pixels a side, `window_stride` apart, the last ones moved back to end at the border.

    Attributes:
        mean, std: of 0..255, in the order of `channels`.
        channels: "RGB" or "BGR".
        min_size, max_size: of the short and the long side, in pixels.
        fit: "pad" or "resize".
        divisor: the sides of the input are multiples of it.
        least: the sides of the input are at least this long.
        pad: colour in 0..255, in the order of `channels`.
        static: (H, W) of the input; None = any multiples of `divisor`.
        window, window_stride: in pixels; 0 = no windows.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    min_size: int
    max_size: int
    divisor: int
    pad: tuple[float, float, float]
    channels: str = "RGB"
    fit: str = "pad"
    least: int = 0
    static: tuple[int, int] | None = None
    window: int = 0
    window_stride: int = 0


@dataclass(frozen=True)
class ReadOut:
    """From the graph's outputs to labels. All steps in float32.

    1. "masks": resize `mask_logits` (bilinear, half-pixel centres) to the size of the graph's input, cut off the padding; resize to
       the size of the output. "pixels": resize `logits` to the size of the graph's input, or with `fit` "resize" to the size of the
       image before step 3; softmax over the classes; cut off the padding; resize the scores to the size of the output.
       A resize to the same size does nothing. The output has the size of the image, but at most `max_pixels` pixels: both sides are
       scaled by sqrt(max_pixels / pixels) and rounded, the labels are then enlarged to the nearest pixel.
    2. Semantic scores of "masks": probabilities are the softmax of `class_logits` over C + 1 without the last ("no object"), or with
       `activation` "sigmoid" the sigmoid of C. `semantic` "marginal": sum over queries of probability times sigmoid of the mask.
       "argmax": each query counts for its best class alone (none, if that is "no object"), and a class's score is the largest
       sigmoid of its queries' masks. `penalty`, where it is not empty, is then subtracted from each class's score.
    3. Panoptic, where `panoptic` is True ("masks" with softmax): as `panoptic_inference` of `dearli_d2`, with both thresholds. Else each
       class is one segment.

    Attributes:
        kind: "masks" or "pixels".
        panoptic: whether the model segments objects.
        activation: "softmax" or "sigmoid", of `class_logits`.
        semantic: "marginal" or "argmax".
        penalty: one for each class, or ().
        object_threshold, overlap_threshold: of the panoptic read-out.
        max_pixels: largest size of the read-out.
    """

    kind: str
    panoptic: bool
    activation: str = "softmax"
    semantic: str = "marginal"
    penalty: tuple[float, ...] = ()
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    max_pixels: int = 2**22


@dataclass(frozen=True)
class VocabularyInput:
    """Classes that are an input of the graph. `classes` of the file are then those of the training, an example.

    `class_embeddings` is (K, S, E): row k holds the unit-norm text embeddings of the S names of class k. A class with fewer names
    repeats one of them, which changes nothing, since the best name counts. A vocabulary file (`dearli export --format vocabulary`) holds
    such arrays, made by the same text tower.

    Attributes:
        dim: E.
        fingerprint: of the text tower and the prompts; a vocabulary file of another one does not fit.
        alpha: whether the graph also has the input `class_alpha`, the weight of the learned classifier for each class.
    """

    dim: int
    fingerprint: str
    alpha: bool = False


@dataclass(frozen=True)
class Metadata:
    """Everything that a program needs to know of an exported file.

    Attributes:
        method: architecture of the model, as MODEL.META_ARCHITECTURE of its config.
        classes: in the order of the logits.
        preparation: of the input.
        read_out: of the outputs.
        inputs, outputs: names, in the graph's order.
        half: whether weights and most of the maths are float16.
        ensembled: whether `class_logits` already hold CLIP's opinion beside that of the learned classifier.
        vocabulary: for a file that takes any classes; None = those of `classes` alone.
        caption: the caption that a model which reads captions was exported with; "" for other models.
        versions: of the programs that wrote the file, and of ONNX's operators ("opset").
        format: see `FORMAT`.
    """

    method: str
    classes: tuple[ClassInfo, ...]
    preparation: Preparation
    read_out: ReadOut
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    half: bool = False
    ensembled: bool = False
    vocabulary: VocabularyInput | None = None
    caption: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """The JSON text of `from_json`."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str, source: str = "the file") -> Metadata:
        """Reads what `to_json` wrote.

        Args:
            source: the file, for errors.

        Raises:
            WeightsError: the text is none of this program, or of a newer format.
        """
        try:
            content = json.loads(text)
            number = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{source}: its entry {KEY!r} is no description that dearli export writes") from error
        if number != FORMAT:
            raise WeightsError(
                f"{source} has format {number}, this program reads {FORMAT}; use the version that wrote it"
            )
        try:
            vocabulary = content["vocabulary"]
            return _known(
                Metadata,
                content,
                classes=read_classes(content["classes"]),
                preparation=_known(Preparation, content["preparation"]),
                read_out=_known(ReadOut, content["read_out"]),
                vocabulary=None if vocabulary is None else _known(VocabularyInput, vocabulary),
            )
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{source}: its entry {KEY!r} is damaged: {error}") from error


def read_classes(content: list[dict[str, Any]]) -> tuple[ClassInfo, ...]:
    """Classes of a list of JSON objects. Raises `KeyError` or `TypeError` for another content."""
    return tuple(_known(ClassInfo, entry) for entry in content)


def _known(kind: type[_Part], content: dict[str, Any], **parts: Any) -> _Part:
    """A dataclass of a JSON object. Lists become tuples; entries that it does not know are of a later version and are left out."""
    assert is_dataclass(kind)
    names = {f.name for f in fields(kind)}
    plain = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items() if name in names}
    return kind(**{**plain, **parts})
