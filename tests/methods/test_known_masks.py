"""Zero-shot recognition of known masks (DEARLi, Fig. 3)."""

from __future__ import annotations

import json

import pytest
import torch

from dearli_d2.cli import main
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.data.mappers import TestMapper, panoptic_targets
from dearli_d2.data.panoptic_png import read_panoptic, segment_ids
from dearli_d2.errors import ConfigError
from dearli_d2.masks.storage import MaskFolder, encode
from dearli_d2.methods.dearli.known_masks import KnownMasks, evaluate

DATA = "miniworld_val@n6"
ARGUMENTS = [
    "DATASETS.TEST",
    f"('{DATA}',)",
    "MODEL.DEVICE",
    "cpu",
    "TEST.PICTURES",
    "1",
    "DATALOADER.NUM_WORKERS",
    "0",
]


def truth(d):
    return panoptic_targets(segment_ids(read_panoptic(d["pan_seg_file_name"])), d["segments_info"]).unpacked("cpu")


@pytest.fixture
def config(mini_config):
    return lambda *overrides: mini_config("MODEL.TEXT.TEMPLATES", "simple", *ARGUMENTS, *overrides)


def test_masks_of_the_annotations_with_their_own_classes_have_a_panoptic_quality_of_100(config, monkeypatch):
    labels = iter([truth(d).labels for d in dataset_dicts(DATA)] * 2)  # once more for the pictures

    def right(self, features, mask_logits):
        own = next(labels)
        assert len(own) == mask_logits.shape[1]
        return 9 * torch.nn.functional.one_hot(own, 16)[None].float()

    monkeypatch.setattr(KnownMasks, "zero_shot_logits", right)
    scores = evaluate(config())
    assert (scores["panoptic/PQ"], scores["panoptic/SQ"]) == (100, 100)
    assert scores["semantic/mIoU"] == 100


def test_the_command_recognises_most_segments_with_the_tiny_clip_and_masks_of_a_folder_are_the_same(
    tmp_path, capsys, repo
):
    command = ["zero-shot", "--config-file", str(repo / "configs/miniworld/m2f_lang.yaml"), *ARGUMENTS]
    folder = MaskFolder(tmp_path / "masks")
    for d in dataset_dicts(DATA):
        masks = truth(d).masks.numpy()
        folder.write(d["file_name"], masks.shape[1:], [{"segmentation": encode(m)} for m in masks])
    results = []
    for name, more in (("own", []), ("folder", ["--masks", str(folder.folder)])):
        assert main([*command, "--out", str(tmp_path / name), *more]) == 0
        assert "panoptic/PQ" in capsys.readouterr().out
        (path,) = (tmp_path / name / "evaluation").rglob("results.json")
        results.append(json.loads(path.read_text())["results"])
    assert results[0] == results[1]
    assert results[0]["panoptic"]["RQ"] > 60


def test_a_mask_is_classified_by_its_own_pixels(config):
    """The order of the masks, and other masks, change no class."""
    cfg = config()
    model = KnownMasks(cfg, taxonomy=taxonomy_of(DATA)).eval()
    sample = TestMapper(128, 256)(dataset_dicts(DATA)[0])
    masks = truth(sample).masks
    classes = []
    for chosen in (masks, masks.flip(0)):
        model._masks = lambda _, chosen=chosen: chosen
        (output,) = model([sample])
        ids, segments = output["panoptic_seg"]
        of = {s["id"]: s["category_id"] for s in segments}
        classes.append([of[int(ids[m].mode().values)] for m in masks])
    assert classes[0] == classes[1]


def test_a_config_without_a_text_classifier_is_refused(mini_config):
    with pytest.raises(ConfigError, match="MODEL.CLASSIFIER text"):
        evaluate(mini_config(file="m2f.yaml"))


def test_a_row_without_a_training_is_one_command(tmp_path):
    row = ["reproduce", "run", "miniworld/zero_shot", "--out", str(tmp_path), *ARGUMENTS]
    assert main([*row, "--dry-run"]) == 0
    assert main(row) == 0
    record = json.loads((tmp_path / "miniworld" / "zero_shot" / "reproduction.json").read_text())
    (figure,) = record["figures"]
    assert figure["ours"] > 60
    assert [stage["name"] for stage in record["stages"]] == ["evaluation"]
    assert "zero-shot" in record["stages"][0]["commands"][0]
