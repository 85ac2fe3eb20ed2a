"""The table and the page of suggestions: one file that works offline, with small pictures inside."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..files import write_atomically

_SIDE = 480  # pixels of a picture's long side
_MOST = 200  # entries of a page
_MARK = ((5, "black"), (2, "yellow"))  # width and colour of the lines of an outline, the lower one first
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
figure { display: inline-block; margin: 0 .6rem .4rem 0; }
figcaption { font-size: .85rem; color: #666; }
img { max-width: 100%; display: block; }
h2 { font-size: 1.05rem; border-top: 1px solid #ccc; padding-top: .8rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } figcaption { color: #aaa; } }
"""


@dataclass(frozen=True)
class Entry:
    """One image of the page.

    Attributes:
        title: above the pictures.
        pictures: caption and picture.
        reasons: sentences below them.
    """

    title: str
    pictures: Sequence[tuple[str, Image.Image]]
    reasons: Sequence[str]


def small_picture(image: np.ndarray) -> Image.Image:
    """An (H, W, 3) uint8 image with a long side of at most 480 pixels; a tiny one is enlarged."""
    picture = Image.fromarray(image)
    scale = min(_SIDE / max(picture.size), 3.0)
    size = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def marked(image: np.ndarray, masks: Sequence[np.ndarray]) -> Image.Image:
    """The image, small, with the outlines of (h, w) masks of its proportions, numbered from 1 where there are several."""
    picture = small_picture(image)
    draw = ImageDraw.Draw(picture)
    for number, mask in enumerate(masks, start=1):
        full = (cv2.resize(mask.astype(np.float32), picture.size) >= 0.5).astype(np.uint8)
        outlines, _ = cv2.findContours(full, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        for outline in outlines:
            points = [(int(x), int(y)) for x, y in outline[:, 0]]
            for width, color in _MARK:
                draw.line([*points, points[0]], fill=color, width=width)
        if len(masks) > 1 and outlines:
            x, y = (int(v) for v in max(outlines, key=len)[0, 0])
            place = min(x + 3, picture.width - 10), min(y + 2, picture.height - 12)
            draw.text(place, str(number), fill="white", stroke_width=2, stroke_fill="black")
    return picture


def write_page(path: Path, title: str, notes: Sequence[str], entries: Iterable[Entry]) -> None:
    """Writes the page of the first entries.

    Args:
        notes: sentences before them.
        entries: made one at a time.
    """
    parts = [
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>",
        *(f"<p>{escape(note)}</p>" for note in notes),
    ]
    for number, entry in enumerate(islice(entries, _MOST), start=1):
        parts.append(f"<h2>{number}. {escape(entry.title)}</h2>")
        parts += [
            f'<figure><img src="{_inside(picture)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
            for caption, picture in entry.pictures
        ]
        parts.append(f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in entry.reasons)}</ul>")
    write_atomically(path, lambda temporary: temporary.write_text("\n".join(parts), encoding="utf-8"))


def _inside(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the same keys; numbers with four digits behind the point."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, list(rows[0]) if rows else ["rank", "image"])
            table.writeheader()
            for row in rows:
                table.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})

    write_atomically(path, write)
