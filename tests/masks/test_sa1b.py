"""SA-1B: masks that lie beside the images, and the warm-up that learns from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.images import image_size
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import DatasetError
from dearli_d2.masks.sa1b import import_masks
from dearli_d2.masks.storage import MaskFolder, encode
from dearli_d2.weight_list import needed_by


def masks_of(height: int, width: int) -> np.ndarray:
    masks = np.zeros((2, height, width), bool)
    masks[0, : height // 2], masks[1, :, width // 3 :] = True, True
    return masks


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Two unpacked archives with images of miniworld and JSON files of SA-1B's form."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for index, d in enumerate(dataset_dicts("miniworld_val@n4")):
        folder = tmp_path / "sa1b" / f"sa_00000{index // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = shutil.copy(d["file_name"], folder / f"sa_{index}{Path(d['file_name']).suffix}")
        height, width = image_size(image)
        annotations = [
            {"id": i, "segmentation": encode(m), "area": int(m.sum()), "bbox": [0, 0, 1, 1], "predicted_iou": 0.9, "point_coords": [[1, 2]],
             "stability_score": 0.97, "crop_box": [0, 0, width, height]}
            for i, m in enumerate(masks_of(height, width))
        ]  # fmt: skip
        info = {"image_id": index, "file_name": Path(image).name, "height": height, "width": width}
        Path(image).with_suffix(".json").write_text(json.dumps({"image": info, "annotations": annotations}))
    return tmp_path / "sa1b"


def test_masks_come_from_the_files_beside_the_images_and_train_a_warm_up(archive, tmp_path, mini_config, capsys):
    out = tmp_path / "masks"
    arguments = ["masks", "generate", "--dataset", "sa1b_train", "--generator", "sa1b", "--out", str(out)]
    assert main(arguments) == 0
    assert "4 images done (8 masks), 0 were there" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "0 images done (0 masks), 4 were there" in capsys.readouterr().out
    dicts = dataset_dicts("sa1b_train")
    assert "masks of 4 images, made by sa1b" in MaskFolder(out).check(dicts)
    for d in dicts:
        size = image_size(d["file_name"])
        assert np.array_equal(MaskFolder(out).read(d["file_name"], size), masks_of(*size))
    keys = "DATASETS.TRAIN", "('sa1b_train',)", "DATASETS.MASKS", str(out), "SOLVER.MAX_ITER", "2"
    needed = [weights.name for weights in needed_by(get_config("configs/ade20k/warmup_convnext_b.yaml", keys))]
    assert not any(name.startswith("sam") for name in needed)
    trainer = DualStreamTrainer(mini_config(*keys, file="warmup.yaml"))
    before = {n: p.detach().clone() for n, p in trainer.student.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.student.named_parameters())
    assert sum(not torch.equal(after[n], p) for n, p in before.items()) > 0.9 * len(before)


def test_an_image_without_its_file_is_an_error_and_a_wrong_file_is_left_out_with_its_reason(archive, tmp_path):
    files = [d["file_name"] for d in dataset_dicts("sa1b_train")]
    first, second = (Path(f).with_suffix(".json") for f in files[:2])
    text = first.read_text()
    first.unlink()
    with pytest.raises(DatasetError, match="1 of 4 images have no JSON file with masks beside them"):
        import_masks(files, MaskFolder(tmp_path / "masks"))
    content = json.loads(text)
    content["image"]["height"] += 1
    first.write_text(json.dumps(content))
    second.write_text("[]")
    counts = import_masks(files, MaskFolder(tmp_path / "masks"))
    assert (counts["done"], counts["failed"]) == (2, 2)
    log = (tmp_path / "masks" / "failed_0_of_1.jsonl").read_text()
    assert "its masks are" in log
    assert "is no file of SA-1B's masks" in log
