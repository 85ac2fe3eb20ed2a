"""A small set of labelled images, as every format of labels can hold it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.labels.geometry import encode
from dearli_d2.labels.structures import LabelClass, Shape

CLASSES = [LabelClass("road", 1, False, (128, 64, 128)), LabelClass("car", 2, True, (0, 0, 142))]
SIZE = (48, 64)


def masks_of(index: int) -> dict[str, list[np.ndarray]]:
    """Masks of the classes in image `index`: a road below, and one or two cars, of which one has a hole."""
    road = np.zeros(SIZE, bool)
    road[30:] = True
    first = np.zeros(SIZE, bool)
    first[5:20, 4 + index : 24 + index] = True
    first[9:14, 9 + index : 15 + index] = False
    cars = [first]
    if index % 2 == 0:
        second = np.zeros(SIZE, bool)
        second[24:40, 30:50] = True
        cars.append(second)
        road &= ~second
    return {"road": [road], "car": cars}


def shapes_of(index: int) -> list[Shape]:
    """Shapes of image `index`."""
    return [Shape(name, encode(mask)) for name, masks in masks_of(index).items() for mask in masks]


def name_of(index: int) -> str:
    """Path of image `index` below `images/`."""
    return f"day/im{index}.jpg" if index == 3 else f"im{index}.jpg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six photographs in `images/`, of which one is in a subfolder, without labels."""
    folder = tmp_path / "mine"
    rng = np.random.default_rng(0)
    for index in range(6):
        path = folder / "images" / name_of(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path)
    return folder
