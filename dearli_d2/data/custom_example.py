"""An example of own data: a folder with scenes of miniworld."""

from __future__ import annotations

import os
from pathlib import Path

from tqdm import tqdm

from . import miniworld
from .preparation import save_png


def write_example(out: Path, labeled: int = 40, unlabeled: int = 200) -> None:
    """Writes a folder as the docstring of `data.custom` shows, with miniworld's first scenes.

    Its class list has the classes that the labelled scenes show.
    """
    shown = set()
    for name in ("images", "masks", "unlabeled"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(labeled + unlabeled), desc="example", unit="scene", leave=False):
        scene = miniworld.make_scene(0, index)
        target = "images" if index < labeled else "unlabeled"
        miniworld.save_image(scene, out / target / f"{index:06d}.jpg")
        if index < labeled:
            save_png(out / "masks" / f"{index:06d}.png", scene.semantic())
            shown |= {c.id for c in scene.classes}
    lines = [f"{c.id - 1} {'thing' if c.isthing else 'stuff'} {c.name}" for c in miniworld.CLASSES if c.id in shown]
    (out / "classes.txt").write_text("\n".join(lines) + os.linesep)
