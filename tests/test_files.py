"""Files are whole or absent, and killed processes leave nothing for good."""

from __future__ import annotations

import os
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dearli_d2.files import picture_names, remove_leftovers, write_atomically
from dearli_d2.weights import write_file


def test_only_old_temporaries_are_removed(tmp_path):
    names = [".a-abc_efg1.png", ".b-abcdefgh", ".c-abcdefgh.json", ".hidden", "a-abcdefgh.png", ".a-abcd.png"]
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / ".day-abcdefgh").mkdir()
    (tmp_path / ".day-abcdefgh" / "image.png").write_text("")
    for name in (*names, ".day-abcdefgh"):
        if name != ".c-abcdefgh.json":  # of a process that may still run
            os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".a-abcd.png",
        ".c-abcdefgh.json",
        ".hidden",
        "a-abcdefgh.png",
    ]
    remove_leftovers(tmp_path / "none")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_follow_the_umask(tmp_path, umask):
    writers = {
        "a.txt": lambda path: path.write_text("x"),
        "a.png": lambda path: Image.new("L", (2, 2)).save(path),
        "a.safetensors": lambda path: save_file({"x": torch.zeros(2)}, path),
        "n" * 240 + ".txt": lambda path: path.write_text("x"),
    }
    before = os.umask(umask)
    try:
        for name, write in writers.items():
            write_atomically(tmp_path / name, write)
        write_file(tmp_path / "a.pth", {"x": torch.zeros(2)})
    finally:
        os.umask(before)
    assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == dict.fromkeys(
        (*writers, "a.pth"), 438 & ~umask
    )


def test_temporaries_of_killed_writers_are_recognised(tmp_path):
    class Killed(BaseException):
        pass

    def write(temporary):
        os.link(temporary, tmp_path / f"{temporary.stem}{temporary.suffix}.kept")
        raise Killed

    with pytest.raises(Killed):
        write_atomically(tmp_path / "long name.png", write)
    (kept,) = tmp_path.iterdir()
    left = kept.rename(tmp_path / kept.stem)
    os.utime(left, (time.time() - 7200,) * 2)
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures_of_files_of_one_name_have_names_of_their_own():
    assert picture_names([]) == []
    assert picture_names(["/x/a.jpg", "/x/b.jpg"]) == ["a", "b"]
    assert picture_names(["/x/day/1.jpg", "/x/night/1.jpg"]) == ["day/1", "night/1"]
    assert picture_names(["/x/1.jpg", "/x/1.png"]) == ["1.jpg", "1.png"]
