"""What a user sees when something is wrong: the table in docs/bad_input.md, row by row.

Every case goes through the command line: exit status 2, one line, no stack trace, nothing trained.
"""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dearli_d2.cli import main
from dearli_d2.data import miniworld
from dearli_d2.data.catalog import PanopticSource, register
from tests.conftest import MINI_OVERRIDES, REPO

CONFIG = str(REPO / "configs/miniworld/m2f_lang.yaml")


@pytest.fixture
def world(tmp_path):
    """A small writable copy of miniworld, registered as `broken_train`."""
    source, root = miniworld.root(), tmp_path / "world"
    for part in ("images", "panoptic", "semantic"):
        (root / part).mkdir(parents=True)
    content = json.loads((source / "panoptic_train.json").read_text())
    content["images"], content["annotations"] = content["images"][:6], content["annotations"][:6]
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        shutil.copy(source / "images/train" / image["file_name"], root / "images")
        for part in ("panoptic", "semantic"):
            shutil.copy(source / part / "train" / annotation["file_name"], root / part)
    (root / "train.json").write_text(json.dumps(content))
    register("broken_train", PanopticSource(root / "images", root / "train.json", root / "panoptic", root / "semantic"))
    return root


def edit(world, change):
    content = json.loads((world / "train.json").read_text())
    change(content)
    (world / "train.json").write_text(json.dumps(content))


def every_panoptic(world, value):
    for path in (world / "panoptic").iterdir():
        Image.new("RGB", (128, 128), value).save(path)


def truncated_jpeg(w):
    path = w / "images/000002.jpg"
    path.write_bytes(path.read_bytes()[:200])


def cut_off_jpeg(w):
    path = w / "images/000002.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    with Image.open(path) as image:
        assert image.size == (128, 128)  # the header is there


def deep_image(w):
    Image.fromarray(np.full((128, 128), 4000, np.uint16)).save(w / "images/000002.jpg", format="PNG")


def small_label(w):
    Image.new("RGB", (60, 60)).save(w / "panoptic/000003.png")


def foreign_ids(w):
    path = w / "panoptic/000001.png"
    array = np.array(Image.open(path))
    array[:5, :5] = (200, 1, 0)
    Image.fromarray(array).save(path)


def unknown_category(content):
    content["annotations"][4]["segments_info"][0]["category_id"] = 99


def orphan(content):
    content["images"].pop(0)


def no_images(content):
    content["images"], content["annotations"] = [], []


def no_segments(content):
    for a in content["annotations"]:
        a["segments_info"] = []


def double_category(content):
    content["categories"][1]["id"] = content["categories"][0]["id"]


def exchanged_labels(w):
    a, b = w / "panoptic/000001.png", w / "panoptic/000004.png"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    edit(w, lambda c: [s.update(id=i) for x in c["annotations"] for i, s in enumerate(x["segments_info"], 1)])


def other_semantics(w):
    path = w / "semantic/000001.png"
    array = np.array(Image.open(path))
    Image.fromarray(((array + 1) % 16).astype(np.uint8)).save(path)


def strange_semantics(w):
    Image.new("L", (128, 128), 77).save(w / "semantic/000001.png")


DATA_CASES = {
    "labels exchanged": (
        exchanged_labels,
        r"label files have other areas than the JSON file says|that the JSON file does not list",
    ),
    "semantic labels of other classes": (
        other_semantics,
        r"1 of 6 examined semantic labels contradict the panoptic ones: .*000001.png \(100% of the pixels\)",
    ),
    "grey label PNG": (
        lambda w: [Image.open(p).getchannel(0).save(p) for p in (w / "panoptic").iterdir()],
        r"that the JSON file does not list: .* \(a panoptic PNG has 8 bits in each of three channels: segment id = R",
    ),
    "label PNG of 16 bits": (
        lambda w: Image.fromarray(np.ones((128, 128), np.uint16)).save(w / "panoptic/000001.png"),
        r"000001.png has the mode I;16; a panoptic PNG has 8 bits",
    ),
    "semantic labels of no class": (strange_semantics, r"000001.png: a semantic label is .* values 0..15, .* holds 77"),
    "segment id 0": (
        lambda w: edit(w, lambda c: c["annotations"][0]["segments_info"][0].update(id=0)),
        r"broken_train: .*train.json: 1 segment ids are no number from 1",
    ),
    "segment id twice": (
        lambda w: edit(w, lambda c: c["annotations"][0]["segments_info"][1].update(id=1)),
        r"segment ids stand twice in an image: id 1 in 000000.png",
    ),
    "JSON of COCO instances": (
        lambda w: (w / "train.json").write_text(
            '{"images": [], "categories": [], "annotations": [{"bbox": [1, 2, 3, 4]}]}'
        ),
        r"broken_train: .*train.json is a COCO instances file",
    ),
    "truncated JPEG": (
        truncated_jpeg,
        r"broken_train: 1 files have a wrong size or depth or are damaged: .*000002.jpg is damaged",
    ),
    "JPEG cut off in the middle": (cut_off_jpeg, r"000002.jpg cannot be read as an image: .*truncated"),
    "image of 16 bits": (
        deep_image,
        r"broken_train: 1 files .*000002.jpg has more than 8 bits a channel \(mode I;16\), .* convert it to 8 bits",
    ),
    "missing image": (
        lambda w: (w / "images/000001.jpg").unlink(),
        r"1 of 6 image files are missing, first: .*000001.jpg",
    ),
    "missing label PNG": (
        lambda w: (w / "panoptic/000005.png").unlink(),
        r"1 of 6 label files are missing, first: .*000005.png",
    ),
    "label of another size": (small_label, r"panoptic/000003.png is 60 x 60, the JSON file says 128 x 128"),
    "label PNG with unlisted ids": (
        foreign_ids,
        r"1 of 6 examined label files hold segment ids that the JSON file does not list: .*000001.png \(ids 456\)",
    ),
    "labels without any segment": (lambda w: every_panoptic(w, (0, 0, 0)), r"all pixels are ignored"),
    "labels of 255 only": (lambda w: every_panoptic(w, (255, 255, 255)), r"does not list: .*ids 16777215"),
    "unknown category id": (
        lambda w: edit(w, unknown_category),
        r"1 segments of categories that are not in 'categories': category 99 in 000004.png",
    ),
    "annotation without image": (lambda w: edit(w, orphan), r"1 annotations without an image entry: 000000.png"),
    "category id twice": (lambda w: edit(w, double_category), r"a category id stands twice"),
    "zero images": (lambda w: edit(w, no_images), r"broken_train: no image in"),
    "no segments at all": (lambda w: edit(w, no_segments), r"hold segment ids|not one segment"),
    "0-byte JSON": (lambda w: (w / "train.json").write_text(""), r"is no COCO-panoptic JSON file"),
    "JSON of another kind": (
        lambda w: (w / "train.json").write_text('{"a": 1}'),
        r"is no COCO-panoptic JSON file: 'categories' is missing",
    ),
    "missing JSON": (
        lambda w: (w / "train.json").unlink(),
        r"no annotation file .*train.json; check DETECTRON2_DATASETS",
    ),
}


def run(tmp_path, capsys, *overrides, config=CONFIG, command="train", base=MINI_OVERRIDES, flags=()):
    arguments = [command, *flags, "--config-file", config, *base, "OUTPUT_DIR", str(tmp_path / "out"), *overrides]
    status = main(arguments)
    _, marker, error = capsys.readouterr().err.rpartition("error: ")
    assert status == 2
    assert marker
    assert "Traceback" not in error
    assert not list((tmp_path / "out").glob("*.pth"))
    return error


@pytest.mark.parametrize("case", DATA_CASES)
def test_broken_data(world, tmp_path, capsys, case):
    breakage, words = DATA_CASES[case]
    breakage(world)
    error = run(tmp_path, capsys, "DATASETS.TRAIN", "('broken_train',)")
    assert re.search(words, error), error


def test_the_unbroken_copy_trains(world, tmp_path):
    """Else every case above could fail for another reason."""
    arguments = [
        *MINI_OVERRIDES,
        "SOLVER.MAX_ITER",
        "1",
        "OUTPUT_DIR",
        str(tmp_path / "out"),
        "DATASETS.TRAIN",
        "('broken_train',)",
    ]
    assert main(["train", "--config-file", CONFIG, *arguments]) == 0
    assert (tmp_path / "out" / "model_final.pth").is_file()


CONFIG_CASES = {
    "misspelt key": (["MODEL.ENSEMBLE.ALPA", "0.5"], r"no key MODEL.ENSEMBLE.ALPA; did you mean MODEL.ENSEMBLE.ALPHA"),
    "wrong class count": (["MODEL.NUM_CLASSES", "15"], r"miniworld_train@0.1 has 16 classes but MODEL.NUM_CLASSES is 15; set MODEL.NUM_CLASSES 16"),
    "unknown data set": (["DATASETS.TRAIN", "('miniwrld',)"], r"there is no data set 'miniwrld'; known: "),
    "no training data": (["DATASETS.TRAIN", "()"], r"DATASETS.TRAIN names no data set"),
    "unknown architecture": (["MODEL.META_ARCHITECTURE", "MaskFromer"], r"META_ARCHITECTURE: there is no 'MaskFromer'; known: .*MaskFormer"),
    "an architecture of detectron2": (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], r"there is no 'GeneralizedRCNN'; known: .*HVL,"),
    "a backbone of detectron2 without these maps": (["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.CLASSIFIER", "linear"], r"there is no 'build_resnet_fpn_backbone'; known: .*build_resnet_backbone"),
    "detectron2's ResNet with some maps": (["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.CLASSIFIER", "linear", "MODEL.BACKBONE.WEIGHTS", ""], r"gives res4; the head needs res2, res3, res5 too; set MODEL.RESNETS.OUT_FEATURES"),
    "unknown backbone": (["MODEL.BACKBONE.NAME", "OpenCLIPResNet"], r"MODEL.BACKBONE.NAME: there is no 'OpenCLIPResNet'; known: .*TimmBackbone"),
    "unknown backbone model": (["MODEL.BACKBONE.ARCH", "convnext-none"], r"open_clip has no model 'convnext-none'"),
    "weights that are not there": (["MODEL.WEIGHTS", "none.pth"], r"no weight file none.pth"),
    "backbone weights that cannot be had": (["MODEL.BACKBONE.WEIGHTS", "laion5b"], r"'laion5b' is no pretrained tag of miniworld-convnext"),
    "class-name file of another size": (["MODEL.TEXT.CLASS_NAMES", "names.txt"], r"names.txt"),
    "more processes than GPUs": ([], r"--num-gpus 4 but (there is no GPU|this machine has)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_broken_config(tmp_path, capsys, case):
    overrides, words = CONFIG_CASES[case]
    flags = ["--num-gpus", "4"] if case == "more processes than GPUs" else []
    if case == "class-name file of another size":
        (tmp_path / "names.txt").write_text("0:cat\n1:dog\n")
        overrides, words = (
            ["MODEL.TEXT.CLASS_NAMES", str(tmp_path / "names.txt")],
            r"MODEL.TEXT.CLASS_NAMES .*names.txt: 14 classes have no line",
        )
    base = MINI_OVERRIDES[2:] if flags else MINI_OVERRIDES  # without MODEL.DEVICE cpu, which asks for CPU processes
    error = run(tmp_path, capsys, *overrides, flags=flags, base=base)
    assert re.search(words, error), error


def test_weights_of_another_model(tmp_path, capsys):
    torch.save({"model": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    error = run(tmp_path, capsys, "MODEL.WEIGHTS", str(tmp_path / "other.pth"))
    assert "other.pth does not fit this model: 0 matched" in error
    assert "unknown to the model: conv.weight" in error


def test_evaluation_without_weights(tmp_path, capsys):
    assert "evaluation needs weights: --weights FILE" in run(tmp_path, capsys, command="eval")


def renumbered(content):
    for category in content["categories"]:
        category["id"] += 100
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] += 100


def permuted(content):
    names = [c["name"] for c in content["categories"]]
    for category, name in zip(content["categories"], [*names[1:], names[0]], strict=True):
        category["name"] = name


def flipped_kind(content):
    content["categories"][2]["isthing"] = 1 - content["categories"][2]["isthing"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert (
        main(["train", "--config-file", CONFIG, *MINI_OVERRIDES, "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(folder)])
        == 0
    )
    return folder / "model_final.pth"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renumbered, r"class 0 was 'striped red' \(id 1, thing\), is 'striped red' \(id 101, thing\)"),
        (permuted, r"class 0 was 'striped red' \(id 1, thing\), is '.*' \(id 1, thing\)"),
        (flipped_kind, r"class 2 was '.*, thing\), is '.*, stuff\)"),
    ],
)
def test_evaluation_on_data_with_other_categories(world, trained, tmp_path, capsys, change, words):
    """The same number of classes under other ids, in another order, or of another kind; with the first one that differs."""
    edit(world, change)
    weights = ["MODEL.WEIGHTS", str(trained), "DATASETS.TEST", "('broken_train',)"]
    error = run(tmp_path, capsys, *weights, command="eval")
    assert re.search(f"broken_train has other categories than .*model_final.pth was made for: {words}", error), error


def test_missing_config_file(tmp_path, capsys):
    assert "no config file none.yaml" in run(tmp_path, capsys, config="none.yaml")


def test_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    error = run(tmp_path, capsys, "OUTPUT_DIR", str(tmp_path / "file" / "out"))
    assert re.search(r"OUTPUT_DIR .* cannot be written to: Not a directory", error)


def test_damaged_checkpoint_on_resume(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model_final.pth").write_bytes(b"half a file")
    (folder / "last_checkpoint").write_text("model_final.pth")
    error = run(tmp_path, capsys, "OUTPUT_DIR", str(folder), flags=["--resume"])
    assert "model_final.pth cannot be read as weights (damaged" in error


ADAPTATION = str(REPO / "configs/miniworld/semidavil.yaml")


def other_captions(w):
    (w / "captions.jsonl").write_text('{"file": "x.jpg", "caption": "grass"}\n')


def missing_captions(w):
    (w / "captions.jsonl").write_text('{"file": "000002.jpg", "caption": "grass"}\n')


def long_captions(w):
    names = [p.name for p in (w / "images").iterdir()]
    lines = [{"file": name, "caption": "grass " * (30 if name == "000004.jpg" else 1)} for name in names]
    (w / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def renamed_class(w):
    long_captions(w)
    edit(w, lambda c: c["categories"][3].update(name="blue stripes"))


def empty_source(w):
    (w / "list.txt").write_text("\n")


ADAPTATION_CASES = {
    "no caption file": (lambda w: None, "", r"broken_train: no caption file .*captions.jsonl; dearli prepare captions"),
    "captions of other files": (other_captions, "", r"is of other files: it has 1 captions such as that of x.jpg"),
    "images without a caption": (missing_captions, "", r"5 of 6 images have no caption in .*captions.jsonl: 000000.jpg"),
    "caption longer than the text tower reads": (long_captions, "", r"000004.jpg: its caption: 32 tokens, the text tower reads 24"),
    "classes of source and target differ": (renamed_class, "", r"DATASETS.SOURCE: broken_train and miniworld_night_train@0.05 have different classes: class 3 was 'striped blue' .id 4., is 'blue stripes'"),
    "source without an image": (empty_source, "@{list}", r"list.txt lists no image"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTATION_CASES)
def test_broken_domain_adaptation(world, tmp_path, capsys, case):
    breakage, view, words = ADAPTATION_CASES[case]
    parts = world / "images", world / "train.json", world / "panoptic", world / "semantic"
    register("broken_train", PanopticSource(*parts, captions=world / "captions.jsonl"))
    breakage(world)
    source = "broken_train" + view.format(list=world / "list.txt")
    error = run(tmp_path, capsys, "DATASETS.SOURCE", f"('{source}',)", config=ADAPTATION)
    assert re.search(words, error), error
