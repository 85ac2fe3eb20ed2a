"""Pictures of a run inside an HTML page, small enough to send."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import leads_out
from .read import Evaluation, Run

_SIDE = 1200  # pixels
_QUALITY = 72
_BUDGET = 3_500_000  # characters of all pictures
_BATCH = re.compile(r"(\d+)_(.+)")
_KINDS = {"unlabeled": "Unlabelled images", "labeled": "Labelled images", "source": "Images of the source domain"}


@dataclass(frozen=True)
class Picture:
    """A picture with its caption and, as a data URL, its content; "" where it could not be had, which the caption explains."""

    caption: str
    url: str


class Album:
    """Embeds pictures until they take 3.5 MB together.

    Args:
        runs: number of runs that share the place.
    """

    def __init__(self, runs: int) -> None:
        self.left, self.share = _BUDGET, max(2, 12 // runs)

    def embed(self, path: Path, caption: str) -> Picture:
        """A picture, made smaller. A damaged one, or one too many, has a caption that says so."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    small = image.convert("RGB")
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            return Picture(f"{caption}: {path.name} cannot be shown ({error})", "")
        small.thumbnail((_SIDE, 4 * _SIDE), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=_QUALITY, optimize=True)
        url = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        if len(url) > self.left:
            return Picture(f"{caption}: left out, the report would be too large ({path})", "")
        self.left -= len(url)
        return Picture(caption, url)

    def worst_and_best(self, evaluation: Evaluation) -> dict[str, list[Picture]]:
        """{title: pictures} of an evaluation: of its worst and best images, or without scores of images what there is."""
        shown = (row for row in evaluation.images if not leads_out(row.get("picture")))
        scored = [(score, row) for row in shown if (score := _first_score(row)) is not None]
        ranked = [row for _, row in sorted(scored, key=lambda pair: pair[0])]
        if not ranked:
            files = sorted((evaluation.folder / "pictures").rglob("*.png"))
            pictures = [self.embed(path, path.stem) for path in _some(files, self.share)]
            return {"Images (this run has no scores of images)": pictures} if pictures else {}
        count = min(len(ranked), self.share)
        worst, best = ranked[: count - count // 2], ranked[len(ranked) - count // 2 :][::-1]
        return {
            title: [self.embed(evaluation.folder / row["picture"], _caption(row)) for row in rows]
            for title, rows in (("Worst images", worst), ("Best images", best))
            if rows
        }

    def batches(self, run: Run) -> dict[str, list[Picture]]:
        """{kind of images: pictures of batches in the order of steps}."""
        kinds: dict[str, list[tuple[int, Path]]] = {}
        for path in (run.folder / "batches").glob("*.png"):
            if (found := _BATCH.fullmatch(path.stem)) is not None:
                kinds.setdefault(found[2], []).append((int(found[1]) + 1, path))
        each = max(1, min(4, self.share // 2))
        return {
            _KINDS.get(kind, kind): [
                self.embed(path, f"step {step}") for step, path in _some(sorted(kinds[kind]), each)
            ]
            for kind in sorted(kinds, reverse=True)  # unlabelled images first
        }


def _some(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, evenly spread, with the first and the last."""
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, min(count, len(items)))]


def _first_score(row: dict[str, Any]) -> float | None:
    return next((v for k, v in row.items() if k not in ("image", "picture") and isinstance(v, int | float)), None)


def _caption(row: dict[str, Any]) -> str:
    scores = [f"{name} {value:.1f}" for name, value in row.items() if isinstance(value, int | float)]
    return ", ".join([Path(row["image"]).name, *scores])
