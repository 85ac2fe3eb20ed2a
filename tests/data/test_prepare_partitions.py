"""`dearli prepare partitions` on made-up checkouts in the layouts of the authors' repositories."""

from __future__ import annotations

import re

import pytest

from dearli_d2.cli import main
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.partitions import PUBLISHED
from dearli_d2.errors import DatasetError
from tests.data import downloads
from tests.data.test_preparation import script

# repository: folder of a part there, its form of a line, its labelled images, the same part here, images of the data set
LAYOUTS = {
    "UniMatch-V2": ("splits/ade20k/1_128", "images/training/{}.jpg annotations/training/{}.png", 158, "ade20k/1_128", 20210),
    "semivl": ("splits/ade/1_32", "images/training/{}.jpg annotations/training/{}.png", 632, "ade20k/1_32", 20210),
    "DEARLi": ("datasets/ade_splits/1_64", "images/training/{}.jpg annotations/training/{}.png", 316, "ade20k/1_64", 20210),
    "DEARLi, COCO": ("datasets/coco_splits/1_512", "train2017/{}.jpg masks/{}.png", 232, "coco/1_512", 118287),
    "UniMatch": ("splits/pascal/1_16", "JPEGImages/{}.jpg SegmentationClass/{}.png", 662, "pascal/aug_662", 10582),
    "UniMatch, U2PL": ("splits/pascal/u2pl_1_4", "JPEGImages/{}.jpg SegmentationClass/{}.png", 2646, "pascal/u2pl_2645", 10582),
    "UniMatch, cities": (
        "splits/cityscapes/1_16", "leftImg8bit/train/jena/{}_leftImg8bit.png gtFine/train/jena/{}_gtFine_labelTrainIds.png", 186,
        "cityscapes/1_16", 2975,
    ),
}  # fmt: skip


def write(folder, line, first, last):
    folder.mkdir(parents=True, exist_ok=True)
    names = [line.replace("{}", f"x{number}") for number in range(first, last)]
    (folder / ("unlabeled.txt" if first else "labeled.txt")).write_text("\n".join(names))


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data"


def prepare(*words):
    return main(["prepare", "partitions", *map(str, words)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lists_of_a_checkout_reach_their_place(layout, data, tmp_path, capsys):
    theirs, line, labeled, ours, images = LAYOUTS[layout]
    checkout = tmp_path / "checkout"
    write(checkout / theirs, line, 0, labeled)
    write(checkout / theirs, line, labeled, images)
    write(checkout / theirs / "../all", line, 0, images)  # no partition
    for folder in (checkout, (checkout / theirs).parents[1]):
        assert prepare(folder) == 0
        for file in ("labeled.txt", "unlabeled.txt"):
            assert (data / "partitions" / ours / file).read_bytes() == (checkout / theirs / file).read_bytes()
    assert sorted(p.name for p in (data / "partitions").glob("*/*")) == [ours.partition("/")[2]]
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{ours}: {labeled} labelled images, copied (warning: none of the known lists; was it edited?)"
    assert second == f"{ours}: {labeled} labelled images, is there already"
    assert prepare() == 0


def test_a_known_list_is_named_and_another_one_stays(data, tmp_path, monkeypatch, capsys):
    theirs, line, labeled, ours, _ = LAYOUTS["semivl"]
    write(tmp_path / "semivl" / theirs, line, 0, labeled)
    write(tmp_path / "UniMatch-V2" / "splits/ade20k/1_32", line, 0, 631)
    module = script("prepare_partitions")
    lists = module.find(tmp_path / "semivl")
    monkeypatch.setitem(module.KNOWN, ours, {lists[0].digest(): "SemiVL"})
    assert module.main([str(tmp_path / "semivl")]) == 0
    assert module.main([str(tmp_path / "UniMatch-V2")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("copied (SemiVL)")
    assert re.search(r"warning: another list stays there \(SemiVL\); delete \S+ade20k/1_32 to get this one", second)
    assert len((data / "partitions" / ours / "labeled.txt").read_text().splitlines()) == 632


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "problem"),
    [
        (157, None, r"labeled.txt has 157 images, the published list 158"),
        (158, (157, 20210), r"1_128: 1 images are listed twice"),
        (158, (158, 20000), r"1_128 lists 20000 images, the data set has 20210"),
    ],
)
def test_lists_that_are_not_as_published_are_refused(labeled, unlabeled, problem, data, tmp_path, capsys):
    theirs, line, *_ = LAYOUTS["UniMatch-V2"]
    write(tmp_path / theirs, line, 0, labeled)
    if unlabeled:
        write(tmp_path / theirs, line, *unlabeled)
    assert prepare(tmp_path) == 2
    assert re.search(rf"1 of 1 partitions are not as published: \S*{problem}", capsys.readouterr().err)
    assert not data.exists()


def test_a_folder_without_lists_and_a_missing_list_say_what_to_do(data, tmp_path, capsys):
    assert prepare(tmp_path) == 2
    assert "clone one of the repositories that dearli prepare partitions --help names" in capsys.readouterr().err
    downloads.pascal_voc(data)
    assert main(["prepare", "pascal_voc"]) == 0
    with pytest.raises(
        DatasetError, match=r"no list file \S+pascal/92/labeled.txt; dearli prepare partitions FOLDER copies it"
    ):
        dataset_dicts("pascal_voc_train@92")


def test_every_published_partition_has_a_known_list_and_no_other(repo):
    module = script("prepare_partitions")
    expected = {
        f"{folder}/{part}" for folder, (dataset, _) in module.BENCHMARKS.items() for part in PUBLISHED[dataset].labeled
    }
    assert set(module.KNOWN) == expected
