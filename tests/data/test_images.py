"""Image files are found, measured and read; what would be read wrongly is refused."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dearli_d2.data.catalog import ImageFolder, dataset_dicts, register
from dearli_d2.data.images import find_images, image_sizes, read_image
from dearli_d2.errors import DatasetError, UnreadableImageError


def usable_images(folder):
    """(file, height, width) of the images of a folder without labels that can be read."""
    register("usable_images", ImageFolder(folder))
    return [(Path(d["file_name"]), d["height"], d["width"]) for d in dataset_dicts("usable_images")]


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
    assert "1 of 3 files are left out:\n  " in caplog.text
    assert "empty.jpg is empty" in caplog.text
    assert "1 of 2 files are left out:\n  " in caplog.text
    assert "deep.png has more than 8 bits" in caplog.text
    good.unlink()
    with pytest.raises(DatasetError, match="none of 1 files can be used as an image: .*deep.png has more"):
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


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_header_is_that_of_the_upright_pixels(tmp_path, suffix, orientation):
    """Every format and tag, against Pillow's own transposition of the stored pixels."""
    path = tmp_path / f"a.{suffix}"
    stored = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((16, 16))).astype(np.uint8)
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.stack([stored] * 3, -1)).save(path, exif=exif(orientation), **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert image_sizes([path]) == [expected.shape[:2]]
    assert np.array_equal(read_image(path), expected)


@pytest.mark.parametrize("value", ["6", "upside down", 0, 9, 77, (6, 6), b"\6"])
def test_a_tag_of_another_type_or_value_turns_nothing(monkeypatch, tmp_path, value):
    Image.new("RGB", (5, 3)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "getexif", lambda self: {0x0112: value})
    assert image_sizes([tmp_path / "a.jpg"]) == [(3, 5)]
    assert read_image(tmp_path / "a.jpg").shape == (3, 5, 3)


def test_a_damaged_exif_block_does_no_harm(monkeypatch, tmp_path):
    def fail(self):
        raise SyntaxError("not a TIFF file")

    Image.new("RGB", (5, 3)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert read_image(tmp_path / "a.jpg").shape == (3, 5, 3)


@pytest.mark.parametrize(
    "error", [OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error, zlib.error, MemoryError]
)
def test_whatever_a_decoder_raises_is_an_unreadable_image(monkeypatch, tmp_path, error):
    def fail(self, *args, **kwargs):
        raise error("broken")

    path = tmp_path / "a.png"
    Image.new("RGB", (5, 3)).save(path)
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(UnreadableImageError, match=r"a.png cannot be read as an image: .*broken"):
        read_image(path)


@pytest.mark.filterwarnings("ignore")
def test_random_damage_never_ends_in_another_error(tmp_path):
    rng, good = np.random.default_rng(0), tmp_path / "good"
    for suffix in ("jpg", "png", "tif", "webp", "bmp"):
        Image.fromarray(rng.integers(0, 255, (9, 11, 3), np.uint8)).save(
            good, format=Image.registered_extensions()[f".{suffix}"], exif=exif(6)
        )
        content = np.frombuffer(good.read_bytes(), np.uint8)
        for _ in range(120):
            damaged = content.copy()
            damaged[rng.integers(0, min(len(content), 120), 3)] = rng.integers(0, 256, 3)
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(damaged.tobytes())
            with suppress(DatasetError):  # no other error
                assert read_image(path).shape[:2] == image_sizes([path])[0]


def large_png(path, side):
    """A 1-bit image, a few kilobytes for any side."""
    Image.new("1", (side, side)).save(path)


def test_images_above_the_limit_are_named_wherever_they_lie(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    large_png(tmp_path / "big.png", 150)
    large_png(tmp_path / "allowed.png", 130)  # between Pillow's warning and its limit
    words = r"big.png has more than 0 megapixels, which is the limit; cut it into tiles"
    with pytest.raises(UnreadableImageError, match=words):
        read_image(tmp_path / "big.png")
    with pytest.raises(DatasetError, match=words):
        image_sizes([tmp_path / "big.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        assert read_image(tmp_path / "allowed.png").shape == (130, 130, 3)
    assert [p.name for p, *_ in usable_images(tmp_path)] == ["allowed.png"]
    assert "big.png has more than" in caplog.text


def test_a_bomb_of_400_megapixels_is_one_line(shared):
    with pytest.raises(UnreadableImageError, match="has more than 178 megapixels"):
        read_image(shared.parent / "cases" / "20_bomb_20000x20000.png")


def test_an_orientation_that_is_a_text_is_read(shared):
    assert read_image(shared.parent / "cases" / "20_exif_orientation_as_text.jpg").ndim == 3


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize("name", ["a.HEIC", "b.jpg"])
def test_phone_photographs_say_what_they_need(tmp_path, name, caplog):
    """Also under the suffix .jpg, as some phones export them."""
    (tmp_path / name).write_bytes(HEIC)
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    with pytest.raises(DatasetError, match=rf"{name} is a HEIC image; install the package pillow-heif, or convert"):
        image_sizes([tmp_path / name])
    assert len(usable_images(tmp_path)) == 1
    assert "is a HEIC image" in caplog.text


def test_raw_photographs_are_not_read_as_their_preview(tmp_path):
    Image.new("RGB", (160, 120)).save(tmp_path / "a.dng", format="TIFF")
    with pytest.raises(UnreadableImageError, match=r"a.dng is a raw photograph; convert it"):
        read_image(tmp_path / "a.dng")
    assert [p.name for p in find_images([tmp_path])] == ["a.dng"]  # found, so that it is named


def test_the_pages_of_a_stack_are_not_taken_for_one_image(tmp_path):
    page = Image.new("RGB", (8, 6))
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page, page])
    page.save(tmp_path / "overview.tif", save_all=True, append_images=[page.resize((4, 3))])
    with pytest.raises(UnreadableImageError, match=r"stack.tif holds 3 pages, of which the first alone would be read"):
        read_image(tmp_path / "stack.tif")
    assert read_image(tmp_path / "overview.tif").shape == (6, 8, 3)


def test_names_in_another_coding_are_named_instead_of_failing_later(tmp_path, caplog):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    os.rename(os.fsencode(tmp_path / "b.png"), os.fsencode(tmp_path) + b"/caf\xe9.png")
    assert [p.name for p, _, _ in usable_images(tmp_path)] == ["a.png"]
    assert "caf\\xe9.png' has a name that is no UTF-8; rename it" in caplog.text
    with pytest.raises(DatasetError, match="1 of 2 files cannot be used as images: .*has a name that is no UTF-8"):
        image_sizes(find_images([tmp_path]))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="a.png is a pipe, no file"):
        read_image(tmp_path / "a.png")


def test_hidden_files_and_folders_hold_no_images_and_links_are_followed(tmp_path):
    root, elsewhere = tmp_path / ".data" / "images", tmp_path / "elsewhere"  # the user's own folder may be hidden
    hidden = [
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/a.png",
        "@eaDir/a.png/SYNO_THUMB.png",
        "x/.git/b.png",
        "._a.png",
    ]
    for name in ["a.png", "x/b.png", *hidden]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    (root / "Thumbs.db").write_bytes(b"x")
    elsewhere.mkdir()
    Image.new("RGB", (4, 4)).save(elsewhere / "c.png")
    (root / "link").symlink_to(elsewhere)
    (root / "x" / "loop").symlink_to(root)
    (root / "zz").symlink_to(elsewhere)  # the same images again
    (root / "dead.png").symlink_to(tmp_path / "nowhere.png")
    names = [p.relative_to(root).as_posix() for p in find_images([root])]
    assert names == ["a.png", "dead.png", "link/c.png", "x/b.png"]
    with pytest.raises(DatasetError, match=r"1 of 4 files cannot be used as images: .*dead.png"):
        image_sizes(find_images([root]))
