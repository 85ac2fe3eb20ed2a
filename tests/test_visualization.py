"""Pictures for the eye: proportions, bounded sizes, titles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dearli_d2.data.panoptic_png import ids_to_rgb
from dearli_d2.data.taxonomy import Taxonomy, spread_colors
from dearli_d2.structures import Targets
from dearli_d2.visualization import (
    overlay_targets,
    prediction_picture,
    sample_sheet,
    save_comparison,
    save_mask_picture,
    sheet,
    shown_size,
    with_legend,
)

TAXONOMY = Taxonomy((("crate",), ("sky",)), frozenset({0}), (0, 1), ((200, 0, 0), (0, 0, 200)))
SEGMENTS = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 1}]
THIN = [(2, 2000), (2000, 2), (1, 1), (1, 50_000), (3000, 4000), (300, 200), (64, 64), (100, 640)]


@pytest.mark.parametrize("size", THIN)
def test_every_picture_is_bounded_and_in_proportion(tmp_path, size):
    height, width = shown_size(*size)
    assert max(height, width) <= 1024
    assert height == max(1, round(size[0] * width / size[1])) or width == max(1, round(size[1] * height / size[0]))
    assert min(height, width) >= 256 or 2 * max(height, width) > 1024 or max(size) > 1024
    image, ids = np.zeros((*size, 3), np.uint8), np.ones(size, np.int32)
    ids[size[0] // 2 :, size[1] // 2 :] = 2
    Image.fromarray(ids_to_rgb(ids)).save(tmp_path / "truth.png")
    truth = {"pan_seg_file_name": str(tmp_path / "truth.png"), "segments_info": SEGMENTS}
    maps = {"panoptic prediction": (ids, []), "semantic prediction": (ids, SEGMENTS)}
    save_comparison(tmp_path / "a.png", "folder/a.jpg", image, maps, TAXONOMY, truth)
    save_mask_picture(tmp_path / "b.png", image, ids[None] == 2)
    targets = Targets(torch.tensor([0]), torch.from_numpy(ids[None] == 1), torch.from_numpy(ids > 0))
    sample = {"image": torch.from_numpy(image.transpose(2, 0, 1)), "targets": targets, "file_name": "folder/a.jpg"}
    pictures = [Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png"), sample_sheet([sample] * 4, TAXONOMY)]
    assert all(p.width <= 4 * 1028 + 200 and p.height <= 4 * 1042 + 18 for p in pictures)
    own = prediction_picture(image, ids, SEGMENTS, TAXONOMY)
    assert own.height >= size[0]
    assert own.width * own.height <= 2.5 * max(size[0] * size[1], 1024**2)


def test_the_semantic_output_shows_where_there_is_no_segment(tmp_path):
    image, ids = np.full((300, 300, 3), 128, np.uint8), np.full((300, 300), 2, np.int32)
    Image.fromarray(ids_to_rgb(ids)).save(tmp_path / "truth.png")
    truth = {"pan_seg_file_name": str(tmp_path / "truth.png"), "segments_info": SEGMENTS}
    maps = {"panoptic prediction": (0 * ids, []), "semantic prediction": (ids, SEGMENTS)}
    save_comparison(tmp_path / "a.png", "a.jpg", image, maps, TAXONOMY, truth)
    panels = np.asarray(Image.open(tmp_path / "a.png"))[36 + 150, 150::304][:4]
    assert (panels[0] == panels[1]).all()
    assert (panels[2] == panels[3]).all()
    assert panels[2, 2] > panels[2, 0]  # blue


def test_rows_and_columns_have_their_texts():
    rows = [("a/1.jpg", [np.zeros((256, 300, 3), np.uint8)] * 2), ("b/2.jpg", [np.zeros((50, 20, 3), np.uint8)] * 2)]
    picture = sheet(rows, ["image", "labels"])
    assert picture.shape == (18 + 18 + 256 + 18 + 50, 608, 3)
    for top, left in ((0, 0), (0, 304), (18, 0), (18 + 18 + 256, 0)):
        assert (picture[top : top + 18, left : left + 60] < 128).any()


def test_a_long_legend_fits_below_each_other():
    names = tuple((f"class number {i}",) for i in range(150))
    taxonomy = Taxonomy(names, frozenset(), tuple(range(150)), tuple(spread_colors(150)))
    small = with_legend(np.zeros((100, 100, 3), np.uint8), list(range(150)), taxonomy)
    assert small.height == 150 * 18 + 8
    large = with_legend(np.zeros((3000, 4000, 3), np.uint8), [0, 1], taxonomy)
    assert large.size[1] == 3000
    assert (np.asarray(large)[:60, 4000:4060] < 200).any()  # in letters that a large picture needs


def test_targets_are_drawn_at_the_size_that_is_shown():
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, :2] = True
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[:, 3] = False
    picture = overlay_targets(np.full((400, 400, 3), 100, np.uint8), Targets(torch.tensor([0]), masks, valid), TAXONOMY)
    assert picture[50, 50].tolist() != [100] * 3
    assert picture[350, 50].tolist() == [100] * 3
    assert not picture[:, 300:].any()
