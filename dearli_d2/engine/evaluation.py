"""Evaluation of a model on a data set: loop, tables, JSON, pictures."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from ..data.captions import prepared_for
from ..data.catalog import dataset_records, taxonomy_of
from ..data.mappers import TestMapper, read_image
from ..data.records import Records
from ..data.sizes import enlarge_read_out
from ..data.taxonomy import Taxonomy, named, same_classes
from ..errors import ConfigError
from ..evaluation import build_evaluator
from ..evaluation.report import image_scores, scalars, tables, worst_and_best, write_image_scores, write_results
from ..files import picture_names
from ..modeling.per_pixel.semantic import class_segments
from ..modeling.segmenter import Segmenter
from ..visualization import save_comparison
from .checkpoints import RunCheckpoints
from .optimizer import autocast
from .resume import scoring_settings
from .watch import tick

logger = logging.getLogger(__name__)

Model = Segmenter | DistributedDataParallel


class _Ticks(DatasetEvaluator):
    """Tells the other ranks that this one gets on."""

    def process(self, inputs: Any, outputs: Any) -> None:
        tick()


def check_test_classes(cfg: CfgNode, taxonomy: Taxonomy, source: str | Path) -> None:
    """Raises `DatasetError` unless every set of DATASETS.TEST has the classes of `taxonomy`, that of `source`."""
    for name in cfg.DATASETS.TEST:
        found = named(cfg, taxonomy_of(name))
        same_classes(taxonomy, found, source, f"DATASETS.TEST: {name}", kinds=cfg.TEST.PANOPTIC_ON)


def evaluate(cfg: CfgNode, model: Model, iteration: int | None = None, label: str = "") -> dict[str, float]:
    """Evaluates on every set of DATASETS.TEST; writes results to `OUTPUT_DIR/evaluation/[LABEL/]SET/`.

    These are `results.json`, `per_image.json`, and pictures of the worst and the best images.

    Args:
        label: tells the results of one of several models apart.

    Returns:
        Scalars such as "panoptic/PQ" on the main process (prefixed by the label, and by the set's name if there are
        several), {} elsewhere.
    """
    collected = {}
    for name in cfg.DATASETS.TEST:
        dicts, taxonomy = prepared_for(cfg, name, dataset_records(name)), taxonomy_of(name)
        mapper = TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        loader = build_detection_test_loader(dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)
        with autocast(cfg, cfg.TEST.AMP):
            results = inference_on_dataset(model, loader, DatasetEvaluators([build_evaluator(cfg, taxonomy), _Ticks()]))
        if not comm.is_main_process():
            continue
        folder = Path(cfg.OUTPUT_DIR) / "evaluation" / label / name.replace("/", "_")
        write_results(results, folder / "results.json", dataset=name, iteration=iteration)
        logger.info(
            "%s%s, %s images%s\n%s",
            f"{label}: " if label else "",
            name,
            len(dicts),
            "" if iteration is None else f", iteration {iteration}",
            tables(results),
        )
        images = image_scores(results)
        pictures = write_pictures(cfg, model, dicts, worst_and_best(images, cfg.TEST.PICTURES), folder)
        write_image_scores(images, pictures, folder / "per_image.json")
        prefix = (f"{label}/" if label else "") + (f"{name}/" if len(cfg.DATASETS.TEST) > 1 else "")
        collected.update({prefix + key: value for key, value in scalars(results).items()})
    comm.synchronize()
    return collected


class RunEvaluation:
    """Evaluates the models of a training run and keeps the best one.

    Args:
        cfg: TEST.WEIGHTS says which models, TEST.BEST_METRIC by which score they are compared.
        student: as it is trained, perhaps in its data-parallel wrapper.
        teacher: None where there is none.
        checkpoints: of the run.
        state: content of a checkpoint after a number of steps.

    Attributes:
        best: the score of the best model so far.

    Raises:
        ConfigError: the teacher is asked for and there is none.
    """

    def __init__(
        self,
        cfg: CfgNode,
        student: Model,
        teacher: Segmenter | None,
        checkpoints: RunCheckpoints,
        state: Callable[[int], dict[str, Any]],
    ) -> None:
        self.cfg, self.checkpoints, self.state = cfg, checkpoints, state
        which = cfg.TEST.WEIGHTS
        if which != "student" and teacher is None:
            raise ConfigError(f"TEST.WEIGHTS is {which} but this model has no teacher; set TEST.WEIGHTS student")
        self.models: dict[str, Model] = {"": student} if teacher is None or which != "teacher" else {"": teacher}
        if teacher is not None and which == "both":
            self.models["teacher"] = teacher
        self.best = -math.inf

    def scores(self, done: int) -> dict[str, float]:
        """Evaluates after `done` steps and keeps the best model.

        Returns:
            Scores by name, those of the second model with a prefix; on the main process, {} elsewhere.
        """
        scores: dict[str, float] = {}
        for label, model in self.models.items():
            scores |= evaluate(self.cfg, model, done, label)
        metric = self.cfg.TEST.BEST_METRIC
        if not (comm.is_main_process() and scores):
            return {}
        value = next((v for key, v in scores.items() if key.endswith(metric)), -math.inf)
        if metric and value > self.best:
            self.best = value
            self.checkpoints.save_apart("model_best", self.state(done))
            logger.info("best %s so far: %.2f, saved as model_best.pth", metric, value)
        self.checkpoints.note_evaluation(done, scores, scoring_settings(self.cfg))
        return scores

    def noted(self, done: int) -> dict[str, float] | None:
        """The scores after `done` steps, if an earlier process has evaluated them and noted the result."""
        note = comm.all_gather(self.checkpoints.evaluated())[0]  # the main process's
        return note["scores"] if note.get("iteration") == done else None

    def state_dict(self) -> dict[str, Any]:
        """The entry of a checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the score of the best model in the folder, which may be newer than the checkpoint."""
        self.best = self.checkpoints.best_score()


def unwrap(model: Model) -> Segmenter:
    """The model inside a data-parallel wrapper, or itself."""
    return cast(Segmenter, model.module) if isinstance(model, DistributedDataParallel) else model


@torch.no_grad()
def write_pictures(cfg: CfgNode, model: Model, dicts: Records, files: Sequence[str], folder: Path) -> dict[str, str]:
    """Draws image, predictions and ground truth side by side, in place of the pictures of an earlier evaluation.

    Predictions are the panoptic and the semantic output, as far as the model gives them.

    Args:
        cfg: TEST.PICTURES 0 draws nothing.
        model: in any mode, which it keeps.
        dicts: of the data set.
        files: the images to draw.
        folder: `pictures/` is written there.

    Returns:
        {file of an image: its picture, relative to `folder`}.
    """
    model = unwrap(model)
    taxonomy = model.taxonomy  # None: the model knows no classes, so that there is nothing to draw
    if taxonomy is None or not files:
        return {}
    shutil.rmtree(folder / "pictures", ignore_errors=True)  # they may show other images
    training, mapper = model.training, TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    model.eval()
    wanted = set(files)
    places = {file: i for i, file in enumerate(dicts.files()) if file in wanted}
    chosen = [dicts[places[file]] for file in files]
    written = {file: f"pictures/{name}.png" for file, name in zip(files, picture_names(files), strict=True)}
    for d in chosen:
        with autocast(cfg, cfg.TEST.AMP):
            output = model([mapper(d)])[0]
        image, found = read_image(d["file_name"]), {}
        if "panoptic_seg" in output:
            found["panoptic prediction"] = output["panoptic_seg"]
        if "sem_seg" in output:
            found["semantic prediction"] = class_segments(output["sem_seg"])
        maps = {
            title: (enlarge_read_out(ids.cpu().numpy(), image.shape[:2]), segments)
            for title, (ids, segments) in found.items()
        }
        save_comparison(folder / written[d["file_name"]], d["file_name"], image, maps, taxonomy, truth=d)
    model.train(training)
    return written
