"""The classes of a file that was exported with an open vocabulary: arrays that its graph takes, as an `.npz` file."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WeightsError
from ..files import write_atomically
from .metadata import CLASS_ALPHA, CLASS_EMBEDDINGS, ClassInfo, read_classes

_CLASSES, _FINGERPRINT = "classes", "fingerprint"


@dataclass(frozen=True)
class VocabularyFile:
    """Classes and their text embeddings.

    Attributes:
        classes: K of them.
        embeddings: (K, S, E) float32, see `VocabularyInput`.
        alpha: (K,) float32; None where the graph has no such input.
        fingerprint: see `VocabularyInput`.
    """

    classes: tuple[ClassInfo, ...]
    embeddings: np.ndarray
    alpha: np.ndarray | None
    fingerprint: str

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Arrays for the graph beside the image, by name."""
        arrays = {CLASS_EMBEDDINGS: self.embeddings}
        return arrays if self.alpha is None else {**arrays, CLASS_ALPHA: self.alpha}

    def write(self, path: str | Path) -> None:
        """Writes an `.npz` file, atomically."""
        classes = json.dumps([asdict(entry) for entry in self.classes])

        content: dict[str, Any] = {**self.inputs, _CLASSES: classes, _FINGERPRINT: self.fingerprint}

        def save(temporary: Path) -> None:
            with temporary.open("wb") as stream:  # numpy would add a suffix to a path
                np.savez(stream, **content)

        write_atomically(path, save)

    @staticmethod
    def read(path: str | Path) -> VocabularyFile:
        """Reads what `write` wrote. Raises `WeightsError` for another file."""
        try:
            with np.load(path, allow_pickle=False) as content:
                embeddings, fingerprint = content[CLASS_EMBEDDINGS], str(content[_FINGERPRINT])
                alpha = content.get(CLASS_ALPHA)
                classes = read_classes(json.loads(str(content[_CLASSES])))
        except (OSError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise WeightsError(f"{path} is no vocabulary that dearli export writes: {error}") from error
        if (
            embeddings.ndim != 3
            or len(embeddings) != len(classes)
            or (alpha is not None and alpha.shape != (len(classes),))
        ):
            raise WeightsError(
                f"{path}: {len(classes)} classes, but embeddings {embeddings.shape}; the file is damaged"
            )
        return VocabularyFile(classes, embeddings, alpha, fingerprint)
