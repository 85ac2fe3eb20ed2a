"""Image files are found, measured and read; what would be read wrongly is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.images import find_images, image_sizes, usable_images
from dearli_d2.data.mappers import read_image
from dearli_d2.errors import DatasetError


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
def test_images_of_8_bits_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(path)
    assert image_sizes([path]) == [(3, 5)]
    image = read_image(str(path))
    assert np.array_equal(image, np.full((3, 5, 3), 255, np.uint8))


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.int32), ("a.tiff", np.float32)])
def test_deeper_images_are_refused_instead_of_clipped(tmp_path, name, dtype):
    good, path = tmp_path / "good.png", tmp_path / name
    Image.new("RGB", (5, 3)).save(good)
    Image.fromarray(np.full((3, 5), 4000, dtype)).save(path)
    with pytest.raises(DatasetError, match=rf"{name} has more than 8 bits a channel .* convert it to 8 bits"):
        read_image(str(path))
    with pytest.raises(DatasetError, match=rf"1 of 2 files cannot be used as images: .*{name} has more than 8 bits"):
        image_sizes([good, path])


def test_a_folder_without_labels_may_hold_files_that_are_no_image(tmp_path, caplog):
    good = tmp_path / "deep" / "good.png"
    good.parent.mkdir()
    Image.new("RGB", (5, 3)).save(good)
    Image.fromarray(np.zeros((3, 5), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert usable_images(tmp_path) == [(good, 3, 5)]
    assert "2 of 3 files are left out" in caplog.text
    assert "empty.jpg cannot be read as an image" in caplog.text
    assert "deep.png has more than 8 bits" in caplog.text
    good.unlink()
    with pytest.raises(DatasetError, match="none of 2 files can be used as an image: .*deep.png has more"):
        usable_images(tmp_path)


def test_folders_are_searched_and_files_named_twice_count_once(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.JPG", "a.png", "deep/c.webp", "._a.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no image")
    found = find_images([tmp_path, tmp_path / "a.png"])
    assert [p.name for p in found] == ["a.png", "b.JPG", "c.webp"]
    with pytest.raises(DatasetError, match="there is no image or folder"):
        find_images([tmp_path / "missing"])
