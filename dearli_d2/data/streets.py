"""The 19 classes of Cityscapes, and how the labels of Cityscapes, GTA5 and SYNTHIA become them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DatasetError
from .preparation import categories_of

# label id of each class in Cityscapes and GTA5; all other ids 0..34 carry no loss
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# published colours
COLORS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
CATEGORIES = categories_of("cityscapes", COLORS)
HIGHEST_ID = 34
# class of each label id of SYNTHIA-RAND-CITYSCAPES; void, parking slots, road works and lane marks (0, 13, 14, 22) carry no loss
SYNTHIA = {
    1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 16: 9, 17: 12, 18: 14, 19: 15,
    20: 16, 21: 3,
}  # fmt: skip
SYNTHIA_HIGHEST_ID = 22
NOT_IN_SYNTHIA_16 = ("terrain", "truck", "train")  # left out of the usual 16 classes
UNKNOWN = 254  # neither a class nor 255 (ignore): no id of the table


def label_table() -> np.ndarray:
    """(256,) uint8 of Cityscapes and GTA5: class 0..18 of each label id, 255 = ignore, 254 = not in the table."""
    return _table(dict(zip(LABEL_IDS, range(len(LABEL_IDS)), strict=True)), HIGHEST_ID)


def synthia_table() -> np.ndarray:
    """(256,) uint8 of SYNTHIA, as `label_table`."""
    return _table(SYNTHIA, SYNTHIA_HIGHEST_ID)


def to_classes(ids: np.ndarray, table: np.ndarray, file: Path) -> np.ndarray:
    """(H, W) label ids to classes, 255 = ignore. Raises `DatasetError` for an id that the table does not know."""
    semantic = table[ids]
    if (semantic == UNKNOWN).any():
        strange = int(ids[semantic == UNKNOWN][0])
        raise DatasetError(f"{file}: label id {strange} is not in the table of this data set")
    return semantic


def _table(classes: dict[int, int], highest: int) -> np.ndarray:
    table = np.full(256, UNKNOWN, np.uint8)
    table[: highest + 1] = 255
    table[list(classes)] = list(classes.values())
    return table
