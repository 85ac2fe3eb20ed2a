"""What the page asks of the model: one picture at a time in, its prediction out. No word of HTTP here."""

from __future__ import annotations

import base64
import io
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import opened, read_image, seen_size
from ..data.sizes import resize_labels
from ..errors import DatasetError, DearliError
from ..predict import Predictor, output_picture
from ..prediction import Prediction
from ..prediction_files import KINDS
from ..visualization import overlay, resized, shown_size

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6


class BusyError(DearliError):
    """The model is at work on another picture."""


class GoneError(DearliError):
    """The asked prediction is not kept any more."""


@dataclass(frozen=True)
class _Kept:
    """The last picture and its prediction, for downloads."""

    key: str
    image: np.ndarray
    prediction: Prediction


class Desk:
    """A model that segments one picture at a time, and keeps the last one.

    Args:
        predictor: the model.
        title: how the page calls it.
    """

    def __init__(self, predictor: Predictor, title: str) -> None:
        self.predictor, self.title = predictor, title
        self._lock = threading.Lock()
        self._kept: _Kept | None = None
        model = predictor.model
        self._facts = {
            "title": title,
            "classes": list(model.known_taxonomy().main_names),
            "takesWords": model.takes_words,
            "readsCaptions": model.reads_captions,
            "device": str(model.device),
            "maxBytes": MAX_BYTES,
            "kinds": list(KINDS),
        }

    def facts(self) -> dict[str, Any]:
        """Names the run, its classes and what the page may offer, before there is a picture."""
        return self._facts

    def segment(self, name: str, content: bytes, words: str = "", caption: str = "") -> dict[str, Any]:
        """The prediction of one picture.

        Args:
            name: of its file, for errors. No file of that name is opened.
            content: of the file.
            words: classes such as "cat, dog|puppy"; "" = those of the training.
            caption: for a model that reads one; "" = none.

        Returns:
            Plain values for JSON; see `_report`.

        Raises:
            BusyError: another picture is not finished.
            ConfigError: the model cannot take these words.
            DatasetError: no picture, one that is too large, or a caption that is missing.
        """
        if not self._lock.acquire(blocking=False):
            raise BusyError("the model is at work on another picture; try again when that is done")
        try:
            begin = time.monotonic()
            self.predictor.name_classes(words if words.strip() else None)
            image = _read(name, content)
            prediction = self.predictor(image, caption if caption.strip() else None)
            self._kept = _Kept(secrets.token_urlsafe(16), image, prediction)
            return {**_report(image, prediction), "key": self._kept.key, "seconds": time.monotonic() - begin}
        finally:
            self._lock.release()

    def file(self, key: str, kind: str) -> bytes:
        """The PNG file of a kind of `KINDS`, as `dearli predict` writes it.

        Args:
            key: of the answer of `segment`.
            kind: of the file.

        Raises:
            GoneError: another picture has been segmented since.
            DatasetError: there is no such kind.
        """
        kept = self._kept
        if kind not in KINDS:
            raise DatasetError(f"there is no file {kind!r}; known are {', '.join(KINDS)}")
        if kept is None or not secrets.compare_digest(kept.key.encode(), key.encode()):
            raise GoneError("another picture has been segmented since; segment this one again")
        return _png(output_picture(kind, kept.image, kept.prediction))


def _read(name: str, content: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB. The size is known before the pixels are decoded."""
    name = PurePath(name).name or "the picture"
    with opened(name, content=content) as picture:
        height, width = seen_size(picture)
    if height * width > MAX_PIXELS:
        raise DatasetError(
            f"{name} has {height * width / 1e6:.0f} megapixels; this page takes up to {MAX_PIXELS // 10**6}. Make it smaller, or "
            "use dearli predict"
        )
    return read_image(name, content)


def _report(image: np.ndarray, prediction: Prediction) -> dict[str, Any]:
    """Describes a prediction as the page shows it.

    Returns:
        "width", "height": of the picture;
        "segments": of those with pixels, the largest first: "name", "score", "area" (part of the picture), "color", "thing";
        "pictures": data URIs of "segments", "confidence" and "picture", all of one size that suits a screen;
        "map": "width", "height" of that size, and "values": base64 of little-endian uint16, i = the i-th segment from 1 on;
        "confidence": mean of all pixels.
    """
    taxonomy, size = prediction.taxonomy, shown_size(*image.shape[:2])
    ids, counts = np.unique(prediction.panoptic, return_counts=True)
    areas: Mapping[int, int] = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    segments = sorted((s for s in prediction.segments if s["id"] in areas), key=lambda s: -areas[s["id"]])
    small, panoptic = resized(image, size), resize_labels(prediction.panoptic, size)
    confidence = resize_labels(prediction.confidence, size)
    values = np.zeros(size, "<u2")
    for place, segment in enumerate(segments, 1):
        values[panoptic == segment["id"]] = place
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "segments": [
            {
                "name": taxonomy.main_names[s["category_id"]],
                "score": s["score"],
                "area": areas[s["id"]] / prediction.panoptic.size,
                "color": "#{:02x}{:02x}{:02x}".format(*taxonomy.colors[s["category_id"]]),
                "thing": s["category_id"] in taxonomy.thing_ids,
            }
            for s in segments
        ],
        "pictures": {
            "segments": _uri(Image.fromarray(overlay(small, panoptic, prediction.segments, taxonomy))),
            "confidence": _uri(Image.fromarray((255 * confidence).round().astype(np.uint8))),
            "picture": _uri(Image.fromarray(small)),
        },
        "map": {"width": size[1], "height": size[0], "values": base64.b64encode(values.tobytes()).decode()},
        "confidence": float(prediction.confidence.mean()),
    }


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _uri(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(picture)).decode()
