"""Mean IoU against a confusion matrix made by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import sure_pixels
from dearli_d2.data import sizes
from dearli_d2.data.catalog import dataset_dicts, taxonomy_of
from dearli_d2.evaluation import PanopticEvaluator, SemanticEvaluator, mean_iou
from dearli_d2.evaluation.report import image_scores, scalars, tables, worst_and_best, write_image_scores, write_results
from dearli_d2.evaluation.semantic import class_iou, confusion, read_semantic


def test_confusion_and_iou_by_hand():
    truth = np.array([[0, 0, 1, 255], [1, 1, 2, 2]], np.uint8)
    predicted = np.array([[0, 1, 1, 0], [1, 0, 2, 0]])
    matrix = confusion(predicted, truth, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    iou = class_iou(matrix)
    assert iou[:3] == pytest.approx([25.0, 50.0, 50.0])
    assert np.isnan(iou[3])
    assert mean_iou(matrix) == pytest.approx(125 / 3)


def test_a_predicted_class_without_ground_truth_hurts_others_not_the_mean_directly():
    matrix = confusion(np.array([0, 3]), np.array([0, 0]), 4)
    assert mean_iou(matrix) == 50


def test_outputs_of_large_images_are_compared_at_the_truths_size(tmp_path, monkeypatch):
    taxonomy = taxonomy_of("miniworld_val")
    small = np.array([[1, 2], [2, 1], [1, 1]], np.uint8)  # segment ids and, by chance, classes
    Image.fromarray(small.repeat(4, 0).repeat(4, 1)).save(tmp_path / "semantic.png")
    Image.fromarray(np.stack([small, 0 * small, 0 * small], -1).repeat(4, 0).repeat(4, 1)).save(
        tmp_path / "panoptic.png"
    )
    segments = [{"id": i, "category_id": i, "iscrowd": 0} for i in (1, 2)]
    given = {
        "file_name": "a.jpg",
        "sem_seg_file_name": str(tmp_path / "semantic.png"),
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": segments,
    }
    scores = torch.nn.functional.one_hot(torch.tensor(small).long(), 16).permute(2, 0, 1).float()
    semantic, panoptic = SemanticEvaluator(taxonomy), PanopticEvaluator(taxonomy)
    for evaluator in (semantic, panoptic):  # 12 x 8 pixels are read out in full
        with pytest.raises(ValueError, match=r"is read out at \(12, 8\), not at \(3, 2\)"):
            evaluator.process([given], [{"sem_seg": scores, "panoptic_seg": (torch.tensor(small), segments)}])
    monkeypatch.setattr(sizes, "READ_OUT_PIXELS", 6)
    semantic.process([given], [{"sem_seg": scores}])
    panoptic.process([given], [{"panoptic_seg": (torch.tensor(small), segments)}])
    assert semantic.evaluate()["semantic"]["mIoU"] == 100
    assert panoptic.evaluate()["panoptic"]["PQ"] == 100


def test_sure_pixels_are_counted_by_the_class_they_have(tmp_path):
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 0]], np.uint8)
    Image.fromarray(truth).save(tmp_path / "semantic.png")
    confidence = torch.tensor([[0.9, 0.5, 0.9, 0.9], [0.9, 0.2, 0.9, 0.9]])
    label = torch.tensor([[0, 0, 1, 0], [1, 2, 2, 0]])
    scores = torch.zeros(3, 2, 4).scatter_(0, label[None], confidence[None])

    class Model:
        taxonomy = range(3)

        def __call__(self, batch):
            return [{"sem_seg": scores}]

    predictor = SimpleNamespace(model=Model(), mapper=dict)
    counts = sure_pixels.count(predictor, [{"sem_seg_file_name": str(tmp_path / "semantic.png")}], 0.8)
    assert counts.tolist() == [[3, 2, 2], [2, 2, 1], [2, 1, 0]]


def test_semantic_truth_from_panoptic_png_equals_the_semantic_png():
    for d in dataset_dicts("miniworld_val@0.1"):
        derived = read_semantic({k: v for k, v in d.items() if k != "sem_seg_file_name"})
        assert np.array_equal(derived, read_semantic(d))


def test_evaluator_of_the_truth_is_perfect_and_reports_are_written(tmp_path):
    taxonomy, dicts = taxonomy_of("miniworld_val"), dataset_dicts("miniworld_val")
    evaluator = SemanticEvaluator(taxonomy)
    for d in dicts:
        scores = torch.nn.functional.one_hot(torch.tensor(read_semantic(d)).long(), 16).permute(2, 0, 1).float()
        evaluator.process([d], [{"sem_seg": scores}])
    results = evaluator.evaluate()
    assert results["semantic"]["mIoU"] == 100
    assert scalars(results) == {"semantic/mIoU": 100.0, "semantic/pixel_accuracy": 100.0}
    assert "striped red" in tables(results)
    results["semantic"]["per_class"]["grass"]["IoU"] = float("nan")
    assert results["semantic"]["per_image"] == [(d["file_name"], 100.0) for d in dicts]
    write_results(results, tmp_path / "r.json", dataset="miniworld_val")
    written = json.loads((tmp_path / "r.json").read_text())["results"]["semantic"]
    matrix = np.array(written["confusion"])
    assert matrix.sum() == sum((read_semantic(d) < 16).sum() for d in dicts)
    assert (matrix == np.diag(np.diag(matrix))).all()
    assert len((tmp_path / "r.json").read_text().splitlines()) < 100  # a row of the matrix is a line
    assert "per_image" not in written
    assert json.loads((tmp_path / "r.json").read_text())["results"]["semantic"]["per_class"]["grass"]["IoU"] is None


def image_with(score: float) -> dict[str, float]:
    return {"panoptic/PQ": score, "semantic/mIoU": 0.0}


def test_worst_and_best_images_are_those_of_the_first_score_and_none_is_named_twice():
    images = {
        "a": image_with(30),
        "b": image_with(float("nan")),
        "c": image_with(10),
        "d": image_with(90),
        "e": image_with(20),
    }
    assert worst_and_best(images, 3) == ["c", "e", "d"]
    assert worst_and_best(images, 9) == ["c", "e", "a", "d"]
    assert worst_and_best(images, 0) == worst_and_best({}, 3) == []


def test_scores_of_images_are_those_of_the_evaluator_on_the_image_alone(tmp_path):
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    inputs, outputs = [], []
    for name, predicted in (("a", [0, 0, 1, 1]), ("b", [0, 1, 1, 1])):
        Image.fromarray(truth).save(tmp_path / f"{name}.png")
        inputs.append({"file_name": name, "sem_seg_file_name": str(tmp_path / f"{name}.png")})
        outputs.append({"sem_seg": torch.nn.functional.one_hot(torch.tensor([predicted]), 16).permute(2, 0, 1).float()})
    evaluator = SemanticEvaluator(taxonomy_of("miniworld_val"))
    evaluator.process(inputs, outputs)
    images = image_scores(evaluator.evaluate())
    assert images == {"a": {"semantic/mIoU": 100.0}, "b": {"semantic/mIoU": pytest.approx(100 * (1 / 2 + 2 / 3) / 2)}}
    write_image_scores({**images, "c": {"semantic/mIoU": float("nan")}}, {"b": "pictures/b.png"}, tmp_path / "i.json")
    assert json.loads((tmp_path / "i.json").read_text()) == [
        {"image": "a", "semantic/mIoU": 100.0},
        {"image": "b", "semantic/mIoU": pytest.approx(58.333, abs=1e-3), "picture": "pictures/b.png"},
        {"image": "c", "semantic/mIoU": None},
    ]
