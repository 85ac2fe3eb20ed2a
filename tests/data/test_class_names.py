"""Names of public classes: complete against the published lists, in plain words, without overlap; and files of names by id."""

from __future__ import annotations

import logging
import re
from collections import Counter

import pytest
from detectron2.data.datasets import builtin_meta

from dearli_d2.data.class_names import class_table, find_class
from dearli_d2.data.taxonomy import Taxonomy, read_class_names
from dearli_d2.errors import ConfigError

SIZES = {"ade20k": 150, "coco_panoptic": 133, "coco_objects": 81, "coco_stuff": 171, "cityscapes": 19, "pascal_voc": 21}
COCO_THINGS = {c["id"]: c["name"] for c in builtin_meta.COCO_CATEGORIES if c["isthing"]}
# published: ids 92..182 of COCO-Stuff
COCO_STUFF = """banner blanket branch bridge building-other bush cabinet cage cardboard carpet ceiling-other ceiling-tile
cloth clothes clouds counter cupboard curtain desk-stuff dirt door-stuff fence floor-marble floor-other floor-stone floor-tile
floor-wood flower fog food-other fruit furniture-other grass gravel ground-other hill house leaves light mat metal mirror-stuff
moss mountain mud napkin net paper pavement pillow plant-other plastic platform playingfield railing railroad river road rock
roof rug salad sand sea shelf sky-other skyscraper snow solid-other stairs stone straw structural-other table tent
textile-other towel tree vegetable wall-brick wall-concrete wall-other wall-panel wall-stone wall-tile wall-wood water-other
waterdrops window-blind window-other wood"""
VOC = """background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant
sheep sofa train tvmonitor"""
CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
OFFICIAL = {
    "ade20k": dict(enumerate(name.strip() for name in builtin_meta.ADE20K_SEM_SEG_CATEGORIES)),
    "coco_panoptic": {c["id"]: c["name"] for c in builtin_meta.COCO_CATEGORIES},
    "coco_objects": {0: "background", **COCO_THINGS},
    "coco_stuff": {**COCO_THINGS, **dict(enumerate(COCO_STUFF.split(), start=92))},
    "cityscapes": dict(enumerate(CITYSCAPES)),
    "pascal_voc": dict(enumerate(VOC.split())),
}


def taxonomy(dataset):
    return Taxonomy.from_categories([{"id": i, "name": name} for i, name in OFFICIAL[dataset].items()], dataset)


@pytest.mark.parametrize("dataset", SIZES)
def test_every_official_id_and_name_is_one_entry(dataset):
    assert len(OFFICIAL[dataset]) == SIZES[dataset]
    assert [entry.id for entry in class_table(dataset)] == sorted(OFFICIAL[dataset])
    for identifier, name in OFFICIAL[dataset].items():
        assert find_class(dataset, name).id == identifier, name
    every = Counter(name for entry in class_table(dataset) for name in {*entry.official, entry.names[0]})
    assert max(every.values()) == 1


@pytest.mark.parametrize("dataset", SIZES)
def test_names_are_plain_words_and_belong_to_one_class(dataset):
    names = taxonomy(dataset).names
    raw = [n for of_class in names for n in of_class if not re.fullmatch(r"[a-z]+(-[a-z]+)?( [a-z]+(-[a-z]+)?)*", n)]
    assert not raw
    suffix = [n for of_class in names for n in of_class if re.search(r"-(merged|other|stuff)|^(wall|floor|window)-", n)]
    assert not suffix
    assert [n for n, count in Counter(n for of_class in names for n in of_class).items() if count > 1] == []
    assert taxonomy(dataset).text_names == names  # there is nothing left to clean


@pytest.mark.parametrize(
    ("dataset", "official", "name"),
    [
        ("coco_panoptic", "rug-merged", "rug"), ("coco_panoptic", "wall-other-merged", "wall"),
        ("coco_panoptic", "door-stuff", "door"), ("coco_panoptic", "floor-wood", "wood floor"),
        ("coco_stuff", "wall-concrete", "concrete wall"), ("coco_stuff", "solid-other", "solid object"),
        ("ade20k", "case, display case, showcase, vitrine", "display case"), ("ade20k", "windowpane, window", "window"),
        ("ade20k", "ashcan, trash can, garbage can", "trash can"), ("ade20k", "hood, exhaust hood", "exhaust hood"),
        ("pascal_voc", "tvmonitor", "tv monitor"), ("pascal_voc", "dining table", "dining table"),
    ],
)  # fmt: skip
def test_published_names_become_words(dataset, official, name):
    assert find_class(dataset, official).names[0] == name


def test_objectinfo_and_mask2former_lists_of_ade20k_name_the_same_classes():
    """The first names of objectInfo150.txt where they differ from the list that detectron2 has."""
    differ = {
        8: "windowpane", 37: "bathtub", 38: "railing", 87: "streetlight", 89: "television receiver", 90: "airplane",
        92: "apparel", 109: "swimming pool", 113: "waterfall", 138: "ashcan",
    }  # fmt: skip
    for identifier, name in differ.items():
        assert find_class("ade20k", name).id == identifier
        assert find_class("ade20k", OFFICIAL["ade20k"][identifier]).id == identifier


def test_background_of_coco_objects_is_called_background_only():
    assert taxonomy("coco_objects").names[0] == ("background",)


def test_categories_that_a_data_set_does_not_know_keep_their_names_and_the_log_says_so(caplog):
    categories = [{"id": 1, "name": "person"}, {"id": 7, "name": "spaceship", "synonyms": ["ufo"]}]
    with caplog.at_level(logging.WARNING):
        names = Taxonomy.from_categories(categories, "coco_panoptic").names
    assert (names[0][:2], names[1]) == (("person", "people"), ("spaceship", "ufo"))
    assert "1 categories are not classes of coco_panoptic: spaceship" in caplog.text


def test_files_of_an_older_preparation_are_noticed_by_their_ids(caplog):
    """COCO-Objects once had its background last, with id 201, and left void out of it."""
    categories = [{"id": 1, "name": "person"}, {"id": 201, "name": "background", "synonyms": ["wall", "food"]}]
    with caplog.at_level(logging.WARNING):
        Taxonomy.from_categories(categories, "coco_objects")
    assert "1 categories have other ids than in coco_objects: background has 201, not 0" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for dataset in SIZES:
            taxonomy(dataset)
    assert not caplog.text


def own(*names):
    return Taxonomy.from_categories([{"id": i, "name": name} for i, name in enumerate(names)])


def test_names_of_own_data_are_read_in_plain_words_where_that_is_safe():
    data = own("traffic_light", "rug-merged", "T-shirt", "hood, exhaust hood", "door, entrance", "gate, entrance")
    assert data.main_names[:2] == ["traffic_light", "rug-merged"]  # tables and files speak of the user's names
    assert data.text_names == (
        ("traffic light",), ("rug",), ("T-shirt",), ("hood", "exhaust hood"), ("door",), ("gate",),
    )  # fmt: skip
    assert data.main_text_names == [names[0] for names in data.text_names]
    assert own("wall", "wall-other").text_names == (("wall",), ("wall-other",))  # else two classes were the same
    assert own("-other").text_names == (("-other",),)


# --------------------------------------------------------------------------------------- MODEL.TEXT.CLASS_NAMES


@pytest.mark.parametrize(
    ("file", "dataset"),
    [("ade20k_150", "ade20k"), ("coco_panoptic", "coco_panoptic"), ("coco_objects", "coco_objects")],
)
def test_published_files_go_to_the_classes_of_their_ids(shared, file, dataset):
    path = shared / "class_names" / f"{file}.txt"
    before = taxonomy(dataset)
    after = before.with_names_of(path)
    listed = read_class_names(path)
    one_higher = dataset == "ade20k"
    assert [listed[i + one_higher] for i in before.dataset_ids] == list(after.names)
    same = sum(bool(set(a) & set(b)) for a, b in zip(before.names, after.names, strict=True))
    assert same > 0.95 * len(before)
    assert (after.dataset_ids, after.thing_ids, after.colors) == (before.dataset_ids, before.thing_ids, before.colors)


def test_the_order_of_classes_does_not_matter(tmp_path):
    """Background last in the data set, first in the file: by position all classes would be renamed."""
    things = [{"id": i, "name": name} for i, name in COCO_THINGS.items()]
    data = Taxonomy.from_categories([*things, {"id": 0, "name": "background", "isthing": 0}], "coco_objects")
    lines = ["0:background", *(f"{i}:{name},a {name}" for i, name in sorted(COCO_THINGS.items(), reverse=True))]
    (tmp_path / "names.txt").write_text("\n".join([*lines, "12:invalid_class_id"]))
    renamed = data.with_names_of(tmp_path / "names.txt")
    assert renamed.names[0] == ("person", "a person")
    assert renamed.names[-1] == ("background",)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_ids_may_count_from_one_lower_or_higher_if_the_names_agree(tmp_path, start):
    data = Taxonomy.from_categories([{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "sky"), start=1)])
    path = tmp_path / "names.txt"
    path.write_text("\n".join(f"{start + i}:{name}s,{name}" for i, name in enumerate(("cat", "dog", "sky"))))
    assert data.with_names_of(path).names == (("cats", "cat"), ("dogs", "dog"), ("skys", "sky"))
    path.write_text("\n".join(f"{start + i}:{name}" for i, name in enumerate(("tom", "rex", "sky"))))
    if start == 1:  # one name in common is enough where the ids are those of the data set
        assert data.with_names_of(path).main_names == ["tom", "rex", "sky"]
    else:
        with pytest.raises(ConfigError, match="the ids fit, the names do not: 1 of 3"):
            data.with_names_of(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0:cat\n1:dog", r"1 classes have no line: 2 \(sky\); it needs one line for each of the 3 classes.*0:cat"),
        ("0:cat\n1:dog\n2:sky\n3:sea\n9:sun", r"2 lines are of no class: 3 \(sea\), 9 \(sun\)"),
        ("0:cat\n1:dog\n7:sky", r"1 classes have no line: 2 \(sky\) and 1 lines are of no class: 7 \(sky\)"),
        ("0:invalid_class_id\n1:dog\n2:sky", r"1 classes have no line: 0 \(cat\)"),
        ("0:a\n1:b\n2:c", r"the names do not: 0 of 3 .*'a' for 'cat' \(id 0\).*another data set"),
        ("0:dog\n1:sky\n2:cat", r"the names do not: 0 of 3 .*'dog' for 'cat' \(id 0\)"),
        ("0:dog\n1:cat\n2:sky", r"the names do not: 1 of 3 .*'dog' for 'cat' \(id 0\)"),
        ("zero:cat", r"names.txt:1: expected 'id:name,synonym,...', found 'zero:cat'"),
        ("-1:cat", "names.txt:1: expected"),
        ("0:cat\n00:dog", "names.txt:2: id 0 stands twice"),
        ("0:invalid_class_id", "no class name"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, text, words):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        own("cat", "dog", "sky").with_names_of(path)


def test_a_single_exchange_among_many_is_a_warning(tmp_path, caplog):
    path = tmp_path / "names.txt"
    path.write_text("0:cat\n1:dog\n2:sea\n3:sun\n4:dog house,sky\n")
    with caplog.at_level(logging.WARNING):
        own("cat", "dog", "sea", "sun", "sky").with_names_of(path)
    assert not caplog.text
    path.write_text("0:cat\n1:dog\n2:sea\n3:sun\n4:dog\n")
    with caplog.at_level(logging.WARNING):
        own("cat", "dog", "sea", "sun", "sky").with_names_of(path)
    assert "'dog' for 'sky' (id 4); is that meant?" in caplog.text


def test_one_class_may_have_any_name_and_a_byte_order_mark_is_no_part_of_it(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeff0:segment,object\n", encoding="utf-8")
    assert own("thing").with_names_of(path).names == (("segment", "object"),)
    path.write_bytes("0:größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="names.txt is no text in UTF-8"):
        own("thing").with_names_of(path)
