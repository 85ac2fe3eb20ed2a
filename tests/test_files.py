"""Files are whole or absent, and killed processes leave nothing for good."""

from __future__ import annotations

import os
import time

from dearli_d2.files import remove_leftovers


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
