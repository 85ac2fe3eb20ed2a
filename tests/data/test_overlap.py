"""No image is in the evaluation and in the training without a word, and none twice in one place."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from dearli_d2.data.catalog import ImageFolder, dataset_dicts, register
from dearli_d2.data.overlap import check_overlap, check_roles
from dearli_d2.errors import DatasetError

LIST = "000001\n000002\n000003\n"


def data(mini_config, train=(), unlabeled=(), test=(), *options):
    return mini_config(
        "DATASETS.TRAIN", str(tuple(train)), "DATASETS.UNLABELED", str(tuple(unlabeled)), "DATASETS.TEST", str(tuple(test)),
        *options, file="dear.yaml",
    )  # fmt: skip


DISJOINT = ["miniworld_train@0.05"], ["miniworld_train@0.05:unlabeled"], ["miniworld_val"]


def test_disjoint_parts_pass_without_a_word(mini_config, caplog):
    cfg = data(mini_config, *DISJOINT)
    check_roles(cfg)
    with caplog.at_level(logging.INFO):
        check_overlap(cfg)
    assert "labelled images" not in caplog.text


@pytest.mark.parametrize(
    ("train", "unlabeled", "test", "words"),
    [
        (["miniworld_train@0.05"], [], ["miniworld_train@0.1"], r"50 of 100 images of DATASETS.TEST .* also in DATASETS.TRAIN"),
        (["miniworld_train@0.05"], ["miniworld_train@0.05:unlabeled"], ["miniworld_train@0.05~1"], r"also in DATASETS.TRAIN"),
        (["miniworld_train@0.05"], ["miniworld_train"], ["miniworld_train@n7~9"], r"7 of 7 images .* in DATASETS.UNLABELED|in DATASETS.TRAIN"),
        (["miniworld_train@0.05", "miniworld_train@0.1"], [], ["miniworld_val"], r"DATASETS.TRAIN .*: 50 images are in it twice"),
        (["miniworld_train@0.05"], ["miniworld_train@0.5", "miniworld_train@0.5~1"], [], r"DATASETS.UNLABELED .* images are in it twice"),
        (["miniworld_train@{list}"], [], ["miniworld_train@{list}", "miniworld_train@0.5"], r"are in it twice"),
    ],
)  # fmt: skip
def test_overlapping_parts_are_refused(mini_config, tmp_path, train, unlabeled, test, words):
    (tmp_path / "list.txt").write_text(LIST)
    train, unlabeled, test = (
        [n.format(list=tmp_path / "list.txt") for n in names] for names in (train, unlabeled, test)
    )
    with pytest.raises(DatasetError, match=words):
        check_overlap(data(mini_config, train, unlabeled, test))


def test_an_evaluation_of_training_images_can_be_asked_for(mini_config, caplog):
    check_overlap(
        data(mini_config, ["miniworld_train@0.05"], [], ["miniworld_train@0.1"], "DATASETS.ALLOW_OVERLAP", "True")
    )
    check_overlap(data(mini_config, ["miniworld_train@0.05"], [], ["miniworld_train@0.05"]))
    assert "both name miniworld_train@0.05: scores are those of training images" in caplog.text


def test_another_evaluation_beside_one_that_was_asked_for_is_still_checked(mini_config):
    with pytest.raises(DatasetError, match=r"50 of 100 images of DATASETS.TEST"):
        check_overlap(
            data(
                mini_config,
                ["miniworld_train@0.05", "miniworld_val@0.5"],
                [],
                ["miniworld_train@0.05", "miniworld_val"],
            )
        )


def test_labelled_images_among_the_unlabelled_ones_are_a_warning(mini_config, caplog):
    check_overlap(data(mini_config, ["miniworld_train@0.05~1"], ["miniworld_train@0.05:unlabeled"], ["miniworld_val"]))
    found = [r for r in caplog.records if "are also among the unlabelled ones" in r.getMessage()]
    assert found[0].levelno == logging.WARNING
    caplog.clear()
    check_overlap(data(mini_config, ["miniworld_train@0.05"], ["miniworld_train"], ["miniworld_val"]))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]  # the whole set, as published runs have it


@pytest.mark.parametrize("link", [False, True])
def test_copies_and_links_among_own_images_are_found(mini_config, tmp_path, link):
    folder = tmp_path / "mine"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * index, np.uint8)).save(folder / f"{index}.png")
    register("folder_for_overlap", ImageFolder(folder))
    names = ["miniworld_train@0.05"], ["folder_for_overlap"], ["miniworld_val"]
    check_overlap(data(mini_config, *names))
    source = dataset_dicts("miniworld_val")[7]["file_name"]
    (folder / "copy.jpg").symlink_to(source) if link else shutil.copy(source, folder / "copy.jpg")
    register("another_for_overlap", ImageFolder(folder / "."))
    other = tmp_path / "other"
    shutil.copytree(folder, other, symlinks=True)
    register("another_for_overlap", ImageFolder(other))
    with pytest.raises(DatasetError, match=r"1 of 100 images of DATASETS.TEST .*: .*000007.jpg = .*other/copy.jpg"):
        check_overlap(data(mini_config, names[0], ["another_for_overlap"], names[2]))


@pytest.mark.parametrize(
    ("key", "names", "words"),
    [
        ("TRAIN", ["miniworld_train@0.1:unlabeled"], "DATASETS.TRAIN: miniworld_train@0.1:unlabeled has no labels"),
        ("TEST", ["miniworld_val@0.1:unlabeled"], "DATASETS.TEST: miniworld_val@0.1:unlabeled has no labels"),
        ("TEST", ["roles_folder"], "DATASETS.TEST: roles_folder has no labels"),
        ("TRAIN", ["miniworld_train", "miniworld_train"], "DATASETS.TRAIN names miniworld_train twice"),
        ("UNLABELED", ["roles_folder", "roles_folder"], "DATASETS.UNLABELED names roles_folder twice"),
    ],
)
def test_what_has_no_labels_cannot_teach_or_be_scored(mini_config, tmp_path, key, names, words):
    register("roles_folder", ImageFolder(tmp_path))
    roles = {"TRAIN": ["miniworld_train@0.05"], "UNLABELED": [], "TEST": [], key: names}
    with pytest.raises(DatasetError, match=words):
        check_roles(data(mini_config, roles["TRAIN"], roles["UNLABELED"], roles["TEST"]))
