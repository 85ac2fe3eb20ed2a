"""Lists of images: every line chooses the image it names, or none."""

from __future__ import annotations

import pytest

from dearli_d2.data.lists import read_list
from dearli_d2.errors import DatasetError

NAMES = [
    "cat.jpg",
    "cat night.jpg",
    "v1.jpg",
    "v1.5.jpg",
    "day/a.png",
    "night/a.png",
    "day/b.JPG",
    "2007_000032.jpg",
    "7.png",
]


def chosen(tmp_path, text, names=NAMES):
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [names[i] for i in read_list(path, names, "mine")]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("cat", "cat.jpg"),
        ("cat night.jpg", "cat night.jpg"),  # a name with a space
        ("cat night", "cat night.jpg"),
        ("v1.5", "v1.5.jpg"),  # a name with a point
        ("v1", "v1.jpg"),
        ("day/a", "day/a.png"),  # one of two images of a name
        ("some/where/night/a.png", "night/a.png"),  # a longer path
        ("C:\\data\\day\\a.png", "day/a.png"),
        ("./day/b.jpg", "day/b.JPG"),
        ("b", "day/b.JPG"),  # a shorter one
        ("2007_000032 1 -1", "2007_000032.jpg"),  # further columns
        ("x/cat.jpg masks/cat.png", "cat.jpg"),
        ("cat night.jpg masks/cat night.png", "cat night.jpg"),
        ("cat night\tmasks/x", "cat night.jpg"),
        ("  7  ", "7.png"),
    ],
)
def test_a_line_chooses_the_image_it_names(tmp_path, line, name):
    assert chosen(tmp_path, line + "\n") == [name]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("cat night.jpg", ["cat.jpg"]),  # not its first word
        ("cat night", ["cat.jpg"]),
        ("v1.5", ["v1.jpg"]),
        ("night/a.png", ["day/a.png"]),  # another folder
        ("..", ["cat.jpg"]),
        ("/", ["cat.jpg"]),
        ("cat.jpeg.txt", ["cat.jpg"]),
    ],
)
def test_a_line_that_names_no_image_is_refused(tmp_path, line, names):
    with pytest.raises(DatasetError, match=r"mine: 1 of 1 images of .*list.txt are not in the data set"):
        chosen(tmp_path, line, names)


def test_files_of_other_systems_are_read(tmp_path):
    assert chosen(tmp_path, b"\xef\xbb\xbfcat.jpg\r\n\r\nv1.jpg\r\n") == ["cat.jpg", "v1.jpg"]  # mark and CRLF
    assert chosen(tmp_path, "größe.jpg", ["größe.jpg"]) == ["größe.jpg"]
    assert chosen(tmp_path, "gro\u0308ße.jpg", ["gr\u00f6ße.jpg"]) == ["gr\u00f6ße.jpg"]  # as macOS writes it
    for encoding in ("latin-1", "utf-16"):
        with pytest.raises(DatasetError, match=r"list.txt is no text in UTF-8"):
            chosen(tmp_path, "größe.jpg".encode(encoding), ["größe.jpg"])


def test_lines_that_fit_several_images_or_the_same_twice(tmp_path):
    with pytest.raises(DatasetError, match=r"1 lines of .* fit several images: a \(day/a.png, night/a.png\)"):
        chosen(tmp_path, "a\n")
    with pytest.raises(DatasetError, match="lists an image twice: day/b.JPG"):
        chosen(tmp_path, "b\nday/b.jpg\n")
    assert chosen(tmp_path, "a.png\n", ["a.jpg", "a.png"]) == ["a.png"]  # the suffix decides
