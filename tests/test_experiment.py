"""The line of an experiment: its partition fills names, its epochs become iterations, its output folder follows."""

from __future__ import annotations

import logging

import pytest

from dearli_d2.config import get_config
from dearli_d2.data.catalog import PanopticSource, dataset_dicts, register
from dearli_d2.data.panoptic_json import read_panoptic_json
from dearli_d2.data.partitions import PUBLISHED
from dearli_d2.errors import ConfigError
from tests.conftest import REPO

WORLD = REPO / "configs" / "miniworld"


@pytest.fixture
def config(tmp_path):
    """config(lines, *overrides, base=...): a config file of these lines on top of one of miniworld."""

    def make(lines: str, *overrides: str, base: str = "ssl.yaml"):
        path = tmp_path / "mine.yaml"
        path.write_text(f"_BASE_: {WORLD / base}\n{lines}")
        return get_config(path, ["MODEL.DEVICE", "cpu", *overrides])

    return make


def data(name: str = "ade20k_panoptic_train", part: str = "1_8", unlabeled: bool = True) -> str:
    """YAML lines that name a data set's part and its rest."""
    lines = f'DATASETS:\n  TRAIN: ("{name}@PARTITION",)\n  PARTITION: "{part}"\n'
    return lines + (f'  UNLABELED: ("{name}@PARTITION:unlabeled",)\n' if unlabeled else "  UNLABELED: ()\n")


@pytest.mark.parametrize("part", ["1_128", "1_8", "0.05", "n100~3", "lists/mine.txt"])
def test_the_partition_fills_the_names_of_labelled_and_unlabelled_data(config, part):
    cfg = config(data(), "DATASETS.PARTITION", part)
    assert (f"ade20k_panoptic_train@{part}",) == cfg.DATASETS.TRAIN
    assert (f"ade20k_panoptic_train@{part}:unlabeled",) == cfg.DATASETS.UNLABELED
    assert cfg.DATASETS.PARTITION == ""  # the names have it now


def test_the_partition_of_the_file_is_the_default(config):
    assert config(data()).DATASETS.TRAIN == ("ade20k_panoptic_train@1_8",)


def test_names_without_the_word_stay_and_every_data_set_with_the_word_gets_the_partition(config):
    both = "('miniworld_train@PARTITION', 'miniworld_night_train@PARTITION', 'miniworld_val')"
    cfg = config(
        "",
        "DATASETS.TRAIN",
        both,
        "DATASETS.PARTITION",
        "0.1",
        "DATASETS.UNLABELED",
        "('miniworld_train@0.05:unlabeled',)",
    )
    assert cfg.DATASETS.TRAIN == ("miniworld_train@0.1", "miniworld_night_train@0.1", "miniworld_val")
    assert cfg.DATASETS.UNLABELED == ("miniworld_train@0.05:unlabeled",)


def test_all_labels_and_none(config):
    source = ("DATASETS.SOURCE", "('miniworld_night_train',)")
    cfg = config(data(), "DATASETS.PARTITION", "all")
    assert cfg.DATASETS.TRAIN == cfg.DATASETS.UNLABELED == ("ade20k_panoptic_train",)
    cfg = config(data(), "DATASETS.PARTITION", "n0", *source)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED) == ((), ("ade20k_panoptic_train",))
    with pytest.raises(ConfigError, match=r"PARTITION n0 leaves no labelled image; without DATASETS\.SOURCE"):
        config(data(), "DATASETS.PARTITION", "n0")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["1_7"], r"PARTITION is '1_7'; the partitions of ade20k_panoptic_train are 1_128 \(158 labelled images\), 1_64 \(316"),
        (["92"], r"PARTITION is '92'; the partitions of ade20k.*; also allowed: a fraction \(0\.05\)"),
        ([""], r"PARTITION is missing; DATASETS\.TRAIN ade20k_panoptic_train@PARTITION needs it; the partitions of .* 1_8"),
        (["n30000"], r"PARTITION: ade20k_panoptic_train@n30000: 30000 images of a data set that has 20210"),
        (["1.5"], r"PARTITION: ade20k_panoptic_train@1\.5: the fraction 1\.5 is not in"),
        (["1_8", "DATASETS.TRAIN", "('miniworld_train@PARTITION',)"], "PARTITION is '1_8'; miniworld_train has no published partition"),
        (["1_8", "DATASETS.TRAIN", "('miniworld_trane@PARTITION',)"], "PARTITION is '1_8'; miniworld_trane has no published partition"),
        (["1_8", "DATASETS.TRAIN", "('a',)", "DATASETS.UNLABELED", "()"], r"PARTITION is '1_8', but no name .* has @PARTITION"),
    ],
)  # fmt: skip
def test_a_wrong_partition_is_refused_with_those_that_exist(config, overrides, words):
    with pytest.raises(ConfigError, match=words):
        config(data(), "DATASETS.PARTITION", *overrides)


def test_a_partition_without_effect_is_refused_also_in_a_file(config):
    lines = 'DATASETS:\n  TRAIN: ("miniworld_train@0.1",)\n  UNLABELED: ()\n  PARTITION: "0.2"\n'
    with pytest.raises(
        ConfigError, match=r"'0\.2', but no name in DATASETS\.TRAIN, SOURCE or UNLABELED has @PARTITION"
    ):
        config(lines)
    # other data, on the command line or in a file on top, leave the partition of an earlier file behind
    assert (
        config("DATASETS:\n  TRAIN: ('miniworld_train@0.1',)\n", base="../camvid/labels.yaml").DATASETS.PARTITION == ""
    )
    assert config(lines, "DATASETS.TRAIN", "('miniworld_train@0.3',)").DATASETS.TRAIN == ("miniworld_train@0.3",)


def test_a_number_in_yaml_is_no_partition(config):
    with pytest.raises(
        ConfigError, match=r"PARTITION is 18; it must be a text; in a YAML file in quotes, such as '1_8'"
    ):
        config(data().replace('"1_8"', "1_8"))


def test_a_folder_of_lists_that_is_not_published_is_a_partition_too(config, tmp_path, caplog):
    source = PUBLISHED["camvid_train"]
    folder = tmp_path / "partitions" / "ours"
    folder.mkdir(parents=True)
    (folder / "labeled.txt").write_text("000001\n")
    register("camvid_like", PanopticSource(tmp_path, tmp_path / "a.json", tmp_path, partition_root=folder.parent))
    assert config(data("camvid_like", "ours")).DATASETS.TRAIN == ("camvid_like@ours",)
    assert "ours" not in source.labeled


def test_another_number_of_labels_than_published_is_a_warning(monkeypatch, tmp_path, caplog):
    from dearli_d2.data.catalog import source_of

    world = source_of("miniworld_val")
    folder = tmp_path / "1_8"
    folder.mkdir()
    names = [i["file_name"] for i in read_panoptic_json(world.panoptic_json)["images"]]
    (folder / "labeled.txt").write_text("\n".join(names[:3]))
    register(
        "few_lists", PanopticSource(world.image_root, world.panoptic_json, world.panoptic_root, partition_root=tmp_path)
    )
    monkeypatch.setitem(PUBLISHED, "few_lists", PUBLISHED["camvid_train"])
    with caplog.at_level(logging.WARNING):
        assert len(dataset_dicts("few_lists@1_8")) == 3
    assert "labels 3 images, the published partition 46" in caplog.text


# ---------------------------------------------------------------------------------------------- length


def epochs(number: float, *more: str) -> tuple[str, ...]:
    return "SOLVER.EPOCHS", str(number), "SSL.IMS_PER_BATCH", "16", "SOLVER.IMS_PER_BATCH", "8", *more


@pytest.mark.parametrize(
    ("part", "more", "iterations"),
    [
        ("1464", (), 45590),  # 80 x 9118 / 16
        ("92", ("SSL.IMS_PER_BATCH", "8"), 104900),
        ("u2pl_662", (), 49600),
        ("n100", (), 52410),
        ("0.5", (), 26455),
        ("1464", ("SOLVER.EPOCH_OF", "all"), 52910),  # 80 x 10582 / 16
        ("1464", ("SOLVER.EPOCH_OF", "labeled"), 14640),  # 80 x 1464 / 8
        ("1464", ("SOLVER.ACCUMULATION_STEPS", "2"), 22795),
        ("183", ("SOLVER.EPOCH_PROCESSES", "4"), 52000),  # 80 x floor(ceil(10399 / 4) / 4)
        ("183", ("DATASETS.UNLABELED", "()"), 51995),  # labels alone: as long as with the rest
        ("183", ("SOLVER.EPOCHS", "0.001"), 1),
    ],
)  # fmt: skip
def test_epochs_are_iterations_by_the_published_sizes_without_any_data(config, part, more, iterations):
    cfg = config(data("pascal_voc_train", part), *epochs(80, *more))
    assert (iterations, 0.0) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.EPOCHS)


def test_a_list_file_is_counted_where_the_data_are(config, tmp_path):
    (tmp_path / "mine.txt").write_text("\n".join(f"{i:06d}" for i in range(10)))
    cfg = config(data("miniworld_train"), *epochs(3, "DATASETS.PARTITION", str(tmp_path / "mine.txt")))
    assert cfg.SOLVER.MAX_ITER == 186  # 3 x 990 / 16, rounded up


def test_of_epochs_and_iterations_the_last_one_counts(config):
    by_epochs = "SOLVER:\n  EPOCHS: 80\n" + data("pascal_voc_train", "1464")
    assert config(by_epochs, "SOLVER.MAX_ITER", "7").SOLVER.MAX_ITER == 7
    with pytest.raises(ConfigError, match=r"line: SOLVER\.EPOCHS 3 and SOLVER\.MAX_ITER 7 both say how long to train"):
        config(by_epochs, "SOLVER.MAX_ITER", "7", "SOLVER.EPOCHS", "3")
    with pytest.raises(ConfigError, match=r"mine\.yaml: SOLVER\.EPOCHS 80 and SOLVER\.MAX_ITER 9 both"):
        config(by_epochs.replace("80", "80\n  MAX_ITER: 9"))


@pytest.mark.parametrize(
    ("lines", "overrides", "words"),
    [
        (data("unheard_of_train", "0.5"), (), r"needs the number of images, give SOLVER\.MAX_ITER in its place; there is no data set"),
        (data(unlabeled=False).replace("@PARTITION", ""), ("DATASETS.PARTITION", ""), "EPOCH_OF 'unlabeled', but there is no such"),
        (data(part="1.0"), (), r"EPOCHS 80 are no step: ade20k_panoptic_train@1\.0:unlabeled has 0 images, and a step takes 16"),
        (data(part="n9"), ("SOLVER.EPOCH_PROCESSES", "4", "SOLVER.EPOCH_OF", "labeled", "SOLVER.IMS_PER_BATCH", "16"), "has 9 images"),
        (data(), ("SOLVER.EPOCH_PROCESSES", "3"), "EPOCH_PROCESSES 3 does not divide the 16 images of a step"),
    ],
)  # fmt: skip
def test_epochs_that_cannot_be_counted_are_refused(config, lines, overrides, words):
    with pytest.raises(ConfigError, match=words):
        config(lines, *epochs(80, *overrides))


# ---------------------------------------------------------------------------------------------- output folder


def test_the_output_folder_follows_from_config_and_partition(config, tmp_path):
    assert get_config(WORLD / "m2f.yaml").OUTPUT_DIR == "output/miniworld/m2f"
    assert config(data()).OUTPUT_DIR == "output/mine/1_8"
    assert config(data(), "DATASETS.PARTITION", str(tmp_path / "few.txt")).OUTPUT_DIR == "output/mine/few"
    assert config("").OUTPUT_DIR == "output/mine"
    assert config(data(), "OUTPUT_DIR", "here").OUTPUT_DIR == "here"
    assert config(data() + "OUTPUT_DIR: there\n").OUTPUT_DIR == "there"


def test_a_written_config_has_all_in_full_and_is_read_again(config, tmp_path):
    cfg = config("SOLVER:\n  EPOCHS: 80\n" + data("pascal_voc_train", "1464"))
    written = tmp_path / "config.yaml"
    written.write_text(cfg.dump())
    assert get_config(written) == cfg
    with pytest.raises(ConfigError, match=r"PARTITION is '92', but no name .* has @PARTITION"):
        get_config(written, ["DATASETS.PARTITION", "92"])
