"""Shards of masks: what is read is what was written, a damaged shard is named, processes do not meet, and kill -9 loses nothing."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.errors import DatasetError
from dearli_d2.masks.generate import generate
from dearli_d2.masks.merge import merge, verify
from dearli_d2.masks.storage import MaskFolder, encode
from tests.masks.test_masks import Counting


def fill(folder: MaskFolder, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes random masks of made-up images of different sizes; returns them by name."""
    rng = np.random.default_rng(seed)
    masks = {f"{seed}_{i}.jpg": rng.random((i % 4, 5 + i, 9)) > 0.5 for i in range(count)}
    for name, own in masks.items():
        folder.write(name, own.shape[1:], [{"segmentation": encode(m)} for m in own])
    folder.write_manifest({"generator": "random"})
    return masks


def assert_holds(folder: MaskFolder, masks: dict[str, np.ndarray]) -> None:
    assert folder.have(list(masks)).all()
    for name, own in masks.items():
        assert folder.has(name)
        assert np.array_equal(folder.read(name, own.shape[1:]), own)


def test_masks_are_the_same_alone_in_shards_and_half_of_each(tmp_path):
    folder = MaskFolder(tmp_path, shard=4)
    masks = fill(folder, 11)
    assert len(folder.shards.files()) == 2  # while it is filled
    assert len(list((tmp_path / "masks").iterdir())) == 3
    for packed in (False, True):
        if packed:
            folder.pack(list(masks))
        for reader in (folder, MaskFolder(tmp_path), pickle.loads(pickle.dumps(folder))):
            assert_holds(reader, masks)
            assert not reader.has("other.jpg")
            assert reader.have(["other.jpg", "0_3.jpg"]).tolist() == [False, True]
            with pytest.raises(DatasetError, match=r"no masks of other.jpg"):
                reader.read("other.jpg")
    assert not list((tmp_path / "masks").iterdir())
    assert sorted(r.stem for r in folder.records()) == sorted(Path(n).stem for n in masks)
    names = [name for path in folder.shards.files() for name in zipfile.ZipFile(path).namelist()]
    assert sorted(names) == sorted(f"{Path(n).stem}.json" for n in masks)  # any tool for zip files reads them


def test_the_newest_masks_of_an_image_count(tmp_path):
    folder = MaskFolder(tmp_path, shard=4)
    masks = fill(folder, 8)
    other = fill(folder, 3)  # the same names
    assert other.keys() < masks.keys()
    for name in other:
        other[name] = ~masks[name]
        folder.write(name, other[name].shape[1:], [{"segmentation": encode(m)} for m in other[name]])
    for reader in (folder, MaskFolder(tmp_path)):
        assert_holds(reader, masks | other)  # files alone before shards
    folder.pack(list(masks))
    for reader in (folder, MaskFolder(tmp_path)):
        assert_holds(reader, masks | other)  # later shards before earlier ones
        assert len(reader.shards) == len(list(reader.records())) == 8


def test_files_that_a_killed_process_did_not_remove_make_no_second_shard(tmp_path):
    folder = MaskFolder(tmp_path, shard=0)
    masks = fill(folder, 5)
    shutil.copytree(tmp_path / "masks", tmp_path / "kept")
    MaskFolder(tmp_path).pack(list(masks))
    before = folder.shards.files()
    shutil.copytree(tmp_path / "kept", tmp_path / "masks", dirs_exist_ok=True)
    again = MaskFolder(tmp_path)
    again.pack(list(masks))
    assert again.shards.files() == before
    assert not list((tmp_path / "masks").iterdir())


def test_the_index_is_made_anew_when_shards_come_go_or_change_and_when_it_is_damaged(tmp_path):
    folder = MaskFolder(tmp_path, shard=4)
    masks = fill(folder, 8)
    index, first = tmp_path / "shards" / "index.bin", MaskFolder(tmp_path)
    assert_holds(first, masks)
    whole = index.read_bytes()
    for damaged in (whole[:-7], whole[:-1] + b"?", b"", b"\xff\xfe", b"{}\n", b"[" * 10**5):
        index.write_bytes(damaged)
        assert_holds(MaskFolder(tmp_path), masks)
        assert index.read_bytes() == whole
    more = fill(MaskFolder(tmp_path, shard=4), 4, seed=1)  # by another process
    assert_holds(MaskFolder(tmp_path), masks | more)
    first.shards.files()[0].unlink()
    left = MaskFolder(tmp_path)
    assert left.have(list(masks | more)).sum() == 8
    index.unlink()
    assert MaskFolder(tmp_path).have(list(masks | more)).tolist() == left.have(list(masks | more)).tolist()


def test_a_reader_finds_masks_that_were_put_together_after_it_had_looked(tmp_path):
    folder = MaskFolder(tmp_path, shard=0)
    masks = fill(folder, 6)
    reader = MaskFolder(tmp_path)
    assert_holds(reader, masks)
    MaskFolder(tmp_path).pack(list(masks))
    assert_holds(reader, masks)


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "cut off":
        del content[-30:]
    elif kind == "half":
        del content[len(content) // 2 :]
    elif kind == "empty":
        content.clear()
    else:  # bits of the first file's content
        content[45] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut off", "half", "empty", "bits"])
def test_a_damaged_shard_is_named_with_what_to_do_and_made_again(kind, tmp_path, images, capsys):
    folder = MaskFolder(tmp_path / "out", shard=3)
    generate(images, Counting(), folder)
    path = folder.shards.files()[1]
    damage(path, kind)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(path))}.* damaged.*: delete this shard") as found:
        [MaskFolder(tmp_path / "out").read(image) for image in images]
    assert "\n" not in str(found.value)
    assert main(["masks", "check", str(tmp_path / "out")]) == 2
    assert str(path) in capsys.readouterr().err
    path.unlink()
    again = Counting()
    generate(images, again, MaskFolder(tmp_path / "out", shard=3))
    assert again.seen == 3
    assert main(["masks", "check", str(tmp_path / "out")]) == 0
    assert "7 images" in capsys.readouterr().out


def test_masks_with_another_content_than_masks_are_counted_and_named(tmp_path):
    folder = MaskFolder(tmp_path, shard=0)
    fill(folder, 5)
    content = json.loads(folder.path("0_3.jpg").read_text())
    content["annotations"][0]["segmentation"]["counts"] = "11"
    folder.path("0_3.jpg").write_text(json.dumps(content))
    folder.path("0_4.jpg").write_text("[]")
    MaskFolder(tmp_path).pack([f"0_{i}.jpg" for i in range(5)])
    with pytest.raises(
        DatasetError, match=r"2 mask files or shards are damaged: 0_3.json: the run lengths .*, 0_4.json"
    ):
        verify(MaskFolder(tmp_path))


def test_folders_are_merged_and_converted_both_ways(tmp_path):
    one, two = MaskFolder(tmp_path / "one", shard=3), MaskFolder(tmp_path / "two", shard=0)
    masks = fill(one, 7) | fill(two, 5, seed=1)
    assert merge([one, two], MaskFolder(tmp_path / "both")) == 12
    assert_holds(MaskFolder(tmp_path / "both"), masks)
    assert len(MaskFolder(tmp_path / "both").shards.files()) == 1
    words = ["masks", "merge", str(tmp_path / "both"), "--layout", "files", "--out", str(tmp_path / "files")]
    assert main(words) == 0
    assert main(words) == 0  # it goes on, and nothing is left to do
    files = MaskFolder(tmp_path / "files")
    assert len(list((tmp_path / "files" / "masks").glob("*.json"))) == 12
    assert not files.shards.files()
    assert_holds(files, masks)
    assert files.manifest()["generator"] == "random"
    for name in ("0_2.jpg", "0_3.jpg"):
        two.write(name, (8, 9), [])
    with pytest.raises(DatasetError, match=r"2 images have other masks in .*two than in .*third: 0_2, 0_3"):
        merge([one, two], MaskFolder(tmp_path / "third"))
    two.write_manifest({"generator": "other"})
    assert main(["masks", "merge", str(one.folder), str(two.folder), "--out", str(tmp_path / "fourth")]) == 2


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(7):
        Image.new("RGB", (8 + index, 6), (index, 0, 0)).save(folder / f"{index}.png")
    return sorted(map(str, folder.iterdir()))


def test_processes_share_a_folder_and_another_number_of_them_goes_on(tmp_path, images):
    out = tmp_path / "out"
    for index, count in ((0, 3), (1, 3)):
        generate(images, Counting(), MaskFolder(out, shard=2), shard=(index, count))
    generate(images, rest := Counting(), MaskFolder(out, shard=2), shard=(1, 2))
    generate(images, rest, MaskFolder(out, shard=2), shard=(0, 2))
    assert rest.seen == 2
    assert len(MaskFolder(out).shards) == len(list(MaskFolder(out).records())) == 7


def test_changed_images_are_made_anew_where_that_is_asked_for(tmp_path, images):
    out = tmp_path / "out"
    generate(images, Counting(), MaskFolder(out, shard=2))
    Image.new("RGB", (30, 20)).save(images[2])
    with pytest.raises(DatasetError, match=r"names of 1 of these: .*2.png; choose another --out, or give --replace"):
        generate(images, Counting(), MaskFolder(out, shard=2))
    counts = generate(images, Counting(), MaskFolder(out, shard=2), replace=True)
    assert (counts["done"], counts["present"]) == (1, 6)
    assert MaskFolder(out).read(images[2]).shape == (1, 20, 30)


class Slow(Counting):
    def find(self, images):
        time.sleep(0.01)
        return images


def test_after_kill_9_at_any_time_the_same_command_makes_the_same_folder(tmp_path, images):
    for index in range(7, 40):
        Image.new("RGB", (8 + index, 6), (index, 0, 0)).save(tmp_path / "images" / f"{index:02}.png")
    files = sorted(map(str, (tmp_path / "images").iterdir()))
    generate(files, Counting(), MaskFolder(tmp_path / "whole", shard=3))
    out, kills = tmp_path / "out", 0
    while True:
        work = files, Slow(), MaskFolder(out, shard=3), 2
        process = multiprocessing.get_context("fork").Process(target=generate, args=work)
        process.start()
        process.join(0.05 + 0.007 * kills)  # further on each time
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= 3
    whole, resumed = ({r.stem: r.content for r in MaskFolder(f).records()} for f in (tmp_path / "whole", out))
    assert whole == resumed
    assert len(resumed) == 40
    assert not list((out / "masks").glob("[!.]*"))
