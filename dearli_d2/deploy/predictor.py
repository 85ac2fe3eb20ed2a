"""Segments images with a model that `dearli export` wrote as ONNX. It needs numpy, Pillow and onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from ..data.sizes import read_out_size, resize_labels
from ..data.taxonomy import Taxonomy
from ..errors import ConfigError, WeightsError
from ..prediction import Picture, Prediction, as_pixels
from ..prediction_files import Maps
from .metadata import IMAGE, KEY, ClassInfo, Metadata
from .preparation import input_size, network_input, resized_image, windows
from .read_out import Frame, class_labels, labels_of, resized_scores, scores_of
from .resizing import Size
from .vocabulary import VocabularyFile

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

AnyPicture = TypeVar("AnyPicture", bound=Picture)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_QUIET = 3  # onnxruntime's level of the log: errors


class OnnxPredictor:
    """An exported model, ready for images. Its predictions are those of `dearli_d2.Predictor`.

    Args:
        path: file that `dearli export` wrote as ONNX.
        vocabulary: file of classes, for a model that was exported with an open vocabulary.
        threads: number of threads of one image; 0 = one for each core.
        provider: "cpu" or "cuda".

    Attributes:
        metadata: description of the model.
        taxonomy: classes of the predictions.

    Raises:
        WeightsError: there is no such file, or it is none that this version can use.
        ConfigError: onnxruntime is missing, or cannot use the provider, or classes are missing or not wanted.
    """

    def __init__(
        self,
        path: str | Path,
        vocabulary: str | Path | None = None,
        threads: int = 0,
        provider: str = "cpu",
    ) -> None:
        self.path = Path(path)
        self._session = open_session(self.path, threads, provider)
        self.metadata = metadata_of(self._session, self.path)
        classes, self._arrays = self._classes(vocabulary)
        self.taxonomy = taxonomy_of(classes)

    def _classes(self, vocabulary: str | Path | None) -> tuple[Sequence[ClassInfo], dict[str, np.ndarray]]:
        """The classes, and the arrays that tell the graph of them."""
        wanted = self.metadata.vocabulary
        if wanted is None:
            if vocabulary is not None:
                raise ConfigError(
                    f"{self.path} has classes of its own; only an export with an open vocabulary takes others"
                )
            return self.metadata.classes, {}
        if vocabulary is None:
            raise ConfigError(
                f"{self.path} takes its classes from a vocabulary file, which dearli export writes; give one"
            )
        found = VocabularyFile.read(vocabulary)
        if found.fingerprint != wanted.fingerprint or found.embeddings.shape[2] != wanted.dim:
            raise WeightsError(
                f"{vocabulary} was made by another text tower or with other prompts than {self.path} needs"
            )
        if wanted.alpha and found.alpha is None:
            raise WeightsError(f"{vocabulary} has no weights of its classes, which {self.path} needs; write it anew")
        arrays = {name: array for name, array in found.inputs.items() if name in self.metadata.inputs}
        return found.classes, arrays

    @overload
    def __call__(self, images: Picture) -> Prediction: ...
    @overload
    def __call__(self, images: list[AnyPicture] | tuple[AnyPicture, ...]) -> list[Prediction]: ...
    def __call__(self, images: Picture | list[AnyPicture] | tuple[AnyPicture, ...]) -> Prediction | list[Prediction]:
        """Predicts one image, or a list of images, which may differ in kind and size.

        Args:
            images: as for `dearli_d2.Predictor`: paths, PIL images or uint8 arrays.

        Returns:
            Maps of the size of the image as it is seen; for a list of images a list.

        Raises:
            DatasetError: no such file, another kind of image, or more than 8 bits a channel.
        """
        if isinstance(images, (list, tuple)):
            return [self._predict(as_pixels(image)) for image in images]
        return self._predict(as_pixels(images))

    def _predict(self, image: np.ndarray) -> Prediction:
        maps = self.maps(image)
        assert maps.semantic is not None
        assert maps.confidence is not None
        return Prediction(maps.panoptic, maps.segments, maps.semantic, maps.confidence, self.taxonomy)

    def maps(self, image: np.ndarray, semantic: bool = True) -> Maps:
        """The prediction of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            semantic: with the class of each pixel and its probability; without them a model with objects computes less.
        """
        size: Size = image.shape[0], image.shape[1]
        small = read_out_size(*size, self.metadata.read_out.max_pixels)
        found = self._labels(resized_image(image, self.metadata.preparation), small, semantic)
        panoptic = resize_labels(found.panoptic, size)
        if found.semantic is None or found.confidence is None:
            return Maps(panoptic, found.segments)
        return Maps(
            panoptic, found.segments, resize_labels(found.semantic, size), resize_labels(found.confidence, size)
        )

    def _labels(self, pixels: np.ndarray, size: Size, semantic: bool) -> Maps:
        """The labels of a resized image at `size`."""
        preparation, read_out = self.metadata.preparation, self.metadata.read_out
        if not preparation.window:
            return labels_of(self.run(pixels), self._frame(pixels), read_out, self.taxonomy.thing_ids, size, semantic)
        total = np.zeros((len(self.taxonomy), *pixels.shape[:2]), np.float32)
        count = np.zeros(pixels.shape[:2], np.float32)
        for place in windows(pixels, preparation):
            part = pixels[place]
            total[:, place[0], place[1]] += scores_of(self.run(part), self._frame(part), read_out)
            count[place] += 1
        return class_labels(resized_scores(total / count, size), size, len(total))

    def _frame(self, pixels: np.ndarray) -> Frame:
        preparation, content = self.metadata.preparation, (pixels.shape[0], pixels.shape[1])
        return Frame(input_size(content, preparation), content, preparation.fit == "resize")

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's outputs by name, without the axis of the batch, for (h, w, 3) uint8 RGB of the size that the model wants."""
        outputs = self._session.run(list(self.metadata.outputs), self._feed(pixels))
        return {name: output[0] for name, output in zip(self.metadata.outputs, outputs, strict=True)}

    def _feed(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {IMAGE: network_input(pixels, self.metadata.preparation), **self._arrays}

    def inputs(self, image: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """All inputs of the graph for an (H, W, 3) uint8 RGB image, one for each window of it."""
        preparation = self.metadata.preparation
        pixels = resized_image(image, preparation)
        for place in windows(pixels, preparation) if preparation.window else [(slice(None), slice(None))]:
            yield self._feed(pixels[place])


def taxonomy_of(classes: Sequence[ClassInfo]) -> Taxonomy:
    """The classes of an exported file as predictions have them."""
    return Taxonomy(
        names=tuple((c.name, *c.synonyms) for c in classes),
        thing_ids=frozenset(i for i, c in enumerate(classes) if c.isthing),
        dataset_ids=tuple(c.category_id for c in classes),
        colors=tuple(c.color for c in classes),
    )


def open_session(path: Path, threads: int, provider: str) -> InferenceSession:
    """An ONNX file in onnxruntime; see `OnnxPredictor`."""
    if provider not in PROVIDERS:
        raise ConfigError(f"there is no provider {provider!r}; known are {', '.join(PROVIDERS)}")
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"an exported model needs onnxruntime: pip install onnxruntime ({error})") from error
    if not path.is_file():
        raise WeightsError(f"there is no file {path}")
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise ConfigError(
            f"this onnxruntime cannot use {provider}: pip install onnxruntime-gpu in place of onnxruntime"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, _QUIET
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDERS[provider]])
    except Exception as error:  # its types are not public
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = (
            "; onnxruntime reads ONNX only: dearli export --format onnx"
            if path.suffix in (".pt2", ".pt", ".pth")
            else ""
        )
        raise WeightsError(f"{path} cannot be opened by onnxruntime: {reason}{advice}") from error
    if PROVIDERS[provider] not in session.get_providers():
        raise ConfigError(f"onnxruntime found no working {provider} on this machine")
    return session


def metadata_of(session: Any, path: Path) -> Metadata:
    """The description in an open file.

    Raises:
        WeightsError: there is none, or one that this version cannot read.
    """
    entries = session.get_modelmeta().custom_metadata_map
    if KEY not in entries:
        raise WeightsError(f"{path} is an ONNX file that dearli export did not write: it has no entry {KEY!r}")
    return Metadata.from_json(entries[KEY], str(path))
