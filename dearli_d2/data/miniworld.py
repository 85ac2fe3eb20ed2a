"""Miniworld: a small generated world with the formats and the difficulties of the real benchmarks.

Scenes are textured regions (stuff) with overlapping, partly hidden objects (things). The class of a thing is its
local appearance, pattern x colour, while shape and size are free; so recognition is what CLIP-like features can
carry and localisation is what a decoder must learn. Class frequencies are long-tailed. Two pairs look alike:
*purple ball* / *purple box* differ by shape only, *sky* / *water* by their place in the image only.

A scene is a function of (seed, domain, split, index) alone. On disk a domain is what real data sets are: JPEG images,
COCO-panoptic PNG + JSON, semantic PNG and a JSONL file of captions.

Nothing need be done before training: a domain is generated when it is read first. `dearli data generate` does it at once,
`dearli data preview --out miniworld.png` draws some scenes.
"""

from __future__ import annotations

import colorsys
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..files import cache_dir, remove_leftovers, write_json
from .panoptic_png import ids_to_rgb, segment_info
from .preparation import listed

logger = logging.getLogger(__name__)

VERSION = 1  # of the scenes
FORMAT = 2  # of the files; a change of either makes a new folder
SIZE = 128
SPLITS = {"train": 1000, "val": 100}
DOMAINS = ("day", "night")
UNSEEN_CLASSES = ("striped blue", "dotted yellow", "sand")
_CAPTION_CLASSES = 6  # as many as the tiny CLIP reads for sure
_MIN_VISIBLE = 48  # pixels; a smaller visible part is no object


@dataclass(frozen=True)
class MiniClass:
    """One class: `id` is the category id on disk, `frequency` its relative rate, `hue` in 0..1."""

    id: int
    name: str
    isthing: bool
    frequency: float
    texture: str
    hue: float = 0.0
    shapes: tuple[str, ...] = ("ellipse", "box", "triangle", "star", "ring")


CLASSES: tuple[MiniClass, ...] = (
    MiniClass(1, "striped red", True, 1.0, "striped", 0.0),
    MiniClass(2, "dotted blue", True, 0.8, "dotted", 0.62),
    MiniClass(3, "checkered green", True, 0.65, "checkered", 0.36),
    MiniClass(4, "striped blue", True, 0.5, "striped", 0.62),
    MiniClass(5, "plain orange", True, 0.4, "plain", 0.07),
    MiniClass(6, "dotted red", True, 0.3, "dotted", 0.0),
    MiniClass(7, "purple ball", True, 0.25, "plain", 0.8, ("ellipse",)),
    MiniClass(8, "purple box", True, 0.25, "plain", 0.8, ("box",)),
    MiniClass(9, "dotted yellow", True, 0.2, "dotted", 0.15),
    MiniClass(10, "checkered red", True, 0.12, "checkered", 0.0),
    MiniClass(11, "sky", False, 1.0, "waves", 0.56),
    MiniClass(12, "grass", False, 1.0, "grass", 0.28),
    MiniClass(13, "gravel", False, 0.7, "gravel", 0.1),
    MiniClass(14, "water", False, 0.4, "waves", 0.56),
    MiniClass(15, "brick wall", False, 0.3, "bricks", 0.03),
    MiniClass(16, "sand", False, 0.2, "sand", 0.12),
)
THINGS = tuple(c for c in CLASSES if c.isthing)
GROUND = tuple(c for c in CLASSES if not c.isthing and c.name != "sky")


@dataclass
class Scene:
    """One generated image with its segments.

    `image` is (H, W, 3) uint8 RGB. `segments` is (H, W) int32 with the numbers 1, 2, ... `classes[i]` is the class of
    segment i + 1.
    """

    image: np.ndarray
    segments: np.ndarray
    classes: list[MiniClass] = field(default_factory=list)

    def semantic(self) -> np.ndarray:
        """(H, W) uint8 of contiguous class indices 0..15, 255 where there is no segment."""
        lookup = np.array([255] + [c.id - 1 for c in self.classes], dtype=np.uint8)
        return lookup[self.segments]


# ---------------------------------------------------------------------------------------------- textures


def _noise(rng: np.random.Generator, size: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise in -1..1 of shape (size, size) with `cells` (rows, columns) independent cells."""
    small = rng.uniform(-1, 1, size=cells).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def _mix(weight: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return weight[..., None] * a + (1 - weight[..., None]) * b


def _direction(angle: float) -> tuple[float, float]:
    """Cosine and sine as Python floats. numpy's own scalars would make arrays float64 from numpy 2 on, and scenes differ."""
    return float(np.cos(angle)), float(np.sin(angle))


def _grid(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in pixels, turned by a random angle and shifted by a random phase."""
    cos, sin = _direction(rng.uniform(0, np.pi))
    y, x = np.mgrid[:size, :size].astype(np.float32)
    u = cos * x + sin * y + rng.uniform(0, 64)
    v = -sin * x + cos * y + rng.uniform(0, 64)
    return u, v


def _pattern(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    """(size, size) in 0..1: 1 where the class colour is, 0 where the light ground shows."""
    u, v = _grid(rng, size)
    period = rng.uniform(6.0, 10.0)
    wave_u, wave_v = np.sin(2 * np.pi * u / period), np.sin(2 * np.pi * v / period)
    soft = {"striped": wave_u, "checkered": wave_u * wave_v * 3, "dotted": wave_u + wave_v - 0.9}.get(kind)
    if soft is None:
        return np.ones((size, size), np.float32)
    return np.clip(0.5 + 2 * soft, 0, 1).astype(np.float32)


def _texture(rng: np.random.Generator, size: int, cls: MiniClass) -> np.ndarray:
    """(size, size, 3) RGB in about 0..1."""
    hue = cls.hue + rng.normal(0, 0.015)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    if cls.isthing:
        colour = _rgb(hue, rng.uniform(0.65, 0.95), rng.uniform(0.6, 0.95))
        ground = _rgb(rng.uniform(0, 1), rng.uniform(0, 0.12), rng.uniform(0.75, 1.0))
        return _mix(_pattern(rng, size, cls.texture), colour, ground)
    if cls.texture == "waves":
        wave = 0.5 + 0.5 * _noise(rng, size, (12, 4))
        return _mix(wave, _rgb(hue, 0.55, 0.8), _rgb(hue + 0.02, 0.3, 0.9))
    if cls.texture == "grass":
        blades = 0.5 + 0.3 * _noise(rng, size, (size // 8, size // 2)) + 0.2 * _noise(rng, size, (5, 5))
        return _mix(blades, _rgb(hue, 0.7, 0.65), _rgb(hue + 0.04, 0.8, 0.3))
    if cls.texture == "gravel":
        stones = 0.5 + 0.4 * _noise(rng, size, (size // 5, size // 5)) + 0.2 * _noise(rng, size, (size, size))
        return _mix(stones, _rgb(hue, 0.08, 0.75), _rgb(hue, 0.1, 0.35))
    if cls.texture == "sand":
        grains = 0.5 + 0.25 * _noise(rng, size, (size, size)) + 0.2 * _noise(rng, size, (6, 3))
        return _mix(grains, _rgb(hue, 0.3, 0.95), _rgb(hue, 0.45, 0.75))
    row = np.floor(y / 7)  # bricks
    mortar = ((y % 7) < 1.3) | (((x + 7 * (row % 2)) % 14) < 1.3)
    tone = 0.5 + 0.4 * _noise(rng, size, (size // 7, size // 14))
    return _mix(mortar.astype(np.float32), _rgb(0.1, 0.1, 0.75), _mix(tone, _rgb(hue, 0.65, 0.65), _rgb(hue, 0.7, 0.4)))


# ---------------------------------------------------------------------------------------------- geometry


def _shape(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    """(size, size) bool mask of one object with random place, extent and rotation."""
    radius = size * rng.uniform(0.09, 0.24)
    cx, cy = (rng.uniform(0.08, 0.92, size=2) * size).tolist()
    (cos, sin), aspect = _direction(rng.uniform(0, 2 * np.pi)), rng.uniform(0.65, 1.0)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    u = (cos * (x - cx) + sin * (y - cy)) / radius
    v = (-sin * (x - cx) + cos * (y - cy)) / (radius * aspect)
    if kind == "box":
        return np.maximum(abs(u), abs(v)) < 0.85
    if kind == "triangle":
        return (v > -0.6) & (v < 1.2 - 1.9 * abs(u))
    distance = np.hypot(u, v)
    if kind == "star":
        return distance < 0.75 + 0.3 * np.cos(5 * np.arctan2(v, u))
    if kind == "ring":
        return (distance < 1.05) & (distance > 0.5)
    return distance < 1


def _choose(rng: np.random.Generator, classes: tuple[MiniClass, ...]) -> MiniClass:
    weights = np.array([c.frequency for c in classes])
    return classes[rng.choice(len(classes), p=weights / weights.sum())]


def _stuff_layout(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[MiniClass]]:
    """(size, size) int region map and the class of each region: sky may be on top, ground regions lie below."""
    x = np.arange(size)
    y = np.mgrid[:size, :size][0]
    regions, classes = np.zeros((size, size), np.int32), [_choose(rng, GROUND)]
    wave = size * 0.06 * np.sin(2 * np.pi * x / size * rng.uniform(0.5, 2) + rng.uniform(0, 6))
    if rng.random() < 0.6:  # a second ground region beside or below the first
        second = _choose(rng, tuple(c for c in GROUND if c not in classes))
        classes.append(second)
        cut = rng.uniform(0.35, 0.75) * size + wave
        regions[(y > cut) if rng.random() < 0.5 else (y > cut).T] = len(classes) - 1
    if rng.random() < 0.55:
        classes.append(next(c for c in CLASSES if c.name == "sky"))
        slope = rng.uniform(-0.12, 0.12) * (x - size / 2)
        regions[y < rng.uniform(0.2, 0.45) * size + slope + wave * 0.5] = len(classes) - 1
    return regions, classes


def make_scene(seed: int, index: int, split: str = "train", domain: str = "day", size: int = SIZE) -> Scene:
    """The scene of (seed, domain, split, index). `size` is the side of the square image in pixels."""
    rng = np.random.default_rng([VERSION, seed, DOMAINS.index(domain), sorted(SPLITS).index(split), index])
    regions, stuff = _stuff_layout(rng, size)
    image: np.ndarray = np.zeros((size, size, 3), np.float32)
    for i, cls in enumerate(stuff):
        image = np.where((regions == i)[..., None], _texture(rng, size, cls), image)

    segments = np.zeros((size, size), np.int32)
    classes: list[MiniClass] = []
    free = np.ones((size, size), bool)
    for _ in range(rng.integers(2, 8)):  # front to back: a later object is hidden by the earlier ones
        cls = _choose(rng, THINGS)
        whole = _shape(rng, size, cls.shapes[rng.integers(len(cls.shapes))])
        visible = whole & free
        texture = _texture(rng, size, cls)
        if visible.sum() < max(_MIN_VISIBLE, 0.25 * whole.sum()):
            continue
        classes.append(cls)
        segments[visible] = len(classes)
        image[visible] = texture[visible]
        free &= ~whole
    for i, cls in enumerate(stuff):
        visible = (regions == i) & (segments == 0)
        if visible.any():
            classes.append(cls)
            segments[visible] = len(classes)

    image = image * (1 + 0.18 * _noise(rng, size, (3, 3)))[..., None]  # uneven light
    image = image * rng.uniform(0.8, 1.1) + rng.normal(0, 0.03, size=image.shape)
    if domain == "night":
        image = _to_night(rng, image)
    return Scene((np.clip(image, 0, 1) * 255).round().astype(np.uint8), segments, classes)


def _to_night(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The second domain: darker, blue-shifted, blurred, noisy, with contrast that differs from scene to scene."""
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(np.clip(image, 0, 1), sigma=(0.9, 0.9, 0))
    tint = np.array([0.6, 0.75, 1.15], np.float32) * rng.uniform(0.9, 1.1, size=3)
    image = np.clip(image, 0, 1) ** rng.uniform(1.2, 1.7) * tint * rng.uniform(0.55, 0.8) + 0.04
    return image + rng.normal(0, 0.06, size=image.shape)


def caption(scene: Scene) -> str:
    """One sentence that names the largest classes of a scene, largest first: as a captioner would that makes no mistake."""
    areas = np.bincount(scene.segments.ravel(), minlength=len(scene.classes) + 1)[1:]
    order = sorted(range(len(areas)), key=lambda i: -areas[i])
    names = list(dict.fromkeys(scene.classes[i].name for i in order))[:_CAPTION_CLASSES]
    return f"a picture of {listed(names)}"


# ---------------------------------------------------------------------------------------------- files


def categories() -> list[dict]:
    """COCO-panoptic `categories`, with the colour that pictures use."""
    return [{"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": _picture_colour(c)} for c in CLASSES]


def _picture_colour(cls: MiniClass) -> list[int]:
    value = 0.95 - 0.07 * (cls.id % 5)
    return [int(255 * v) for v in _rgb(cls.hue + 0.011 * cls.id, 0.85 if cls.isthing else 0.45, value)]


def root(domain: str = "day", seed: int = 0, splits: dict[str, int] | None = None) -> Path:
    """Folder of a domain; generated on first use, complete or absent (never half written)."""
    splits = splits or SPLITS
    counts = "-".join(f"{name}{n}" for name, n in sorted(splits.items()))
    folder = cache_dir() / f"miniworld-v{VERSION}.{FORMAT}-s{seed}-{counts}" / domain
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    temporary = folder.parent / f".{domain}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        for split, count in splits.items():
            _write_split(temporary, seed, split, domain, count)
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():  # else another process was faster; its files are the same
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_split(folder: Path, seed: int, split: str, domain: str, count: int) -> None:
    for part in ("images", "panoptic", "semantic"):
        (folder / part / split).mkdir(parents=True)
    (folder / "captions").mkdir(exist_ok=True)
    images, annotations, captions = [], [], []
    for index in tqdm(range(count), desc=f"miniworld {domain}/{split}", unit="scene", leave=False):
        scene = make_scene(seed, index, split, domain)
        stem = f"{index:06d}"
        save_image(scene, folder / "images" / split / f"{stem}.jpg")
        Image.fromarray(scene.semantic()).save(folder / "semantic" / split / f"{stem}.png")
        Image.fromarray(ids_to_rgb(scene.segments)).save(folder / "panoptic" / split / f"{stem}.png")
        height, width = scene.segments.shape
        images.append({"id": stem, "file_name": f"{stem}.jpg", "height": height, "width": width})
        annotations.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": _segments_info(scene)})
        captions.append({"file": f"{stem}.jpg", "caption": caption(scene), "model": "miniworld"})
    write_json(
        folder / f"panoptic_{split}.json",
        {"images": images, "annotations": annotations, "categories": categories()},
    )
    lines = "".join(json.dumps(entry) + "\n" for entry in captions)
    (folder / "captions" / f"{split}.jsonl").write_text(lines)


def save_image(scene: Scene, path: Path) -> None:
    """The scene's image as the data set has it, a JPEG of quality 95."""
    Image.fromarray(scene.image).save(path, quality=95)


def _segments_info(scene: Scene) -> list[dict]:
    return [segment_info(i, cls.id, scene.segments == i) for i, cls in enumerate(scene.classes, start=1)]


def crops(seed: int, scenes: int, tile: int) -> Iterator[tuple[np.ndarray, MiniClass]]:
    """Captionable crops for contrastive training: (tile, tile, 3) uint8 and the class of its centre.

    Each segment gives one crop, centred on a random pixel of it, at 0.8 to 1.25 times the scale of the scene.
    """
    rng = np.random.default_rng(seed)
    for index in range(scenes):
        scene = make_scene(seed, index)
        image = Image.fromarray(scene.image)
        for i, cls in enumerate(scene.classes, start=1):
            rows, columns = np.nonzero(scene.segments == i)
            pick, half = rng.integers(len(rows)), tile / rng.uniform(0.8, 1.25) / 2
            x, y = columns[pick] + 0.5, rows[pick] + 0.5
            box = (x - half, y - half, x + half, y + half)
            patch = image.transform((tile, tile), Image.Transform.EXTENT, box, resample=Image.Resampling.BILINEAR)
            yield np.asarray(patch), cls


def preview(path: Path, rows: int = 3, columns: int = 4, seed: int = 0) -> None:
    """Writes a contact sheet: each scene beside its segments, day above, night in the last row."""
    palette = np.array([[0, 0, 0]] + [_picture_colour(c) for c in CLASSES], np.uint8)
    sheet = []
    for row in range(rows):
        domain = "night" if row == rows - 1 else "day"
        scenes = [make_scene(seed, row * columns + i, domain=domain) for i in range(columns)]
        sheet.append(np.concatenate([part for s in scenes for part in (s.image, _colour_map(s, palette))], axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sheet)).resize((columns * 2 * 192, rows * 192), Image.Resampling.LANCZOS).save(path)


def _colour_map(scene: Scene, palette: np.ndarray) -> np.ndarray:
    colours = palette[np.array([0] + [c.id for c in scene.classes])][scene.segments]
    edge = np.zeros(scene.segments.shape, bool)
    edge[1:] |= scene.segments[1:] != scene.segments[:-1]
    edge[:, 1:] |= scene.segments[:, 1:] != scene.segments[:, :-1]
    colours[edge] = 255
    return colours
