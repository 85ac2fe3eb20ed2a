"""Configuration: every shipped file is valid, and wrong ones say what is wrong."""

from __future__ import annotations

import re

import pytest

from dearli_d2.config import get_config
from dearli_d2.data.partitions import PUBLISHED
from dearli_d2.data.views import WeakGeometry, scale_steps
from dearli_d2.errors import ConfigError
from dearli_d2.methods import method_of, methods
from tests.conftest import REPO
from tests.experiments import CONFIGS, EXPERIMENTS, OWN_DATA, header_of, line, name_of, partitions_of


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_config_is_valid_with_each_of_its_partitions(path):
    own = OWN_DATA if path.parent.name == "custom" else []
    configs = {part: get_config(path, [*own, *line(part)]) for part in partitions_of(path) or [""]}
    for part, cfg in configs.items():
        assert cfg.is_frozen()
        assert cfg.DATASETS.TRAIN or cfg.DATASETS.SOURCE or "to evaluate and predict with" in header_of(path)
        assert "/".join(filter(None, ["output", name_of(path).removesuffix(".yaml"), part])) == cfg.OUTPUT_DIR
    assert len({str(cfg.DATASETS.TRAIN) for cfg in configs.values()}) == len(configs)
    assert get_config(path, own).DATASETS in [cfg.DATASETS for cfg in configs.values()]  # without a word more


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_config_opens_with_its_command_and_its_source(path):
    header = header_of(path)
    config = "custom/mine.yaml" if path.name == "template.yaml" else name_of(path)
    command = re.search(rf"^#   .*configs/{config}\b.*", header, re.MULTILINE)
    assert command, header
    partitions = partitions_of(path)
    given = re.search(r"DATASETS\.PARTITION (\S+)", command[0])
    assert (given[1] in partitions) if partitions else given is None
    assert re.search(r"paper|docs/", header), "where its figures come from"


def test_headers_have_the_published_sizes():
    for path in EXPERIMENTS:
        for part, count in partitions_of(path).items():
            data = get_config(path, line(part)).DATASETS
            name = (*data.TRAIN, *data.UNLABELED)[0].partition("@")[0]
            published = PUBLISHED[name]
            drawn = int(part[1:]) if part.startswith("n") else published.images
            assert count in (published.labeled.get(part, drawn), published.elsewhere.get(part)), (path, part)


def test_headers_count_the_labelled_images_that_their_paper_counts():
    """The papers of DEARLi and HVL have 632 of ADE20K's images in 1/32, UniMatch V2's list has 631."""
    counts = {path.stem: partitions_of(path).get("1_32") for path in (CONFIGS / "ade20k").glob("*.yaml")}
    counts = {name: count for name, count in counts.items() if count}
    assert len(counts) > 8
    assert counts == {name: 631 if name.startswith("unimatch_v2") else 632 for name in counts}


def test_the_folder_stays_small():
    """One file an experiment: partition, length and output folder are no files of their own."""
    assert len(list(CONFIGS.rglob("*.yaml"))) < 160


def test_values_of_the_paper(repo):
    cfg = get_config(repo / "configs/ade20k/m2f_lang_convnext_b.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE) == (1e-4, 0.05, 0.01)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (8, 80000, 0)
    assert (cfg.INPUT.CROP_SIZE, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (640, 640, 2560)
    former = cfg.MODEL.MASK_FORMER
    assert (former.NUM_QUERIES, former.TRAIN_NUM_POINTS, former.NO_OBJECT_WEIGHT) == (200, 12544, 0.1)
    assert (former.CLASS_WEIGHT, former.MASK_WEIGHT, former.DICE_WEIGHT) == (2.0, 5.0, 5.0)
    assert (cfg.MODEL.ENSEMBLE.ALPHA, cfg.MODEL.BACKBONE.FREEZE) == (0.6, True)
    assert (cfg.MODEL.ENSEMBLE.EMPTY_MASKS, cfg.TEST.AMP) == ("zero_vector", False)  # as the authors evaluate


PARTITIONS = {
    "ade20k": ("1_128", "1_64", "1_32", "1_16", "1_8"),
    "coco_panoptic": ("1_512", "1_256", "1_128", "1_64", "1_32"),
    "coco_objects": ("1_512", "1_256", "1_128", "1_64", "1_32"),
}
SIZES = {"ade20k": (150, 640, 2560), "coco_panoptic": (133, 512, 2048), "coco_objects": (81, 512, 2048)}


@pytest.mark.parametrize("folder", PARTITIONS)
@pytest.mark.parametrize("letter", ["b", "l"])
@pytest.mark.parametrize("method", ["dear", "dearli"])
def test_semi_supervised_rows_have_the_values_of_the_paper(folder, letter, method):
    for part in PARTITIONS[folder]:
        cfg = get_config(CONFIGS / folder / f"{method}_convnext_{letter}.yaml", line(part))
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SSL.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (8, 8, 80000)
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE) == (1e-4, 0.05, 0.01)
        ssl = cfg.SSL
        assert (ssl.EMA_DECAY, ssl.OBJECT_THRESHOLD, ssl.OVERLAP_THRESHOLD, ssl.MIN_AREA) == (0.999, 0.0, 0.8, 0)
        assert (ssl.JITTER, ssl.GREYSCALE, ssl.BLUR, ssl.BLUR_SIGMA) == ((0.8, 0.8, 0.8, 0.2), 0.2, 0.5, (0.1, 2.0))
        assert (ssl.CUTMIX, ssl.CUTMIX_AREA, ssl.CUTMIX_ASPECT, ssl.LOSS_WEIGHT) == (
            0.5,
            (0.02, 0.4),
            (0.3, 3.3333),
            1.0,
        )
        ensemble = cfg.MODEL.ENSEMBLE
        assert (ensemble.ALPHA, ensemble.IN_PSEUDO_LABELS, ensemble.AT_INFERENCE) == (0.6, True, True)
        assert SIZES[folder] == (cfg.MODEL.NUM_CLASSES, cfg.INPUT.CROP_SIZE, cfg.INPUT.MAX_SIZE_TEST)
        assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INPUT.MAX_SIZE_TEST
        assert cfg.INPUT.SCALE_RANGE == (0.5, 2.0)
        arch = {"b": "convnext_base_w_320", "l": "convnext_large_d_320"}[letter]
        assert (arch, True) == (cfg.MODEL.BACKBONE.ARCH, cfg.MODEL.BACKBONE.FREEZE)
        name = "ade20k_panoptic" if folder == "ade20k" else folder
        assert (f"{name}_train@{part}",) == cfg.DATASETS.TRAIN
        assert (f"{name}_train@{part}:unlabeled",) == cfg.DATASETS.UNLABELED
        assert (f"{name}_val",) == cfg.DATASETS.TEST
        assert f"output/{folder}/{method}_convnext_{letter}/{part}" == cfg.OUTPUT_DIR
        warm = get_config(REPO / "configs" / folder.replace("objects", "panoptic") / f"warmup_convnext_{letter}.yaml")
        expected = f"{warm.OUTPUT_DIR}/model_final.pth" if method == "dearli" else ""
        assert expected == cfg.MODEL.WEIGHTS
        assert ssl.EMA_RAMP is (method == "dear")  # weights of its own turn the ramp off


def test_prompts_are_those_of_the_method():
    """ViLD's 14 for M2F-Lang, SSL, DEAR and DEARLi; the plain one where a paper names none (HVL, Split Matching)."""
    expected = {"m2f_lang": "vild", "ssl": "vild", "dear": "vild", "dearli": "vild", "hvl": "photo", "split": "photo"}
    for path in EXPERIMENTS:
        method = next((m for m in sorted(expected, key=len, reverse=True) if path.stem.startswith(m)), None)
        if method and path.parent.name in ("ade20k", "coco_panoptic", "coco_objects", "coco_stuff_zero_shot"):
            assert expected[method] == get_config(path).MODEL.TEXT.TEMPLATES, path


@pytest.mark.parametrize(
    ("folder", "classes", "side"), [("gta5_to_cityscapes", 19, 720), ("synthia_to_cityscapes", 16, 760)]
)
def test_domain_adaptation_has_the_values_of_the_paper(folder, classes, side):
    for labels in (0, 100, 200, 500, 1000, 2975):
        part = line({0: "n0", 2975: "all"}.get(labels, f"n{labels}"))
        cfg = get_config(CONFIGS / folder / "semidavil.yaml", part)
        options = cfg.MODEL.SEMIDAVIL
        assert (options.LOSS, options.HARD_FRACTION, options.OMEGA, options.GUIDANCE) == ("dyce", 0.2, 0.5, True)
        assert (cfg.SSL.CONFIDENCE, cfg.SSL.EMA_DECAY, cfg.SSL.EMA_RAMP, cfg.INPUT.CROP_SIZE) == (
            0.95,
            0.999,
            False,
            512,
        )
        assert (cfg.INPUT.JITTER, cfg.INPUT.COLOR_AUG_SSD) == ((0.5, 0.5, 0.5, 0.0), False)  # of labelled images
        assert (cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.WEIGHT_DECAY_EMBED) == (2e-4, 2e-4)
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == (40000, 1e-4, 2e-4)
        assert (cfg.SOLVER.SCHEDULE, cfg.SOLVER.DECAY, cfg.SOLVER.BACKBONE_MULTIPLIER) == ("exponential", 0.9, 0.1)
        assert classes == cfg.MODEL.NUM_CLASSES
        assert WeakGeometry(512, scale_steps(*cfg.INPUT.SOURCE_SCALE_RANGE), 9999).short_sides == [side]
        assert WeakGeometry(512, scale_steps(*cfg.INPUT.SCALE_RANGE), 9999).short_sides == [512]
        assert len(cfg.DATASETS.TRAIN) == (labels > 0)
        without = get_config(CONFIGS / folder / "semidavil_ce.yaml", part)
        assert without.MODEL.SEMIDAVIL.LOSS == "ce"
        assert without.DATASETS == cfg.DATASETS


@pytest.mark.parametrize("folder", ["gta5_to_cityscapes", "synthia_to_cityscapes"])
def test_rows_of_domain_adaptation_train_equally_much(folder):
    """4 + 4 + 4 images in 40 000 iterations, as in the authors' code, and the last four blocks, whatever the start weights."""
    rows = sorted((REPO / "configs" / folder).glob("[!B]*.yaml"))
    assert len(rows) == 9
    for path in rows:
        cfg = get_config(path)
        batch = cfg.SSL.SOURCE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH, cfg.SSL.IMS_PER_BATCH
        assert (batch, cfg.SOLVER.MAX_ITER) == ((4, 4, 4), 40000), path
        assert (cfg.MODEL.BACKBONE.TRAINABLE_BLOCKS, cfg.MODEL.BACKBONE.FREEZE) == (4, False), path


UNLABELED_VOC = {"92": 10490, "183": 10399, "366": 10216, "732": 9850, "1464": 9118}
UNLABELED_VOC |= {f"{kind}_{n}": 10582 - n for kind in ("aug", "u2pl") for n in (662, 1323, 2645)}
UNLABELED_CITYSCAPES = {"1_16": 2789, "1_8": 2603, "1_4": 2231, "1_2": 1487}


@pytest.mark.parametrize(
    ("folder", "unlabeled", "passes", "crop"),
    [("pascal_voc", UNLABELED_VOC, 80, 518), ("cityscapes", UNLABELED_CITYSCAPES, 240, 798)],
)
def test_segkc_has_the_values_of_the_paper(folder, unlabeled, passes, crop):
    """Sec. 4.2; all parameters decay by 0.01, the heads' rate is 40 times that of the backbones."""
    lines = [(path, part) for path in sorted((CONFIGS / folder).glob("segkc_*.yaml")) for part in partitions_of(path)]
    assert len(lines) == {"pascal_voc": 66, "cityscapes": 16}[folder]
    for path, part in lines:
        cfg = get_config(path, line(part))
        solver, batch = cfg.SOLVER, 8 if folder == "cityscapes" or path.stem.endswith("batch_8") else 16
        assert part == cfg.DATASETS.TRAIN[0].partition("@")[2]
        assert (batch, batch) == (solver.IMS_PER_BATCH, cfg.SSL.IMS_PER_BATCH), path
        assert abs(solver.MAX_ITER - passes * unlabeled[part] / batch) < 1, path
        assert pytest.approx(5e-6) == solver.BASE_LR * solver.BACKBONE_MULTIPLIER
        assert (solver.BASE_LR, solver.POLY_POWER, solver.SCHEDULE) == (2e-4, 0.9, "poly")
        assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_EMBED) == (0.01, 0.01, 0.01)
        assert (crop, 0.95, "NONE") == (cfg.INPUT.CROP_SIZE, cfg.SSL.CONFIDENCE, cfg.MODEL.DPT.NORM)
        assert (cfg.MODEL.DPT.DIM, cfg.MODEL.BACKBONE.ARCH) == (64, "vit_small_patch14_dinov2")
        senior = {"b_s": ("base", 128), "s_s": ("small", 64), "l_s": ("large", 256)}.get(path.stem[6:9], ("base", 128))
        assert (f"vit_{senior[0]}_patch14_dinov2", senior[1]) == (cfg.MODEL.SENIOR.BACKBONE.ARCH, cfg.MODEL.SENIOR.DIM)


def test_unimatch_v2_has_the_values_of_its_code():
    """60 epochs of whole batches of 4 processes with 4 images each; half of each loss; the EMA's scores are printed."""
    for part in ("92", "183", "366", "732", "1464"):
        cfg = get_config(CONFIGS / "pascal_voc" / "unimatch_v2_s.yaml", line(part))
        epoch = -(-UNLABELED_VOC[part] // 4) // 4
        assert (60 * epoch, 16, 16) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SSL.IMS_PER_BATCH)
        assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DPT.FEATURE_DROPOUT) == ("DPTSegmenter", True)
        assert (cfg.MODEL.DPT.LOSS_WEIGHT, cfg.SSL.LOSS_WEIGHT, cfg.SSL.STRONG_VIEWS) == (0.5, 0.5, 2)
        assert (cfg.SSL.EMA_DECAY, cfg.SSL.EMA_RAMP, cfg.SSL.CONFIDENCE) == (0.996, True, 0.95)
        assert (cfg.SSL.JITTER, cfg.SSL.JITTER_PROBABILITY) == ((0.5, 0.5, 0.5, 0.25), 0.8)
        assert (cfg.SSL.GREYSCALE, cfg.SSL.BLUR, cfg.SSL.CUTMIX, cfg.INPUT.COLOR_AUG_SSD) == (0.2, 0.5, 0.5, False)
        assert (f"pascal_voc_train@{part}",) == cfg.DATASETS.TRAIN
        assert (f"pascal_voc_train@{part}:unlabeled",) == cfg.DATASETS.UNLABELED
        assert cfg.TEST.WEIGHTS == "teacher"
        assert str(part) == cfg.OUTPUT_DIR.rpartition("/")[2]


@pytest.mark.parametrize(
    ("folder", "part", "unlabeled", "batch", "epochs", "crop"),
    [
        ("cityscapes", "1_16", 2975 - 186, 8, 180, 798),
        ("ade20k", "1_64", 20210 - 316, 8, 60, 518),
        ("coco_objects", "1_512", 118287 - 232, 16, 20, 518),
    ],
)
def test_unimatch_v2_takes_the_steps_of_its_code(folder, part, unlabeled, batch, epochs, crop):
    cfg = get_config(CONFIGS / folder / "unimatch_v2_s.yaml", line(part))
    assert epochs * (-(-unlabeled // 4) // (batch // 4)) == cfg.SOLVER.MAX_ITER
    assert (batch, batch, crop) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SSL.IMS_PER_BATCH, cfg.INPUT.CROP_SIZE)
    assert (cfg.SSL.STRONG_VIEWS, cfg.MODEL.DPT.FEATURE_DROPOUT, cfg.TEST.WEIGHTS) == (2, True, "teacher")
    hard = 200000 if folder == "cityscapes" else 0
    assert (hard, 0.7) == (2 * cfg.MODEL.DPT.HARD_PIXELS, cfg.MODEL.DPT.HARD_BELOW)


@pytest.mark.parametrize(("folder", "iterations"), [("ade20k", 80000), ("coco_panoptic", 160000)])
def test_warm_up_has_the_values_of_the_paper(folder, iterations):
    cfg = get_config(REPO / "configs" / folder / "warmup_convnext_b.yaml")
    assert (16, iterations, "none") == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.MODEL.CLASSIFIER)
    assert (cfg.MODEL.MASK_FORMER.NUM_QUERIES, cfg.SOLVER.AMP.ENABLED) == (200, True)
    assert not cfg.DATASETS.UNLABELED
    assert cfg.DATASETS.MASKS
    assert all("@" not in name for name in cfg.DATASETS.TRAIN)  # labelled and unlabelled images


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["MODEL.MASK_FORMER.NUM_QUERIS", "10"], "no key .*NUM_QUERIS; did you mean MODEL.MASK_FORMER.NUM_QUERIES"),
        (["SOLVER.MAX_ITER"], "has no value"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER is 'many'; it must be a whole number, at least 1"),
        (["MODEL.CLASSIFIER", "texts"], "MODEL.CLASSIFIER is 'texts'; it must be 'linear', 'text' or 'none'"),
        (["MODEL.NUM_CLASSES", "0"], "MODEL.NUM_CLASSES must be set"),
        (
            ["MODEL.ENSEMBLE.ALPHA", "1.5"],
            "ENSEMBLE.ALPHA is 1.5; it must be a finite number, at least 0 and at most 1",
        ),
        (["INPUT.SCALE_RANGE", "(2.0, 0.5)"], "SCALE_RANGE"),
        (["MODEL.MASK_FORMER.HEADS", "7"], "multiple of its HEADS"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"], "CLIP_TYPE is 'value'"),
        (["MODEL.BACKBONE.NAME", "TimmBackbone"], "text needs an OpenCLIP backbone"),
    ],
)
def test_wrong_values_are_explained(repo, overrides, words):
    with pytest.raises(ConfigError, match=words):
        get_config(repo / "configs/miniworld/m2f_lang.yaml", overrides)


def test_wrong_files_are_explained(tmp_path):
    path = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match="no config file"):
        get_config(path)
    path.write_text("MODEL: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="no safe YAML"):
        get_config(path)
    path.write_text("_BASE_: none.yaml\n")
    with pytest.raises(ConfigError, match="none.yaml"):
        get_config(path)
    path.write_text("VERSION: 2\nMODEL:\n  MASK_FROMER:\n    LAYERS: 3\n")
    with pytest.raises(
        ConfigError, match=r"c.yaml: there is no key MODEL.MASK_FROMER; did you mean MODEL.MASK_FORMER\?"
    ):
        get_config(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("SOLVER:\n  BASE_LR: 0.5\nINPUT:\n  CROP_SIZE: 64\nSOLVER:\n  MAX_ITER: 2\n", "SOLVER stands twice, in lines 1 and 5"),
        ("SOLVER:\n  BASE_LR:\n", "SOLVER.BASE_LR is None; it must be a finite number, above 0"),
        ("SOLVER:\n", "SOLVER is None; it is a section, give its keys, such as SOLVER.IMS_PER_BATCH"),
        ("", "c.yaml is empty"),
        ("# nothing\n", "c.yaml is empty"),
        ("- SOLVER\n", "holds a list; a config is a mapping"),
        ("_BASE_: c.yaml\n", "_BASE_ goes in a circle: .*c.yaml -> .*c.yaml"),
        ("_BASE_: {a: 1}\n", "must be a path or a list of paths"),
        ("SOLVER: [1\n", "no safe YAML"),
        ("SOLVER:\n  STEPS: [1]\n", "SOLVER.STEPS is .*no effect here, leave it out; see SOLVER.SCHEDULE"),
        ("TEST:\n  AUG:\n    ENABLED: True\n", "TEST.AUG.ENABLED is True; this key of detectron2 has no effect"),
        ("SEED: 2026-13-45\n", "no safe YAML: '2026-13-45' is no timestamp"),
        ("SEED: !!int many\n", "no safe YAML: 'many' is no int"),
        ("SEED: !!bool maybe\n", "no safe YAML: 'maybe' is no bool"),
        ("NOTHING: {}\n", "there is no key NOTHING"),
        ("SOLVER: &a {SOLVER: *a}\n", "there is no key SOLVER.SOLVER"),
        ("SOLVER.MAX_ITER: 2\nSOLVER: {MAX_ITER: 3}\n", "SOLVER.MAX_ITER stands twice"),
        ("DATASETS:\n  CUSTOM:\n    CLASSES: {0: road}\n", "CLASSES is {0: 'road'}; it must be a list"),
        ("DATASETS:\n  TRAIN: miniworld_train\n", r"TRAIN is 'miniworld_train'; it must be a list .*such as \('name',\)"),
    ],
)  # fmt: skip
def test_wrong_content_of_a_file_is_one_error_with_the_file(tmp_path, content, words):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        get_config(path)
    assert str(path) in str(caught.value)


def test_a_base_is_overridden_by_the_file_that_names_it_and_by_later_bases(tmp_path, repo):
    world = repo / "configs/miniworld/m2f_lang.yaml"
    (tmp_path / "a.yaml").write_text(f"_BASE_: {world}\nSOLVER:\n  MAX_ITER: 5\n  BASE_LR: 1e-3\n")
    (tmp_path / "b.yaml").write_text("SOLVER:\n  MAX_ITER: 6\n  POLY_POWER: 1\n")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nSOLVER:\n  POLY_POWER: 2\n")
    solver = get_config(tmp_path / "c.yaml").SOLVER
    assert (solver.MAX_ITER, solver.BASE_LR, solver.POLY_POWER) == (6, 1e-3, 2.0)
    assert isinstance(solver.POLY_POWER, float)  # written without a point


def test_deformable_attention_for_cpus_is_refused_on_a_gpu(repo, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = ["MODEL.DEFORM_ATTN_IMPL", "gather"]
    with pytest.raises(ConfigError, match=r"DEFORM_ATTN_IMPL gather is for CPUs.* cuda"):
        get_config(repo / "configs/miniworld/m2f.yaml", options)
    get_config(repo / "configs/miniworld/m2f.yaml", [*options, "MODEL.DEVICE", "cpu"])


def test_device_is_chosen_without_a_flag(repo, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert get_config(repo / "configs/miniworld/m2f.yaml").MODEL.DEVICE == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        get_config(repo / "configs/miniworld/m2f.yaml", ["MODEL.DEVICE", "cuda"])


def test_two_methods_that_take_the_same_config_are_refused(monkeypatch):
    config = "configs/miniworld/hvl.yaml"
    cfg = get_config(config)
    assert method_of(cfg) is methods()["hvl"]
    both = {**methods(), "copy": methods()["hvl"]}
    monkeypatch.setattr("dearli_d2.methods.methods", lambda: both)
    with pytest.raises(ConfigError, match="HVL: the methods hvl and copy both take this config"):
        get_config(config)
