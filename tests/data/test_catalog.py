"""Views of data sets: partitions by list and by fraction, without leaks."""

from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dearli_d2.data import partitions
from dearli_d2.data.catalog import dataset_dicts, ensure_registered, split_name, taxonomy_of
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.data.validation import validate_dataset
from dearli_d2.errors import ConfigError, DatasetError


def stems(name):
    return [d["image_id"] for d in dataset_dicts(name)]


def test_fraction_and_rest_are_a_partition():
    labeled, rest = stems("miniworld_train@0.1"), stems("miniworld_train@0.1:unlabeled")
    assert len(labeled) == 100
    assert sorted(labeled + rest) == sorted(stems("miniworld_train"))
    assert not set(labeled) & set(rest)


def test_fractions_of_one_seed_are_nested_and_seeds_differ():
    assert set(stems("miniworld_train@0.05")) < set(stems("miniworld_train@0.1"))
    assert stems("miniworld_train@0.05~1") != stems("miniworld_train@0.05")
    assert stems("miniworld_train@0.05~1") == stems("miniworld_train@0.05~1")


def test_numbers_of_images_are_drawn_as_fractions_are():
    assert stems("miniworld_train@n50") == stems("miniworld_train@0.05")
    assert stems("miniworld_train@n50~3") == stems("miniworld_train@0.05~3")
    assert len(stems("miniworld_train@n50:unlabeled")) == 950
    for part in ("n0", "n1001"):
        with pytest.raises(DatasetError, match="images of a data set that has 1000"):
            stems(f"miniworld_train@{part}")


def test_unlabelled_images_carry_no_annotation():
    for d in dataset_dicts("miniworld_train@0.5:unlabeled"):
        assert set(d) == {"file_name", "image_id", "height", "width"}
    assert str(validate_dataset("miniworld_train@0.5:unlabeled")).endswith("500 images, unlabelled")


def test_list_file_with_paths_and_more_columns(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("some/where/000003.jpg annotations/000003.png\n\n000001\n")
    assert stems(f"miniworld_train@{path}") == ["000003", "000001"]
    assert len(stems(f"miniworld_train@{path}:unlabeled")) == 998


def test_detectron2_catalogs_know_views():
    ensure_registered("miniworld_val@0.5")
    assert len(DatasetCatalog.get("miniworld_val@0.5")) == 50
    assert MetadataCatalog.get("miniworld_val@0.5").stuff_classes[0] == "striped red"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("miniworl_train", "there is no data set 'miniworl_train'; known: "),
        ("miniworld_train@", "write NAME, NAME@PART"),
        ("miniworld_train@0.1:labeled", "write NAME, NAME@PART"),
        ("miniworld_train@1_8", "no partition folder"),
        ("miniworld_train@lists/none.txt", "no list file lists/none.txt"),
        ("miniworld_train@1.5", "not in \\(0, 1\\]"),
    ],
)
def test_bad_names_say_what_is_wrong(name, words):
    with pytest.raises(DatasetError, match=words):
        dataset_dicts(name)


def test_list_with_strangers_or_twice_the_same(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("000001\n999999\n888888\n")
    with pytest.raises(DatasetError, match="2 of 3 images .* are not in the data set: 999999, 888888"):
        dataset_dicts(f"miniworld_train@{path}")
    path.write_text("000001\n000001\n")
    with pytest.raises(DatasetError, match="lists an image twice"):
        dataset_dicts(f"miniworld_train@{path}")
    path.write_text("\n")
    with pytest.raises(DatasetError, match="lists no image"):
        dataset_dicts(f"miniworld_train@{path}")


def test_view_names_split():
    assert split_name("camvid_train@1_8:unlabeled") == ("camvid_train", "1_8", True)
    assert split_name("camvid_train") == ("camvid_train", None, False)


@pytest.mark.parametrize(("part", "count"), [("1_2", 184), ("1_16", 23), ("1_32", 11)])
def test_camvid_partitions(shared, monkeypatch, part, count):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared))
    labeled, rest = stems(f"camvid_train@{part}"), stems(f"camvid_train@{part}:unlabeled")
    assert len(labeled) == count
    assert len(labeled) + len(rest) == 367
    assert not set(labeled) & set(rest)


@pytest.mark.parametrize(
    ("part", "count"), [("1_128", 158), ("1_64", 316), ("1_32", 631), ("1_16", 1263), ("1_8", 2526)]
)
def test_published_ade20k_lists_have_the_papers_sizes(shared, part, count, tmp_path, monkeypatch):
    """The published lists (two columns of paths) read as partitions of a data set that holds their images."""
    import json

    from dearli_d2.data.catalog import PanopticSource, register

    every = {
        line.split()[0]
        for kind in ("labeled", "unlabeled")
        for file in shared.glob(f"partitions/ade20k/{part}/{kind}.txt")
        for line in file.read_text().splitlines()
    }
    every |= {line.split()[0] for line in (shared / "partitions/ade20k/1_8/labeled.txt").read_text().splitlines()}
    images = [{"id": i, "file_name": name, "height": 1, "width": 1} for i, name in enumerate(sorted(every))]
    annotations = [{"image_id": x["id"], "file_name": f"{x['id']}.png", "segments_info": []} for x in images]
    path = tmp_path / "p.json"
    path.write_text(
        json.dumps(
            {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "wall", "isthing": 0}]}
        )
    )
    register("ade_lists", PanopticSource(tmp_path, path, tmp_path, partition_root=shared / "partitions" / "ade20k"))
    assert len(dataset_dicts(f"ade_lists@{part}")) == count


def test_taxonomy_survives_json_and_free_text():
    taxonomy = taxonomy_of("miniworld_val")
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy
    free = Taxonomy.from_text("cat|kitten, dog,, green grass ")
    assert free.names == (("cat", "kitten"), ("dog",), ("green grass",))
    with pytest.raises(ConfigError, match="no class name"):
        Taxonomy.from_text(" , ")
    for text, name in (("cat, dog, Cat", "cat"), ("cat|animal, dog|animal", "animal")):
        with pytest.raises(ConfigError, match=f"two classes have the name '{name}'"):
            Taxonomy.from_text(text)
    assert Taxonomy.from_text("cat|cat").names == (("cat", "cat"),)


def test_lists_of_other_authors_are_known(tmp_path, caplog):
    """SemiVL and DEARLi label 632 images of ADE20K's 1_32, UniMatch V2 631; UniMatch's quarter of Pascal VOC has 2646."""
    for dataset, part, count, warned in (
        ("ade20k_panoptic_train", "1_32", 631, False),
        ("ade20k_panoptic_train", "1_32", 632, False),
        ("ade20k_panoptic_train", "1_32", 633, True),
        ("pascal_voc_train", "u2pl_2645", 2646, False),
    ):
        caplog.clear()
        partitions._compare_with_published(dataset, part, tmp_path, count)
        assert bool(caplog.records) == warned
