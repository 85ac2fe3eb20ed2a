"""Index masks of every depth are read as they were written; other codings are recognised and refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.index_masks import check_values, read_index_mask
from dearli_d2.errors import DatasetError, UnreadableImageError


def grey_png(path, values, depth):
    """A greyscale PNG of 1, 2, 4, 8 or 16 bits a pixel, written by hand: Pillow writes few of them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(height, width * depth).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_masks_of_all_depths_hold_what_was_written(tmp_path, depth):
    values = np.random.default_rng(0).integers(0, 2**depth, (7, 13))
    grey_png(tmp_path / "a.png", values, depth)
    assert np.array_equal(read_index_mask(tmp_path / "a.png"), values)


@pytest.mark.parametrize("colours", [2, 3, 16, 200])
def test_palette_masks_hold_their_indices(tmp_path, colours):
    values = np.random.default_rng(0).integers(0, colours, (9, 10)).astype(np.uint8)
    image = Image.fromarray(values, "P")
    image.putpalette([v for i in range(colours) for v in (255 - i, i, 7)])
    image.save(tmp_path / "a.png")  # Pillow packs few colours into 1, 2 or 4 bits
    assert np.array_equal(read_index_mask(tmp_path / "a.png"), values)


def test_a_mask_is_turned_as_its_image_is(tmp_path):
    values, exif = np.arange(6, dtype=np.uint8).reshape(2, 3), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_index_mask(tmp_path / "a.png"), np.rot90(values, -1))


def test_files_that_are_no_index_mask_say_why(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "jpeg.png", format="JPEG")
    with pytest.raises(DatasetError, match=r"jpeg.png is a JPEG file, whose compression changes values"):
        read_index_mask(tmp_path / "jpeg.png")
    Image.new("RGBA", (8, 8), (128, 0, 0, 255)).save(tmp_path / "colour.png")
    with pytest.raises(DatasetError, match=r"colour image \(RGBA\) of \(128, 0, 0\)"):
        read_index_mask(tmp_path / "colour.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.png", format="TIFF")
    with pytest.raises(DatasetError, match=r"float.png has fractions as values"):
        read_index_mask(tmp_path / "float.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "colour.png").read_bytes()[:40])
    with pytest.raises(UnreadableImageError, match=r"cut.png cannot be read as an index mask"):
        read_index_mask(tmp_path / "cut.png")


def masks(tmp_path, *arrays):
    paths = {}
    for index, array in enumerate(arrays):
        array = np.asarray(array)
        paths[f"{index}"] = tmp_path / f"{index}.png"
        Image.fromarray(array.astype(np.uint8 if array.max() < 256 else np.uint16)).save(paths[f"{index}"])
    return paths


def smooth(rng):
    """A mask of 0 and 3 after resizing with interpolation, which leaves 1 and 2, or after JPEG, which leaves more."""
    sharp = np.kron(rng.integers(0, 2, (8, 8)) * 200, np.ones((16, 16))).astype(np.uint8)
    return np.asarray(Image.fromarray(sharp).resize((150, 150), Image.BICUBIC))


CODINGS = {
    "binary": ({0, 1}, 255, [[0, 255]], "hold 0 and 255 only, as binary masks do, .*IGNORE_VALUE -1"),
    "binary, one mask empty": ({0, 1, 2}, 255, [[0, 255], [0, 0]], "as binary masks do"),
    "ignored pixels only": ({0, 1}, 255, [[255, 255]], "all 1 masks hold the value 255 only, which means 'ignore'"),
    "binary without ignored pixels": ({0, 1}, -1, [[0, 255]], "255 often means 'ignore': set .*IGNORE_VALUE 255"),
    "stranger": ({0, 1}, 255, [[0, 1], [0, 7]], r"1.png holds the value 7, which is no id .*1 of 2 masks .*: 7; list them"),
    "from 1 on": ({0, 1, 2}, 255, [[1, 2], [3, 255]], "all values are one too large: number the classes"),
    "from 0 on": ({1, 2, 3}, 255, [[0, 1], [2, 255]], "all values are one too small.*if 0 means 'not labelled' set .*VALUE 0"),
    "0 is not labelled": ({1, 2}, 255, [[0, 1, 2]], "if 0 means 'not labelled' set DATASETS.CUSTOM.IGNORE_VALUE 0"),
    "instances": ({24, 26}, 255, [[24, 26001], [26000, 24012]], "class id \\* 1000 \\+ number .* Cityscapes' instanceIds"),
    "spread out": ({0, 1, 2}, 255, [[0, 100], [200, 200]], "all are multiples of 100"),
    "5 greys": ({0, 1, 2, 3, 4}, 255, [[0, 51, 102], [153, 204, 0]], "all are multiples of 51"),
    "16 bits": ({0, 1}, 255, [[0, 65535]], "holds the value 65535"),
}  # fmt: skip


@pytest.mark.parametrize("case", CODINGS)
def test_wrong_codings_are_recognised(tmp_path, case):
    ids, ignore, arrays, words = CODINGS[case]
    with pytest.raises(DatasetError, match=words):
        check_values(masks(tmp_path, *[np.tile(a, (4, 1)) for a in arrays]), ids, ignore)


def test_masks_that_were_resized_smoothly_or_kept_as_jpeg_are_recognised(tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(DatasetError, match="JPEG compression or from resizing with interpolation"):
        check_values(masks(tmp_path, smooth(rng), smooth(rng)), {0, 200}, 255)


def test_some_binary_masks_among_others_are_named(tmp_path, caplog):
    check_values(masks(tmp_path, [[0, 1]], [[0, 255]]), {0, 1}, 255)
    assert "1 of 2 masks hold 0 and 255 only" in caplog.text
    assert "1.png" in caplog.text
    check_values(masks(tmp_path, [[0, 255]]), {0}, 255)  # one class, the rest ignored: can be meant so
    assert "1 of 1 masks hold 0 and 255 only" in caplog.text


@pytest.mark.parametrize(
    ("ids", "ignore", "array"),
    [
        ({0, 1}, 255, [0, 1, 255]),
        ({0}, 255, [0, 255]),
        ({0, 255}, -1, [0, 255]),
        ({1, 2}, 0, [0, 1, 2]),
        ({3}, 255, [3]),
    ],
)
def test_right_codings_pass(tmp_path, ids, ignore, array):
    check_values(masks(tmp_path, np.tile(array, (4, 1))), ids, ignore)
