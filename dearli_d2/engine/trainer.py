"""The training loop: forward, backward, clip, step; everything around it is a hook."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase, create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from ..checkpoint import load_state, load_weights
from ..data.build import build_streams, labeled_dicts
from ..data.catalog import class_source, taxonomy_of
from ..data.overlap import check_overlap, check_roles
from ..data.taxonomy import Taxonomy, named, same_classes
from ..data.validation import validate_dataset
from ..errors import ConfigError, DatasetError, TrainingError
from ..files import write_atomically
from ..masks.storage import MaskFolder
from ..modeling import build_model
from ..modeling.ranks import mean_over_ranks
from .checkpoints import RunCheckpoints
from .classmix import ClassMix
from .cutmix import CutMix
from .evaluation import check_test_classes, evaluate
from .hooks import EvaluationHook, PictureHook, PseudoLabelMonitor, SaveHook
from .metrics import MetricsHook, recent, restore
from .optimizer import autocast, build_optimizer, build_scaler, build_scheduler
from .pseudo_labels import PseudoLabeler
from .resume import check_complete, check_data, check_settings, describe_data, scoring_settings
from .run_folder import FolderLock
from .teacher import EMATeacher, build_labeler

logger = logging.getLogger(__name__)


def check_run(cfg: CfgNode, resume: bool) -> None:
    """Everything that can be known to fail before training starts.

    Raises:
        ConfigError, DatasetError.
    """
    world_size = comm.get_world_size()
    for key, batch, used in (
        ("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.TRAIN),
        ("SSL.IMS_PER_BATCH", cfg.SSL.IMS_PER_BATCH, cfg.DATASETS.UNLABELED),
        ("SSL.SOURCE_IMS_PER_BATCH", cfg.SSL.SOURCE_IMS_PER_BATCH, cfg.DATASETS.SOURCE),
    ):
        if used and batch % world_size:
            raise ConfigError(f"{key} {batch} is no multiple of the {world_size} processes")
    check_mixing(cfg, world_size)
    if not (cfg.DATASETS.TRAIN or cfg.DATASETS.SOURCE):
        raise DatasetError("DATASETS.TRAIN names no data set, nor does DATASETS.SOURCE")
    check_fresh(cfg, resume)
    if cfg.SSL.TEACHER_WEIGHTS and not Path(cfg.SSL.TEACHER_WEIGHTS).is_file():
        raise ConfigError(f"SSL.TEACHER_WEIGHTS: no file {cfg.SSL.TEACHER_WEIGHTS}")
    if cfg.DATASETS.UNLABELED and cfg.SSL.START >= cfg.SOLVER.MAX_ITER:
        logger.warning(
            "SSL.START %d is not below SOLVER.MAX_ITER %d: unlabelled images take no part",
            cfg.SSL.START,
            cfg.SOLVER.MAX_ITER,
        )
    check_datasets(cfg)


def check_mixing(cfg: CfgNode, processes: int) -> None:
    """Raises `ConfigError` where unlabelled images are to be mixed but each process has only one: partners are other images of
    the same process."""
    images = cfg.SSL.IMS_PER_BATCH // processes
    if cfg.DATASETS.UNLABELED and cfg.SSL.CUTMIX and images < 2:
        on = f" on {processes} processes" if processes > 1 else ""
        raise ConfigError(
            f"SSL.MIX {cfg.SSL.MIX} needs two unlabelled images a process, but SSL.IMS_PER_BATCH {cfg.SSL.IMS_PER_BATCH}{on} "
            "gives one, which has no partner; raise SSL.IMS_PER_BATCH, use fewer processes, or set SSL.CUTMIX 0.0 to leave "
            "mixing out"
        )


def check_fresh(cfg: CfgNode, resume: bool) -> None:
    """Raises `ConfigError` if OUTPUT_DIR holds a run that is not to be resumed; touches nothing."""
    if not resume and RunCheckpoints(cfg.OUTPUT_DIR, 1).last() is not None:
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} already holds a run; --resume continues it, or choose another folder"
        )


def check_datasets(cfg: CfgNode) -> None:
    """Validates every data set that the config names and logs what is in it.

    Raises:
        ConfigError, DatasetError.
    """
    check_roles(cfg)
    classes = None if cfg.MODEL.CLASSIFIER == "none" else cfg.MODEL.NUM_CLASSES
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.SOURCE, *cfg.DATASETS.TEST)):
        logger.info("checking the files of %s ...", name)
        logger.info("%s", validate_dataset(name, classes))
    for name in cfg.DATASETS.UNLABELED:
        logger.info("checking the files of %s ...", name)
        logger.info("%s", validate_dataset(name))
    check_overlap(cfg)
    if cfg.DATASETS.MASKS:
        logger.info("%s", MaskFolder(cfg.DATASETS.MASKS).check(labeled_dicts(cfg)))


class DualStreamTrainer(TrainerBase):
    """Trains the model of a config; `train()` runs to SOLVER.MAX_ITER. With DATASETS.UNLABELED a step also learns from the
    pseudo-labels of an EMA teacher (DEARLi, Sec. 3.1), or of the model's own networks for each other (SegKC); without, from
    labels alone.

    Random numbers of a step follow from (SEED, rank, iteration), samples from the stream's positions; so a resumed run
    repeats the interrupted one exactly.

    Args:
        cfg: a frozen config. resume: continue the run in OUTPUT_DIR if there is one.
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
        state = self.checkpoints.load_last() if resume else None
        if state is not None:
            self._check_resumed(state)
        logger.info("building the model ...")
        self.student = build_model(cfg, self.taxonomy, load_backbone=state is None)
        if state is None:
            self._load_start_weights()
        self.labeler = build_labeler(cfg, self.student, fresh=state is None)
        self.optimizer = build_optimizer(cfg, self.student)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        self.scaler = build_scaler(cfg)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.storage = EventStorage()
        self.bad_steps, self.best = 0, -math.inf
        self.data = describe_data(cfg)
        if state is not None:
            self._restore(state)
        self.student.check_training(cfg)  # some methods check what follows from their weights
        self.pseudo_labeler = self._build_pseudo_labeler()
        devices = [torch.cuda.current_device()] if cfg.MODEL.DEVICE == "cuda" else None
        self.model = create_ddp_model(self.student, broadcast_buffers=False, device_ids=devices)
        self.model.train()
        self.stream = build_streams(cfg, self.start_iter * cfg.SOLVER.ACCUMULATION_STEPS)
        self.batch: dict[str, list[dict]] = {}  # the last one, with pseudo-labels
        self.register_hooks(self._build_hooks())
        if comm.is_main_process() and self.start_iter < self.max_iter:
            path = Path(cfg.OUTPUT_DIR) / "config.yaml"
            write_atomically(path, lambda temporary: temporary.write_text(cfg.dump()))

    def _load_start_weights(self) -> None:
        cfg = self.cfg
        if cfg.MODEL.WEIGHTS:
            report = load_weights(self.student, cfg.MODEL.WEIGHTS, strict=False)
            logger.info("%s\n%s", cfg.MODEL.WEIGHTS, report.carry_over())
        elif not cfg.MODEL.BACKBONE.WEIGHTS:
            logger.warning(
                "the backbone starts from random weights: MODEL.BACKBONE.WEIGHTS and MODEL.WEIGHTS are empty"
            )

    def _build_pseudo_labeler(self) -> PseudoLabeler | None:
        if self.labeler is None:
            return None
        ssl = self.cfg.SSL
        mix: CutMix | ClassMix | None = None
        if ssl.CUTMIX:
            by_class = ssl.MIX == "classmix"
            mix = ClassMix(ssl.CUTMIX) if by_class else CutMix(ssl.CUTMIX, ssl.CUTMIX_AREA, ssl.CUTMIX_ASPECT)
        things = self.taxonomy.thing_ids if self.cfg.INPUT.TARGETS == "panoptic" else ()
        return PseudoLabeler(self.labeler.label, mix, things, self.student.device)

    def _build_hooks(self) -> list[hooks.HookBase]:
        cfg = self.cfg
        result = [hooks.IterationTimer()]
        if self.pseudo_labeler is not None:
            if cfg.SSL.PICTURE_PERIOD and comm.is_main_process():
                result.append(PictureHook(cfg.SSL.PICTURE_PERIOD))
            if cfg.SSL.MONITOR_PERIOD:
                result.append(PseudoLabelMonitor(cfg.SSL.MONITOR_PERIOD, cfg.SSL.MONITOR_IMAGES))
        # a checkpoint holds the scalars of its step; the evaluation after it is repeated if it was interrupted
        result.append(SaveHook(cfg.SOLVER.CHECKPOINT_PERIOD))
        if cfg.DATASETS.TEST:
            result.append(EvaluationHook(cfg.TEST.EVAL_PERIOD))
        if comm.is_main_process():
            result.append(MetricsHook(cfg.OUTPUT_DIR, self.start_iter, self.max_iter))
        return result

    @property
    def teacher(self) -> EMATeacher | None:
        """The EMA teacher, if it is one that makes the pseudo-labels."""
        return self.labeler if isinstance(self.labeler, EMATeacher) else None

    # ------------------------------------------------------------------------------------------ the step

    def run_step(self) -> None:
        """One optimiser step."""
        accumulate = self.cfg.SOLVER.ACCUMULATION_STEPS
        self.student.set_progress(self.iter, self.max_iter)
        self.optimizer.zero_grad(set_to_none=True)
        names: list[str] = []
        sums = torch.zeros(())
        files: list[str] = []
        start = time.perf_counter()
        data_time = 0.0
        for index in range(accumulate):
            batch = next(self.stream)
            data_time += time.perf_counter() - start
            files += [x["file_name"] for stream in batch.values() for x in stream]
            seeds = np.random.SeedSequence([self.cfg.SEED, comm.get_rank(), self.iter, index])
            torch.manual_seed(int(seeds.generate_state(1)[0]))  # after loading, which may draw numbers itself
            if "unlabeled" in batch:
                rng = np.random.default_rng(seeds)
                with autocast(self.cfg):
                    batch["unlabeled"] = self.pseudo_labeler(batch["unlabeled"], rng)
            self.batch = batch
            last = index == accumulate - 1
            with nullcontext() if last or not hasattr(self.model, "no_sync") else self.model.no_sync():
                with autocast(self.cfg):
                    losses = self.model(batch)
                self.scaler.scale(sum(losses.values()) / accumulate).backward()
            names, values = list(losses), torch.stack([loss.detach().float() for loss in losses.values()]) / accumulate
            sums = values if index == 0 else sums + values
            start = time.perf_counter()
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        self._apply(names, torch.cat([sums, norm.float().view(1)]), files)
        self.scheduler.step()
        get_event_storage().put_scalars(
            data_time=data_time, lr=max(g["lr"] for g in self.optimizer.param_groups), smoothing_hint=False
        )

    def _clip(self) -> torch.Tensor:
        """Scales the gradients to the full-model norm of the config; returns the norm before."""
        options = self.cfg.SOLVER.CLIP_GRADIENTS
        limit = options.CLIP_VALUE if options.ENABLED else math.inf
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, limit)

    def _apply(self, names: list[str], values: torch.Tensor, files: list[str]) -> None:
        """Steps the optimiser, unless a loss of any rank is not finite: then all ranks skip the step and count it.

        Args:
            names: of the losses. values: these losses and the norm of the gradients, on the device. files: of the samples.
        """
        # the step's one wait for the losses
        own, joint = torch.stack([values, mean_over_ranks(values)]).cpu().tolist()
        losses, norm = dict(zip(names, joint[:-1], strict=True)), joint[-1]
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        # gradients are the same on all ranks; with loss scaling an infinite norm is ordinary and the scaler skips
        if bad or (not self.scaler.is_enabled() and not math.isfinite(norm)):
            suspects = comm.all_gather([] if all(map(math.isfinite, own[:-1])) else files)
            self._skip(bad, norm, [file for part in suspects for file in part] or files)
            return
        self.bad_steps = 0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.labeler is not None:
            self.labeler.follow(self.student, self.iter)
        get_event_storage().put_scalars(total_loss=sum(losses.values()), grad_norm=norm, **losses)

    def _skip(self, bad: list[str], norm: float, files: list[str]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        self.bad_steps += 1
        what = f"losses not finite: {', '.join(bad)}" if bad else f"gradient norm is {norm}"
        message = f"iteration {self.iter}: {what}; files: {', '.join(files)}"
        logger.warning("step skipped (%d in a row). %s", self.bad_steps, message)
        if self.bad_steps > self.cfg.SOLVER.MAX_BAD_STEPS:
            path = (
                self.checkpoints.save_apart("bad_step", self.state(self.iter))
                if comm.is_main_process()
                else "bad_step.pth"
            )
            raise TrainingError(
                f"{self.bad_steps} steps in a row could not be used. {message}. The state is in {path}; "
                "a lower SOLVER.BASE_LR or SOLVER.AMP.ENABLED False usually helps"
            )

    # ------------------------------------------------------------------------------------------ state

    def state(self, iteration: int) -> dict:
        """All that a resumed run needs, and what prediction needs; `iteration` steps are done."""
        state = {
            "model": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": iteration,
            "best": self.best,
            "bad_steps": self.bad_steps,
            "recent": recent(self.storage),
            "data": self.data,
            "config": self.cfg.dump(),
        }
        if self.taxonomy is not None:  # with the names that the model reads
            state["taxonomy"] = self.student.taxonomy.to_json()
        if self.labeler is not None and (labeler := self.labeler.state_dict()):
            state["teacher"] = labeler
        return state

    def _restore(self, state: dict) -> None:
        load_state(self.student, state["model"], "checkpoint", strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        rates = zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        for group, (base, factor) in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = base * factor(self.scheduler.last_epoch)  # another one where SOLVER.MAX_ITER has changed
        self.scaler.load_state_dict(state["scaler"])
        if self.labeler is not None:
            if "teacher" in state:
                self.labeler.load_state_dict(state["teacher"])
            else:  # of a run without unlabelled images so far
                self.labeler.follow(self.student, state["iteration"] - 1)
        self.start_iter, self.best = state["iteration"], self.checkpoints.best_score()
        self.bad_steps = state.get("bad_steps", 0)  # this and the next are not in checkpoints of earlier versions
        restore(self.storage, state.get("recent", {}))

    def _check_resumed(self, state: dict) -> None:
        """Settings, classes and images must be those that the run began with, see `resume`. A run without unlabelled images may
        go on with them up to SSL.START, from which on they count; one with them needs them."""
        check_complete(state, self.checkpoints.last())
        folder, done, start = self.cfg.OUTPUT_DIR, state["iteration"], self.cfg.SSL.START
        had, has = bool(CfgNode.load_cfg(state["config"]).DATASETS.UNLABELED), bool(self.cfg.DATASETS.UNLABELED)
        if had and not has:
            raise ConfigError(
                f"OUTPUT_DIR {folder} holds a run with unlabelled images; resume it with its DATASETS.UNLABELED"
            )
        if has and not had and done > start:
            raise ConfigError(
                f"OUTPUT_DIR {folder} holds a run without unlabelled images at iteration {done}, after SSL.START {start}; "
                "resume it without DATASETS.UNLABELED, or raise SSL.START"
            )
        check_settings(state, self.cfg, self.checkpoints.evaluated().get("settings"))
        saved = Taxonomy.of_checkpoint(state, f"the checkpoint in {folder}")
        if self.taxonomy is not None and saved is not None:
            found = named(self.cfg, self.taxonomy)
            same_classes(saved, found, f"the run in {folder}", class_source(self.cfg), synonyms=True)
        check_data(state.get("data", {}), self.cfg)

    # ------------------------------------------------------------------------------------------ the loop

    def train(self) -> None:
        """Runs from the start iteration to SOLVER.MAX_ITER. Of a complete run, what its end lacks is made up for: the last
        evaluation, the best model, lines of metrics.json."""
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

    def scores(self, done: int) -> dict[str, float]:
        """Evaluates student, teacher or both after `done` steps, as TEST.WEIGHTS asks, and keeps the best model. The names of
        the second one's scores have a prefix. On the main process; {} elsewhere."""
        which, teacher = self.cfg.TEST.WEIGHTS, None if self.labeler is None else self.labeler.model
        scores = evaluate(self.cfg, teacher if which == "teacher" else self.model, done)
        if which == "both":
            scores |= evaluate(self.cfg, teacher, done, "teacher")
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
