"""`dearli prepare` on made-up downloads: what is refused, quirks of the official releases, kills in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dearli_d2.cli import main
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.images import read_image
from dearli_d2.data.panoptic_png import ids_to_rgb, read_panoptic, segment_ids
from dearli_d2.data.partitions import PUBLISHED
from dearli_d2.data.preparation import fit_to_image, only_process, save_png
from dearli_d2.data.validation import validate_dataset
from dearli_d2.errors import DatasetError
from dearli_d2.evaluation.semantic import read_semantic
from tests.conftest import REPO
from tests.data import downloads
from tests.data.test_preparation import script

# command: (what makes its download, commands before it, images of the official release, a data set that it makes)
COMMANDS = {
    "ade20k": (downloads.ade20k, (), (20210, 2000), "ade20k_panoptic_train"),
    "coco": (downloads.coco, (), (118287, 5000), "coco_panoptic_train"),
    "coco_objects": (downloads.coco, ("coco",), (118287, 5000), "coco_objects_train"),
    "coco_stuff": (downloads.coco, (), (118287, 5000), "coco_stuff_train"),
    "pascal_voc": (downloads.pascal_voc, (), (10582, 1449), "pascal_voc_train"),
    "cityscapes": (downloads.cityscapes, (), (2975, 500), "cityscapes_train"),
    "camvid": (downloads.camvid, (), (367, 101), "camvid_train"),
    "gta5": (downloads.gta5, (), (24966,), "gta5_train"),
    "synthia": (downloads.synthia, (), (9400,), "synthia_train"),
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def files(root: Path) -> dict[str, bytes]:
    """All files below a folder, the hidden ones too; without those of the download that hold the time they were made."""
    dated = (".zip", ".mat")
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix not in dated
    }


def prepare(*words: str) -> int:
    return main(["prepare", *words])


# ---------------------------------------------------------------------------------------------- counts and names


@pytest.mark.parametrize("name", COMMANDS)
def test_a_download_that_is_not_the_whole_release_is_used_only_on_demand(name, data, monkeypatch, capsys, caplog):
    make, before, official, made = COMMANDS[name]
    make(data)
    assert [prepare(word) for word in before] == [0] * len(before)
    held = files(data)
    monkeypatch.delenv("DEARLI_INCOMPLETE")
    capsys.readouterr()
    assert prepare(name) == 2
    error = capsys.readouterr().err
    assert re.search(
        rf"error: {made.removesuffix('_train')}\w+: .* has [124] images, the official release {official[0]} ", error
    )
    assert "(--incomplete accepts it)" in error
    assert re.search(r"\. (download|run) ", error)
    assert error.count("\n") == 1
    assert files(data) == held  # nothing was written
    command = [sys.executable, "-m", "dearli_d2", "prepare", name, "--workers", "2", "--incomplete"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for count in official:
        assert re.search(
            rf"warning: .* has [124] images, the official release {count}\b.*will not compare", done.stdout
        )
    assert str(validate_dataset(made)).startswith(f"{made}: ")
    assert ("results do not compare" in caplog.text) == (made in PUBLISHED)  # said again by every training


def test_the_names_of_the_release_are_compared(data, monkeypatch, capsys):
    root = downloads.gta5(data)
    monkeypatch.delenv("DEARLI_INCOMPLETE")
    module = script("prepare_gta5")
    monkeypatch.setattr(module, "IMAGES", 2)
    assert module.main([]) == 0
    for folder in ("images", "labels"):
        (root / folder / "00002.png").rename(root / folder / "2.png")
    assert module.main([]) == 2
    assert "(not there: 00002) (not of the release: 2)" in capsys.readouterr().err


def test_one_error_tells_all_that_is_wrong(data, capsys):
    root = downloads.ade20k(data)
    (root / "annotations/training/ADE_1.png").unlink()
    for path in (root / "annotations_instance/training").iterdir():
        path.unlink()
    (root / "annotations_instance/training").rmdir()
    assert prepare("ade20k") == 2
    error = capsys.readouterr().err
    assert re.search(
        r"1 of 2 images have no label in \S+annotations/training: ADE_1; there is no folder \S+_instance/training\. ",
        error,
    )
    assert re.search(r"download ADEChallengeData2016.zip and annotations_instance.tar .*unpack", error)


def test_damaged_files_are_counted_in_one_error_and_the_rest_is_done(data, capsys):
    root = downloads.ade20k(data)
    for stem in ("ADE_3", "ADE_4"):
        for part, suffix in (("images", "jpg"), ("annotations", "png"), ("annotations_instance", "png")):
            source = root / part / "training" / f"ADE_1.{suffix}"
            source.with_name(f"{stem}.{suffix}").write_bytes(source.read_bytes())
    image, label = root / "images/training/ADE_2.jpg", root / "annotations/training/ADE_3.png"
    held = image.read_bytes()
    image.write_bytes(held[:40])
    label.write_bytes(label.read_bytes()[:60])
    assert prepare("ade20k", "--workers", "2") == 2
    error = capsys.readouterr().err
    assert re.search(
        "ade20k_panoptic_train: 2 of 4 files are damaged .*ADE_2.jpg cannot be read.*ADE_3.png cannot be read", error
    )
    assert "download ADEChallengeData2016.zip" in error
    assert sorted(p.name for p in (root / "ade20k_panoptic_train").iterdir()) == ["ADE_1.png", "ADE_4.png"]
    assert not (root / "ade20k_panoptic_train.json").exists()
    image.write_bytes(held)
    label.write_bytes((root / "annotations/training/ADE_1.png").read_bytes())
    assert prepare("ade20k") == 0
    assert len(dataset_dicts("ade20k_panoptic_train")) == 4


def test_a_second_process_is_refused_while_the_first_works(tmp_path):
    with only_process(tmp_path / ".a.lock"):
        code = f"from pathlib import Path; from dearli_d2.data.preparation import only_process\nwith only_process(Path({str(tmp_path / '.a.lock')!r})): pass"
        second = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert "another process prepares this data set" in second.stderr
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- kills


def killed_at(replacement: int, *words: str) -> None:
    """Runs `dearli prepare` in a process that is killed as it is about to give a file its name."""
    child = os.fork()
    if child == 0:
        original, left = os.replace, [replacement]

        def replace(source, target):
            prepared = Path(target).parent.name != "tables"  # of the cache, which may be there already
            left[0] -= prepared
            if prepared and not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            original(source, target)

        os.replace = replace
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            prepare(*words)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_preparation_ends_as_one_that_was_not(name, tmp_path, monkeypatch):
    make, before, _, _ = COMMANDS[name]
    results, writes, original = [], [], os.replace

    def counted(source, target):
        writes.append(target)
        original(source, target)

    for attempt in ("whole", "killed"):
        root = tmp_path / attempt
        root.mkdir()
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        make(root)
        assert [prepare(word) for word in before] == [0] * len(before)
        if attempt == "killed":
            killed_at(1, name, "--workers", "1")  # the first file
            assert any(path.rpartition("/")[2].startswith(".") for path in files(root))  # as a kill leaves it
            if len(writes) > 2:
                killed_at(len(writes) - 1, name, "--workers", "1")  # in the middle, or at the JSON file
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted if attempt == "whole" else original)
            assert prepare(name, "--workers", "1") == 0
        results.append(files(root))
    assert results[0] == results[1]


def test_captions_that_are_killed_as_they_are_joined_are_whole_after_the_next_run(data):
    downloads.cityscapes(data)
    assert prepare("cityscapes") == 0
    words = ("captions", "cityscapes_train", "--from-labels")
    killed_at(1, *words)
    assert not (data / "captions" / "cityscapes_train.jsonl").exists()
    command = [sys.executable, "-m", "dearli_d2", "prepare", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert "0 captions made, all in" in done.stdout
    assert len((data / "captions" / "cityscapes_train.jsonl").read_text().splitlines()) == 1
    assert [p.name for p in (data / "captions").iterdir() if ".part-" in p.name] == []


# ---------------------------------------------------------------------------------------------- quirks


def test_grey_images_and_files_that_macos_adds(data):
    """ADE20K has grey JPEGs (ADE_train_00001701, ...), COCO some hundreds."""
    root = downloads.ade20k(data)
    Image.fromarray(np.full((12, 16), 90, np.uint8)).save(root / "images/training/ADE_1.jpg")
    (root / "images/training/._ADE_1.jpg").write_bytes(b"attributes")
    (root / "annotations/training/._ADE_1.png").write_bytes(b"attributes")
    assert prepare("ade20k") == 0
    dicts = dataset_dicts("ade20k_panoptic_train")
    assert [d["image_id"] for d in dicts] == ["ADE_1", "ADE_2"]
    assert read_image(dicts[0]["file_name"]).shape == (12, 16, 3)
    validate_dataset("ade20k_panoptic_train")


@pytest.mark.parametrize("stored_label", [True, False])
def test_a_label_is_turned_with_an_image_that_its_exif_tag_turns(stored_label, data, capsys):
    """The label that was drawn on the stored pixels is turned; the one that was drawn on the seen image is not."""
    root = downloads.ade20k(data)
    for part, suffix in (("images", "jpg"), ("annotations", "png"), ("annotations_instance", "png")):
        path = root / part / "training" / f"ADE_1.{suffix}"
        picture = Image.open(path)
        if part == "images":
            exif = Image.Exif()
            exif[0x0112] = 6  # a quarter to the right
            picture.save(path, exif=exif)
        elif not stored_label:
            picture.transpose(Image.Transpose.ROTATE_270).save(path)
    assert prepare("ade20k") == 0
    shown = capsys.readouterr().out
    assert ("1 images to look at: ADE_1 (label turned with its image" in shown) == stored_label
    d = dataset_dicts("ade20k_panoptic_train")[0]
    assert (d["height"], d["width"]) == (16, 12) == read_image(d["file_name"]).shape[:2]
    upright = segment_ids(read_panoptic(dataset_dicts("ade20k_panoptic_train")[1]["pan_seg_file_name"]))
    turned = segment_ids(read_panoptic(d["pan_seg_file_name"]))
    assert np.array_equal(turned == 0, np.rot90(upright == 0, -1))
    assert np.array_equal(read_semantic(d), np.rot90(read_semantic(dataset_dicts("ade20k_panoptic_train")[1]), -1))
    validate_dataset("ade20k_panoptic_train")


def test_an_exif_tag_whose_effect_the_sizes_do_not_show_is_a_note(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    (label,), note = fit_to_image(tmp_path / "a.jpg", np.zeros((6, 8), np.uint8))
    assert label.shape == (6, 8)
    assert "look whether its label fits" in note
    with pytest.raises(DatasetError, match="a.jpg has 8 x 6 pixels, its label 8 x 5"):
        fit_to_image(tmp_path / "a.jpg", np.zeros((5, 8), np.uint8))


@pytest.mark.parametrize("folder", ["SegmentationClassAug", "SegmentationClass"])
def test_labels_of_sbd_may_be_png_files_of_others(folder, data):
    """SegmentationClassAug.zip, or the labels of UniMatch among those of VOC: they hold VOC's validation images too."""
    root = downloads.pascal_voc(data)
    (data / "benchmark_RELEASE").rename(data / "elsewhere")
    (root / folder).mkdir(exist_ok=True)
    for stem in "abv":
        if folder.endswith("Aug") or stem == "b":
            Image.fromarray(np.full((6, 8), 14, np.uint8)).save(root / folder / f"{stem}.png")
    assert prepare("pascal_voc") == 0
    train = {d["image_id"]: np.unique(read_semantic(d)).tolist() for d in dataset_dicts("pascal_voc_train")}
    assert train == {"a": [0, 20, 255], "b": [14]}  # VOC's own label where there are two; no validation image


def test_the_lists_of_sbd_have_the_counts_of_the_release(data, monkeypatch, capsys):
    downloads.pascal_voc(data)
    monkeypatch.delenv("DEARLI_INCOMPLETE")
    module = script("prepare_pascal_voc")
    monkeypatch.setattr(module, "VOC_LISTS", {"train": 1, "val": 1})
    monkeypatch.setattr(module, "EXPECTED", {"train": 2, "val": 1})
    assert module.main([]) == 2
    assert "train.txt lists 2 images, that of the official release 8498" in capsys.readouterr().err
    monkeypatch.setattr(module, "SBD_LISTS", {"train": 2, "val": 1})
    assert module.main([]) == 0


def test_a_label_of_sbd_of_another_size_than_its_photograph_is_named(data, capsys):
    downloads.pascal_voc(data)
    path = data / "benchmark_RELEASE" / "dataset" / "cls" / "b.mat"
    savemat(path, {"GTcls": {"Segmentation": np.full((5, 8), 15, np.uint8)}})
    assert prepare("pascal_voc") == 2
    assert "b.jpg has 8 x 6 pixels, its label 8 x 5" in capsys.readouterr().err


def test_cityscapes_reads_train_ids_where_label_ids_are_missing(data, capsys):
    """UniMatch and SemiVL distribute *_gtFine_labelTrainIds.png alone."""
    root = downloads.cityscapes(data)
    assert prepare("cityscapes") == 0
    expected = read_semantic(dataset_dicts("cityscapes_train")[0])
    for split in ("train", "val"):
        labels = root / "gtFine" / split / "jena"
        train_ids = np.full((6, 12), 0, np.uint8)
        train_ids[0], train_ids[1], train_ids[2] = 18, 255, 13
        Image.fromarray(train_ids).save(labels / "jena_1_gtFine_labelTrainIds.png")
        (labels / "jena_1_gtFine_labelIds.png").unlink()
        (labels / "._jena_1_gtFine_labelIds.png").write_bytes(b"attributes")
        (root / "leftImg8bit" / split / "jena" / "._jena_1_leftImg8bit.png").write_bytes(b"attributes")
    assert prepare("cityscapes") == 0
    assert np.array_equal(read_semantic(dataset_dicts("cityscapes_train")[0]), expected)
    (labels / "jena_1_gtFine_labelTrainIds.png").rename(labels / "jena_1_gtFine_labelIds.png")
    assert prepare("cityscapes") == 2
    assert "are these train ids? they belong in a file *_gtFine_labelTrainIds.png" in capsys.readouterr().err
    (labels / "jena_1_gtFine_labelIds.png").unlink()
    assert prepare("cityscapes") == 2
    assert "1 of 1 images have no label" in capsys.readouterr().err


def test_coco_takes_labels_that_were_unpacked_before(data, capsys):
    root = downloads.coco_unpacked(data)
    assert prepare("coco") == 0
    (root / "panoptic_val2017" / "1.png").unlink()
    assert prepare("coco") == 2
    assert "panoptic_val2017 lacks 1 label files: 1.png" in capsys.readouterr().err


def test_coco_names_images_and_labels_that_are_damaged_or_of_another_size(data, capsys):
    root = downloads.coco(data)
    Image.new("RGB", (12, 11)).save(root / "val2017" / "0.jpg")
    (root / "val2017" / "1.jpg").write_bytes(b"half")
    assert prepare("coco", "val") == 2
    error = capsys.readouterr().err
    assert "2 images are damaged or of another size: 0.jpg is 12 x 11, not 12 x 10" in error
    assert "1.jpg cannot be read" in error
    archive = root / "annotations" / "panoptic_train2017.zip"
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as source:
        member = source.infolist()[0]
    content[member.header_offset + 30 + len(member.filename) + 20] ^= 255
    archive.write_bytes(content)
    assert prepare("coco", "train") == 2
    assert "panoptic_train2017: 1 of 2 files are damaged" in capsys.readouterr().err


def test_coco_objects_keep_crowds_and_images_without_objects(data):
    """1021 images of train2017 show no object; crowds stay crowds."""
    root = downloads.coco(data)
    assert prepare("coco") == 0
    path = root / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][2]["iscrowd"] = 1
    ids = np.full((10, 12), 300, np.int64)
    content["annotations"][1]["segments_info"] = [{**content["annotations"][1]["segments_info"][1], "area": 120}]
    path.write_text(json.dumps(content))
    save_png(root / "panoptic_train2017" / "1.png", ids_to_rgb(ids))
    assert prepare("coco_objects", "train") == 0
    first, second = dataset_dicts("coco_objects_train")
    assert {s["category_id"]: s["iscrowd"] for s in first["segments_info"]} == {80: 1, 0: 0}
    assert [(s["category_id"], s["area"]) for s in second["segments_info"]] == [(0, 120)]
    validate_dataset("coco_objects_train")


def test_more_frames_of_gta5_that_do_not_fit_than_the_release_has_are_refused(data, monkeypatch, capsys):
    downloads.gta5(data)
    monkeypatch.delenv("DEARLI_INCOMPLETE")
    module = script("prepare_gta5")
    monkeypatch.setattr(module, "IMAGES", 2)
    monkeypatch.setattr(module, "MISFITS", 0)
    assert module.main([]) == 2
    assert (
        "1 of 2 images are left out, of the official release 0 (--incomplete accepts it): 00002"
        in capsys.readouterr().err
    )


def test_a_label_of_synthia_that_unpacking_damaged_is_named(data, capsys):
    path = downloads.synthia(data) / "GT" / "LABELS" / "0000000.png"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]):
        path.write_bytes(broken)
        assert prepare("synthia") == 2
        error = capsys.readouterr().err
        assert "1 of 1 files are damaged" in error
        assert "0000000.png cannot be read" in error
        assert "some versions of unrar damage a few files" in error


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_names_downloads_with_size_page_and_licence(name, capsys):
    assert prepare(name, "--help") == 0
    text = capsys.readouterr().out
    assert "https://" in text or "http://" in text
    assert re.search(r"non-commercial|terms of Flickr|CC BY|research and education", text)
    assert re.search(r"\.(zip|tar|rar|tgz)|masks|folder CamVid", text)


def test_camvid_has_things_of_some_size_and_lists_spread_over_the_sequences(data, capsys):
    root = downloads.camvid(data)
    assert prepare("camvid") == 0
    assert "road 4, " in capsys.readouterr().out  # images that show a class
    d = dataset_dicts("camvid_train")[0]
    assert sorted((s["category_id"], s["area"]) for s in d["segments_info"]) == [(3, 600 - 30 - 64 - 9), (8, 64)]
    assert np.unique(read_semantic(d)[12:15, 20:23]).tolist() == [8]  # too small for a thing, but of its class
    assert (segment_ids(read_panoptic(d["pan_seg_file_name"]))[12:15, 20:23] == 0).all()
    assert [d["image_id"] for d in dataset_dicts("camvid_train@1_2")] == ["1", "3"]
    assert [d["image_id"] for d in dataset_dicts("camvid_train@1_2:unlabeled")] == ["0", "2"]
    assert np.array_equal(read_image(d["file_name"]), read_image(root / "train" / "0.png"))
    save_png(root / "valannot" / "0.png", np.full((20, 30), 12, np.uint8))
    assert prepare("camvid") == 2
    assert "class 12 is not in 0..10, and not 11 (none)" in capsys.readouterr().err


def test_camvid_lists_are_those_of_the_results(tmp_path):
    """Those of docs/results: 184, 92, 46, 23 and 11 of 367 images, the middle one of each stretch."""
    stems = [f"{number:03d}" for number in range(367)]
    script("prepare_camvid").write_lists(tmp_path, stems)
    for part, count in PUBLISHED["camvid_train"].labeled.items():
        labeled = (tmp_path / part / "labeled.txt").read_text().split()
        assert len(labeled) == count
        assert sorted(labeled + (tmp_path / part / "unlabeled.txt").read_text().split()) == stems
    assert labeled[:4] == {"1_32": ["016", "050", "083", "116"], "1_2": ["000", "002", "004", "006"]}[part]
