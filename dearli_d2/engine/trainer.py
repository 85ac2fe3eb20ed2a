"""The training loop: a step as in the papers, everything around it in objects of its own and in hooks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase, create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ..data.build import TrainingImages, build_streams
from ..data.catalog import class_source, taxonomy_of
from ..data.taxonomy import named
from ..files import write_atomically
from ..modeling import build_model
from ..modeling.mask2former.compiled import compile_decoders
from ..modeling.norms import share_statistics
from ..modeling.ranks import gradient_exchange
from .agreement import check_data_alike, check_weights_alike, load_last_of_rank_0
from .checkpoints import RunCheckpoints
from .checks import check_run
from .evaluation import RunEvaluation, check_test_classes
from .guard import BadStepGuard
from .hooks import EvaluationHook, PictureHook, PseudoLabelMonitor, SaveHook
from .metrics import WINDOW, MetricsHook, RecentScalars
from .optimizer import autocast, build_clipping, build_optimizer, build_scaler, build_scheduler
from .resume import check_resumed, describe_data
from .run_folder import FolderLock
from .seeds import seed_step
from .start import load_start_weights
from .state import RunState, Stateful
from .step import Batch, StepRecord
from .strong_views import build_strong_views
from .teacher import EMATeacher, build_labeler
from .trackers import Tracker, build_trackers
from .watch import mark

logger = logging.getLogger(__name__)


class DualStreamTrainer(TrainerBase):
    """Trains the model of a config from labelled and unlabelled images; `train()` runs to SOLVER.MAX_ITER.

    With DATASETS.UNLABELED a step also learns from the pseudo-labels of a labeler: an EMA teacher (Mean Teacher; DEARLi,
    Sec. 3.1), or what the model declares (`Segmenter.labeler`). Without, it learns from labels alone.

    Random numbers of a step follow from (SEED, rank, iteration), samples from the positions in the streams. So a resumed
    run repeats the interrupted one exactly.

    Args:
        cfg: a frozen config.
        resume: continue the run in OUTPUT_DIR if there is one.

    Raises:
        ConfigError, DatasetError, WeightsError: the run cannot succeed; known before the first step.
    """

    def __init__(self, cfg: CfgNode, resume: bool = False) -> None:
        super().__init__()
        self.lock = FolderLock(cfg.OUTPUT_DIR) if comm.is_main_process() else None
        check_run(cfg, resume)
        self.cfg = cfg
        self.checkpoints = RunCheckpoints(cfg.OUTPUT_DIR, cfg.SOLVER.KEEP_CHECKPOINTS)
        torch.manual_seed(cfg.SEED)  # the same start on every rank
        self.taxonomy = None if cfg.MODEL.CLASSIFIER == "none" else taxonomy_of(class_source(cfg))
        if self.taxonomy is not None:
            check_test_classes(cfg, named(cfg, self.taxonomy), class_source(cfg))
        check_data_alike(cfg)
        saved = load_last_of_rank_0(self.checkpoints) if resume else None
        if saved is not None:
            check_resumed(saved, cfg, self.taxonomy, self.checkpoints)
        logger.info("building the model ...")
        self.student = build_model(cfg, self.taxonomy, load_backbone=saved is None)
        load_start_weights(cfg, self.student, saved)
        self.student.check_training(cfg)  # some methods check what follows from their weights
        self.student.check_images(TrainingImages(cfg))
        check_weights_alike(self.student)
        if comm.get_world_size() > 1:
            share_statistics(self.student)
        if cfg.MODEL.COMPILE:
            compile_decoders(self.student, self.student.device)
        self.labeler = build_labeler(cfg, self.student, fresh=saved is None)
        self.strong_views = build_strong_views(cfg, self.student)
        self.optimizer = build_optimizer(cfg, self.student)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        self.scaler = build_scaler(cfg)
        self.clip_gradients = build_clipping(cfg, self.optimizer)
        devices = [torch.cuda.current_device()] if cfg.MODEL.DEVICE == "cuda" else None
        self.model = create_ddp_model(self.student, broadcast_buffers=False, device_ids=devices)
        self.model.train()
        self.storage = EventStorage()
        self.guard = BadStepGuard(cfg.SOLVER.MAX_BAD_STEPS, self.scaler, self._save_bad_step)
        teacher = None if self.labeler is None else self.labeler.model
        self.evaluation = RunEvaluation(cfg, self.model, teacher, self.checkpoints, self.state)
        self._state = self._collect_state()
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        if saved is not None:
            self._state.restore(saved)
            self.start_iter = saved["iteration"]
        self.parts = cfg.SOLVER.ACCUMULATION_STEPS
        self.stream = build_streams(cfg, self.start_iter * self.parts)
        self.batch: Batch = {}  # the last one, with pseudo-labels
        self.register_hooks(self._build_hooks())
        if comm.is_main_process() and self.start_iter < self.max_iter:
            path = Path(cfg.OUTPUT_DIR) / "config.yaml"
            write_atomically(path, lambda temporary: temporary.write_text(cfg.dump()))

    def run_step(self) -> None:
        """One step of semi-supervised training: DEARLi's and Mean Teacher's, or that of the method that the config names."""
        record = StepRecord(self.parts)
        self.student.set_progress(self.iter, self.max_iter)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.parts):
            mark(self.iter, "loading images")
            self.batch = batch = record.load(self.stream)  # labelled and unlabelled images
            rng = seed_step(self.cfg.SEED, self.iter, part)  # after loading, which may draw numbers itself
            if self.labeler is not None and "unlabeled" in batch:
                mark(self.iter, "labelling")
                with autocast(self.cfg):  # not that of the losses: weights cast here would have no gradient there
                    labels = self.labeler.label(batch["unlabeled"])  # the teacher labels the weak views
                    batch["unlabeled"] = self.strong_views(batch["unlabeled"], labels, rng)  # and both are mixed
            mark(self.iter, "training")
            with gradient_exchange(self.model, now=part == self.parts - 1):
                with autocast(self.cfg):
                    losses = self.model(batch)  # of the student, for both kinds of images
                self.scaler.scale(record.add(losses)).backward()
        self.scaler.unscale_(self.optimizer)
        norm = self.clip_gradients()
        scalars = self.guard.step(self.iter, record.names, record.losses, norm, record.files)
        if scalars is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.labeler is not None:
                self.labeler.follow(self.student, self.iter)  # the teacher becomes the average of the students
            self.storage.put_scalars(**scalars)
        self.scheduler.step()
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        self.storage.put_scalars(data_time=record.data_time, lr=rate, smoothing_hint=False)

    @property
    def teacher(self) -> EMATeacher | None:
        """The EMA teacher, if it is one that makes the pseudo-labels."""
        return self.labeler if isinstance(self.labeler, EMATeacher) else None

    def state(self, done: int) -> dict[str, Any]:
        """The content of a checkpoint after `done` steps; see `RunState.at`."""
        return self._state.at(done)

    def _collect_state(self) -> RunState:
        parts: dict[str, Stateful] = {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }
        if self.labeler is not None:
            parts["teacher"] = self.labeler
        facts: dict[str, Any] = {"data": describe_data(self.cfg), "config": self.cfg.dump()}
        if self.taxonomy is not None and self.student.taxonomy is not None:  # with the names that the model reads
            facts["taxonomy"] = self.student.taxonomy.to_json()
        return RunState(self.student, parts, [self.evaluation, self.guard, RecentScalars(self.storage)], facts)

    def _save_bad_step(self, done: int) -> Path:
        return self.checkpoints.save_apart("bad_step", self.state(done))

    def _build_hooks(self) -> list[hooks.HookBase]:
        cfg = self.cfg
        result = [hooks.IterationTimer()]
        ssl, classes = cfg.SSL, self.taxonomy
        if self.labeler is not None and classes is not None:  # a model with pseudo-labels has classes
            if ssl.PICTURE_PERIOD and comm.is_main_process():
                result.append(PictureHook(ssl.PICTURE_PERIOD, classes))
            if ssl.MONITOR_PERIOD:
                result.append(PseudoLabelMonitor(ssl.MONITOR_PERIOD, ssl.MONITOR_IMAGES, self.labeler, classes))
        # a checkpoint holds the scalars of its step; the evaluation after it is repeated if it was interrupted
        result.append(SaveHook(cfg.SOLVER.CHECKPOINT_PERIOD, self.checkpoints))
        if cfg.DATASETS.TEST:
            result.append(EvaluationHook(cfg.TEST.EVAL_PERIOD, self.evaluation))
        if comm.is_main_process():
            result.append(MetricsHook(cfg.OUTPUT_DIR, self.start_iter, self.max_iter, self._trackers))
        return result

    def _trackers(self) -> list[Tracker]:
        if self.start_iter >= self.max_iter:
            return []
        return build_trackers(self.cfg, self.start_iter > 0, WINDOW)

    def train(self) -> None:
        """Runs from the start iteration to SOLVER.MAX_ITER.

        For a complete run it only adds missing results of the end: the last evaluation, the best model, lines of metrics.json.
        """
        if self.start_iter >= self.max_iter:
            logger.info("the run is already complete: %d of %d iterations", self.start_iter, self.max_iter)
        else:
            logger.info("Starting training from iteration %d; the first step may take a while", self.start_iter)
        self.iter = self.start_iter
        try:
            with self.storage:
                try:
                    self.before_train()
                    for iteration in range(self.start_iter, self.max_iter):
                        self.iter = iteration
                        self.before_step()
                        self.run_step()
                        self.after_step()
                finally:
                    self.after_train()
        finally:
            if self.lock is not None:
                self.lock.release()
