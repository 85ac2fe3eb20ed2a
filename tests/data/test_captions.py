"""Caption files: reading, faults with line numbers, writing with a model or from labels, resumption and shards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dearli_d2.data import catalog
from dearli_d2.data.captions import caption_file, prepared_for, read_captions, reads_captions, with_captions
from dearli_d2.data.catalog import ImageFolder, dataset_records, register
from dearli_d2.data.images import read_image
from dearli_d2.errors import ConfigError, DatasetError
from dearli_d2.reproduction.papers import FOLDER, read_paper
from tests.data.test_preparation import script


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Data set "pictures": three images, one in a subfolder; its caption file is not there."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "pictures" / "b").mkdir(parents=True)
    for index, name in enumerate(("a.jpg", "b/a.jpg", "c.jpg")):
        Image.fromarray(np.full((20, 24, 3), 80 * index, np.uint8)).save(tmp_path / "pictures" / name)
    register("pictures", ImageFolder(tmp_path / "pictures"))
    yield tmp_path
    catalog._SOURCES.pop("pictures")


def write(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))


def line(file, caption="a dog", **more):
    return {"file": file, "caption": caption, "model": "m", **more}


def test_captions_reach_the_images_they_name(folder):
    write(caption_file("pictures"), line("b/a.jpg", " in b "), line("a.jpg", "first"), "", line("c.jpg", "third"))
    dicts = with_captions("pictures", dataset_records("pictures"))
    assert {d["image_id"]: d["caption"] for d in dicts} == {"a.jpg": "first", "b/a.jpg": "in b", "c.jpg": "third"}
    assert len(with_captions("pictures@n2", dataset_records("pictures@n2"))) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line("a.jpg"), "{broken", line("c.jpg")], r"1 lines are not.*line 2"),
        ([line("a.jpg"), {"file": "c.jpg"}], "line 2"),
        ([line("a.jpg"), line("c.jpg", "  ")], "line 2"),
        ([line("a.jpg"), line("c.jpg"), line("a.jpg")], r"a\.jpg in lines 1 and 3"),
        ([line("a.jpg")], r"2 of 3 images have no caption.*b/a\.jpg.*dearli prepare captions pictures"),
        ([line("x.jpg"), line("y.jpg")], r"is of other files: it has 2 captions such as that of x\.jpg"),
        (None, r"no caption file .*pictures\.jsonl.*dearli prepare captions pictures"),
    ],
)
def test_faults_are_named_with_their_lines(folder, lines, message):
    if lines is not None:
        write(caption_file("pictures"), *lines)
    with pytest.raises(DatasetError, match=message):
        with_captions("pictures", dataset_records("pictures"))


def test_a_changed_file_is_read_again(folder):
    import os

    path = caption_file("pictures")
    write(path, line("a.jpg"))
    assert len(read_captions(path)) == 1
    write(path, line("a.jpg"), line("c.jpg"))
    os.utime(path, (1, 1))
    assert len(read_captions(path)) == 2


def test_only_a_method_that_reads_captions_needs_them(folder, mini_config):
    dicts = dataset_records("pictures")
    assert prepared_for(mini_config(), "pictures", dicts) is dicts
    options = "MODEL.SEMIDAVIL.CAPTIONS", "class_names"
    assert prepared_for(mini_config(*options, file="semidavil.yaml"), "pictures", dicts) is dicts
    with pytest.raises(DatasetError, match="no caption file"):
        prepared_for(mini_config(file="semidavil.yaml"), "pictures", dicts)


def brightness(dicts):
    return [f"a picture of brightness {np.asarray(Image.open(d['file_name'])).mean():.0f}" for d in dicts]


def test_an_interrupted_run_goes_on_where_it_stopped(folder):
    module, calls = script("prepare_captions"), []

    def stops(dicts):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return brightness(dicts)

    with pytest.raises(KeyboardInterrupt):
        module.write_captions("pictures", stops, "m", 2)
    path = caption_file("pictures")
    assert not path.exists()
    part = next(path.parent.glob(".pictures.part-*"))
    part.write_text(part.read_text() + '{"file": "c.j')  # as a kill leaves it
    seen = []
    assert module.write_captions("pictures", lambda d: seen.extend(d) or brightness(d), "m", 2) == (1, 0)
    assert [d["image_id"] for d in seen] == ["c.jpg"]
    captions = read_captions(path)
    assert [captions[f].split()[-1] for f in ("a.jpg", "b/a.jpg", "c.jpg")] == ["0", "80", "160"]
    assert not list(path.parent.glob(".pictures.part-*"))
    assert module.write_captions("pictures", stops, "m", 2) == (0, 0)  # nothing is made twice


def test_shards_share_the_images_and_the_last_one_joins(folder):
    module = script("prepare_captions")
    assert module.write_captions("pictures", brightness, "m", 2, 1, 2) == (1, 2)
    assert not caption_file("pictures").exists()
    assert module.write_captions("pictures", brightness, "m", 2, 0, 2) == (2, 0)
    assert len(read_captions(caption_file("pictures"))) == 3


def test_a_model_without_words_is_an_error(folder):
    with pytest.raises(DatasetError, match=r"no word for a\.jpg"):
        script("prepare_captions").write_captions("pictures", lambda d: [" "] * len(d), "m", 2)


def test_images_without_a_caption_are_counted_and_the_others_are_kept(folder):
    module = script("prepare_captions")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "pictures" / "a.jpg")
    held = (folder / "pictures" / "a.jpg").read_bytes()
    (folder / "pictures" / "a.jpg").write_bytes(held[: len(held) // 2])

    def words(dicts):
        return ["" if d["image_id"] == "c.jpg" else read_image(d["file_name"]) is not None and "a dog" for d in dicts]

    with pytest.raises(
        DatasetError, match=r"pictures: 2 of 3 images get no caption: \S+a\.jpg cannot be read.*no word for c\.jpg"
    ):
        module.write_captions("pictures", words, "m", 3)
    (folder / "pictures" / "a.jpg").write_bytes(held)
    seen = []
    assert module.write_captions("pictures", lambda d: seen.extend(d) or ["a cat"] * len(d), "m", 3) == (2, 0)
    assert [d["image_id"] for d in seen] == ["a.jpg", "c.jpg"]
    assert read_captions(caption_file("pictures"))["b/a.jpg"] == "a dog"


def test_labels_give_captions_of_annotated_images_only(folder):
    module = script("prepare_captions")
    d = dataset_records("miniworld_train")[0]
    area = {}
    for s in d["segments_info"]:
        area[s["category_id"]] = area.get(s["category_id"], 0) + s["area"]
    names = catalog.taxonomy_of("miniworld_train").main_names
    expected = [names[c] for c in sorted(area, key=area.get, reverse=True)[:2]]
    assert module.label_captioner("miniworld_train", 2)([d]) == [f"a photo of {expected[0]} and {expected[1]}"]
    with pytest.raises(DatasetError, match="no annotation"):
        module.label_captioner("miniworld_train", 2)([dataset_records("miniworld_train@0.5:unlabeled")[0]])


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory):
    """A randomly initialised BLIP of a few thousand parameters, as a folder."""
    transformers = pytest.importorskip("transformers")
    if not transformers.utils.is_torch_available():
        pytest.skip("the installed transformers needs a newer torch")
    out = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *(f"w{i}" for i in range(40))]
    (out / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(out / "vocab.txt"))
    size = {"height": 32, "width": 32}
    image_processor = transformers.BlipImageProcessor(size=size)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BlipConfig(
        text_config={
            **small, "vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 5, "sep_token_id": 3,
            "eos_token_id": 3, "pad_token_id": 0, "projection_dim": 16, "max_position_embeddings": 64,
        },
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BlipForConditionalGeneration(config).save_pretrained(out)
    transformers.BlipProcessor(image_processor, tokenizer).save_pretrained(out)
    return out


def test_a_transformers_model_writes_captions(folder, tiny_blip, capsys):
    module = script("prepare_captions")
    assert module.main(["pictures", "--model", str(tiny_blip), "--batch", "2", "--max-tokens", "5"]) == 0
    entries = [json.loads(text) for text in caption_file("pictures").read_text().splitlines()]
    assert {e["model"] for e in entries} == {tiny_blip.name}
    assert all(e["caption"].strip() for e in entries)
    assert "3 captions made, all in" in capsys.readouterr().out
    alone = module.load_captioner(str(tiny_blip), 5)([dataset_records("pictures")[2]])[0]
    assert read_captions(caption_file("pictures"))["c.jpg"] == alone  # what is batched together does not matter


def test_where_all_captions_are_there_no_model_is_loaded(folder, capsys):
    module = script("prepare_captions")
    module.write_captions("pictures", brightness, "m", 2)
    before = caption_file("pictures").read_text()
    assert module.main(["pictures", "--model", str(folder / "nothing")]) == 0
    assert "0 captions made, all in" in capsys.readouterr().out
    assert caption_file("pictures").read_text() == before


def test_bad_arguments_are_clear_errors(folder, capsys):
    module = script("prepare_captions")
    assert module.main(["pictures", "--model", str(folder / "nothing")]) == 2
    assert "cannot be loaded as an image-to-text model" in capsys.readouterr().err
    assert module.main(["pictures", "--from-labels", "--shard", "2/2"]) == 2
    assert "--shard 2/2" in capsys.readouterr().err
    assert module.main(["pictures", "--from-labels"]) == 2
    for option in ("--batch", "--max-tokens", "--max-classes"):  # --batch 0 would make no caption, without a word
        assert module.main(["pictures", "--from-labels", option, "0"]) == 2
        assert "0 is not in the range x>=1" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot be loaded"):
        module.load_captioner(str(folder), 5)


def test_rows_of_papers_that_read_captions_make_those_of_all_their_data_first():
    for experiment in read_paper(FOLDER / "semidavil.yaml").experiments():
        if not experiment.training.row.config:
            continue
        cfg = experiment.config(["MODEL.DEVICE", "cpu"])
        words = [word for stage in experiment.stages for word in stage.command.split()]
        made = {word for word in words if word.endswith(("_train", "_val"))}
        data = cfg.DATASETS
        read = {name.partition("@")[0] for name in (*data.SOURCE, *data.TRAIN, *data.UNLABELED, *data.TEST)}
        assert made == (read if reads_captions(cfg) else set()), experiment.name
