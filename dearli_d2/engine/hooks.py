"""What happens around a training step: checkpoints, pictures of what the student sees, scores of the pseudo-labels."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.engine.hooks import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..data.captions import prepared_for
from ..data.catalog import ImageFolder, dataset_records, source_of
from ..data.mappers import TestMapper, passed_on
from ..data.records import Joined
from ..data.taxonomy import Taxonomy
from ..evaluation.label_quality import PanopticLabelQuality, SemanticLabelQuality
from ..files import write_atomically
from ..modeling.labeler import Labeler
from ..visualization import sample_sheet
from .checkpoints import RunCheckpoints
from .evaluation import RunEvaluation
from .optimizer import autocast
from .watch import mark, tick

if TYPE_CHECKING:
    from .trainer import DualStreamTrainer

logger = logging.getLogger(__name__)


class RunHook(HookBase):
    """A hook of a `DualStreamTrainer`, which `register_hooks` sets."""

    trainer: DualStreamTrainer


class SaveHook(RunHook):
    """Periodic checkpoints `model_0001000.pth`, and `model_final.pth` at the end."""

    def __init__(self, period: int, checkpoints: RunCheckpoints) -> None:
        self.period, self.checkpoints = period, checkpoints

    def after_step(self) -> None:
        done, last = self.trainer.iter + 1, self.trainer.max_iter
        if comm.is_main_process() and (done % self.period == 0 or done == last):
            mark(self.trainer.iter, "saving")
            name = "model_final" if done == last else f"model_{done:07d}"
            self.checkpoints.save(name, self.trainer.state(done))


class EvaluationHook(RunHook):
    """Evaluates every `period` steps (0 = never) and after the last one.

    A resumed run first repeats the evaluation after its last step, if that was interrupted.
    """

    def __init__(self, period: int, evaluation: RunEvaluation) -> None:
        self.period, self.evaluation = period, evaluation

    def before_train(self) -> None:
        done = self.trainer.start_iter
        if not done or not self._due(done):
            return
        noted = self.evaluation.noted(done)
        if noted is not None:
            self._put(noted, done)
        else:
            logger.info("evaluating what was trained before the interruption, %d iterations", done)
            self._evaluate(done)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._due(done):
            self._evaluate(done)

    def _evaluate(self, done: int) -> None:
        mark(done - 1, "evaluating")
        self._put(self.evaluation.scores(done), done)
        comm.synchronize()  # ranks may be done at different times

    def _due(self, done: int) -> bool:
        return done == self.trainer.max_iter or (self.period > 0 and done % self.period == 0)

    def _put(self, scores: dict[str, float], done: int) -> None:
        self.trainer.storage.put_scalars(**scores, smoothing_hint=False, cur_iter=done - 1)


class PictureHook(RunHook):
    """Pictures of a batch, to `OUTPUT_DIR/batches/` and TensorBoard.

    They show the weak view, its pseudo-label, the mixed strong view and its targets of the first unlabelled images, and
    labelled images with their targets. They are made in the first step, in the first one with unlabelled images, and then
    every `period` steps. The log counts the pseudo-labels of the batch.

    Args:
        period: in steps.
        taxonomy: classes of the labels.
        rows: number of images.
    """

    def __init__(self, period: int, taxonomy: Taxonomy, rows: int = 4) -> None:
        self.period, self.taxonomy, self.rows = period, taxonomy, rows

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.iter % self.period and trainer.iter != trainer.cfg.SSL.START:
            return
        if "unlabeled" in trainer.batch:
            logger.info("iteration %d: %s", trainer.iter + 1, self._count(trainer.batch["unlabeled"]))
        for name, samples in trainer.batch.items():
            sheet = sample_sheet(samples[: self.rows], self.taxonomy)
            path = Path(trainer.cfg.OUTPUT_DIR) / "batches" / f"{trainer.iter:07d}_{name}.png"
            write_atomically(path, sheet.save)
            pixels = np.asarray(sheet).transpose(2, 0, 1)
            get_event_storage().put_image(f"batches/{name}", pixels)

    def _count(self, samples: list[dict[str, Any]]) -> str:
        """Counts the segments that the unlabelled images of a batch teach, in all and of the most frequent classes."""
        counts = Counter(label for sample in samples for label in sample["targets"].labels.tolist())
        names = self.taxonomy.main_names
        shown = ", ".join(f"{names[label]} {count}" for label, count in counts.most_common(8))
        return f"{counts.total()} segments as pseudo-labels of {len(samples)} images" + (f": {shown}" if shown else "")


class PseudoLabelMonitor(RunHook):
    """Quality of the pseudo-labels of unlabelled images whose annotations exist. Training learns nothing from it.

    On benchmarks the "unlabelled" part has annotations. The scores are "pseudo_label/PQ", or of semantic labels
    "pseudo_label/mIoU" of the pixels that carry a loss and "pseudo_label/coverage", the share of these pixels in percent.

    Args:
        period: in steps; the first step with unlabelled images is always scored.
        images: number of images.
        labeler: whose labels are scored.
        taxonomy: classes of the labels.
    """

    def __init__(self, period: int, images: int, labeler: Labeler, taxonomy: Taxonomy) -> None:
        self.period, self.images, self.labeler, self.taxonomy = period, images, labeler, taxonomy

    def before_train(self) -> None:
        cfg = self.trainer.cfg
        names = [name for name in cfg.DATASETS.UNLABELED if not isinstance(source_of(name), ImageFolder)]
        dicts = Joined([prepared_for(cfg, name, dataset_records(name, annotated=True)) for name in names])
        if not dicts:
            logger.warning("SSL.MONITOR_PERIOD: no unlabelled image has annotations, pseudo-labels are not scored")
        chosen = np.linspace(0, len(dicts) - 1, min(self.images, len(dicts))).astype(int)
        self.count = len(chosen)
        self.dicts = [dicts[i] for i in chosen][comm.get_rank() :: comm.get_world_size()]
        self.mapper = TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        begin = self.trainer.cfg.SSL.START + 1
        if not (done >= begin and (done % self.period == 0 or done in (begin, self.trainer.max_iter))):
            return
        semantic = self.trainer.cfg.INPUT.TARGETS == "semantic"
        quality = SemanticLabelQuality(self.taxonomy) if semantic else PanopticLabelQuality(self.taxonomy)
        mark(done - 1, "evaluating")
        for d in self.dicts:
            tick()
            with autocast(self.trainer.cfg):
                sample = {**passed_on(d), "image": self.mapper(d)["image"]}
                targets = self.labeler.label([sample])["targets"][0]
            quality.add(targets, d)
        for part in comm.gather(quality)[1:]:  # on the main process the others' counts, else nothing
            quality.merge(part)
        if comm.is_main_process() and self.dicts:
            scores = quality.scores()
            get_event_storage().put_scalars(
                smoothing_hint=False, **{f"pseudo_label/{name}": value for name, value in scores.items()}
            )
            shown = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
            logger.info("iteration %d: pseudo-labels of %d images: %s", done, self.count, shown)
