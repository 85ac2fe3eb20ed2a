"""What a training would do, without doing it: its data, its schedule, its model, and the memory and time that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from tabulate import tabulate

from .data.captions import reads_captions, with_captions
from .data.catalog import dataset_records
from .data.inspection import known_sizes, size_range
from .engine.teacher import has_ramp
from .errors import DearliError
from .masks.storage import MaskFolder
from .methods import method_of
from .reproduction.cost import cost_of


def data_rows(cfg: CfgNode) -> list[list[str]]:
    """(role, name, what is there) of every data set, mask folder and weight file of the config."""
    rows = []
    for role, names in (
        ("labelled", cfg.DATASETS.TRAIN),
        ("source", cfg.DATASETS.SOURCE),
        ("unlabelled", cfg.DATASETS.UNLABELED),
        ("evaluation", cfg.DATASETS.TEST),
    ):
        rows += [[role, name, _images(name)] for name in names]
        rows += [[f"sizes, {role}", name, size] for name in names if (size := _sizes(name))]
    if reads_captions(cfg):
        for name in dict.fromkeys(
            (*cfg.DATASETS.SOURCE, *cfg.DATASETS.TRAIN, *cfg.DATASETS.UNLABELED, *cfg.DATASETS.TEST)
        ):
            rows.append(["captions", name, _captions(name)])
    if cfg.DATASETS.MASKS:
        found = MaskFolder(cfg.DATASETS.MASKS).manifest()
        state = f"by {found.get('generator')}" if found else "MISSING: dearli masks generate makes them"
        rows.append(["class-agnostic masks", cfg.DATASETS.MASKS, state])
    for key, path in (("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS), ("SSL.TEACHER_WEIGHTS", cfg.SSL.TEACHER_WEIGHTS)):
        if path:
            rows.append([key, path, "there" if Path(path).is_file() else "MISSING"])
    for network in method_of(cfg).networks:
        backbone = network.config(cfg).BACKBONE
        rows.append([f"{network.role} weights", backbone.WEIGHTS or "none (random)", backbone.ARCH])
    return rows


def _images(name: str) -> str:
    try:
        return f"{len(dataset_records(name))} images"
    except DearliError as error:
        return f"MISSING: {error}"


def _sizes(name: str) -> str:
    try:
        return size_range(dataset_records(name))
    except DearliError:  # said in the row before
        return ""


def _captions(name: str) -> str:
    try:
        return f"{len(with_captions(name, dataset_records(name)))} captions"
    except DearliError as error:
        return f"MISSING: {error}"


def schedule_rows(cfg: CfgNode) -> list[list[str]]:
    """(what, value) of the schedule."""
    if not (cfg.DATASETS.TRAIN or cfg.DATASETS.SOURCE):
        return [["training", "none, the config names no data set to train on"], ["output", cfg.OUTPUT_DIR]]
    rows = [
        *([["batch, labelled", str(cfg.SOLVER.IMS_PER_BATCH)]] if cfg.DATASETS.TRAIN else []),
        *([["batch, source", str(cfg.SSL.SOURCE_IMS_PER_BATCH)]] if cfg.DATASETS.SOURCE else []),
        ["crop", f"{cfg.INPUT.CROP_SIZE} x {cfg.INPUT.CROP_SIZE}{_enlarged(cfg)}"],
        ["iterations", str(cfg.SOLVER.MAX_ITER)],
        [
            "learning rate",
            f"{cfg.SOLVER.BASE_LR:g}, {_decay(cfg)}, weight decay {cfg.SOLVER.WEIGHT_DECAY:g}",
        ],
        ["mixed precision", cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "off"],
        ["evaluation every", f"{cfg.TEST.EVAL_PERIOD} iterations" if cfg.DATASETS.TEST else "never"],
        ["output", cfg.OUTPUT_DIR],
    ]
    if cfg.DATASETS.UNLABELED:
        rows[1:1] = [
            ["batch, unlabelled", f"{cfg.SSL.IMS_PER_BATCH} from iteration {cfg.SSL.START} on"],
            ["teacher", f"{_teacher(cfg)}, pseudo-labels {_pseudo_labels(cfg)}"],
        ]
    for role, names, batch, start in (
        ("labelled", cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH, 0),
        ("source", cfg.DATASETS.SOURCE, cfg.SSL.SOURCE_IMS_PER_BATCH, 0),
        ("unlabelled", cfg.DATASETS.UNLABELED, cfg.SSL.IMS_PER_BATCH, cfg.SSL.START),
    ):
        try:
            images = sum(len(dataset_records(name)) for name in names)
        except DearliError:
            continue
        if images:
            rows.append(
                [f"passes over the {role} images", f"{max(cfg.SOLVER.MAX_ITER - start, 0) * batch / images:.1f}"]
            )
    return rows


def _enlarged(cfg: CfgNode) -> str:
    """A note where views of most labelled images are larger than the images: nothing is gained, and each step costs more."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.SOURCE)
    try:
        sides = np.concatenate([known_sizes(dataset_records(name)).min(1) for name in names] or [np.zeros(0)])
    except DearliError:
        return ""
    middle = int(np.median(sides)) if len(sides) else cfg.INPUT.CROP_SIZE
    if middle >= cfg.INPUT.CROP_SIZE:
        return ""
    return (
        f"; most images have a short side of at most {middle} pixels and are enlarged; INPUT.CROP_SIZE {max(middle // 32, 1) * 32} "
        "needs less time and memory"
    )


def _teacher(cfg: CfgNode) -> str:
    return method_of(cfg).teaching or f"EMA {cfg.SSL.EMA_DECAY:g}{' after a ramp' if has_ramp(cfg) else ''}"


def _pseudo_labels(cfg: CfgNode) -> str:
    if cfg.INPUT.TARGETS == "semantic":
        return f"from a confidence of {cfg.SSL.CONFIDENCE:g} on"
    ensemble = cfg.MODEL.ENSEMBLE.IN_PSEUDO_LABELS and cfg.MODEL.CLASSIFIER == "text"
    return f"with alpha {cfg.MODEL.ENSEMBLE.ALPHA if ensemble else 1.0:g}"


def _decay(cfg: CfgNode) -> str:
    solver = cfg.SOLVER
    return f"poly {solver.POLY_POWER:g}" if solver.SCHEDULE == "poly" else f"times {solver.DECAY:g} in each tenth"


def model_rows(cfg: CfgNode) -> list[list[str]]:
    """(what, value) of parameters, memory and time, see `cost_of`."""
    cost = cost_of(cfg)
    step = cost.step
    rows = [
        ["trainable parameters", f"{step.trainable / 1e6:.2f} M"],
        ["frozen parameters", f"{step.frozen / 1e6:.2f} M"],
        ["weights, gradients, optimiser, teacher", f"{step.fixed / 2**30:.2f} GiB"],
    ]
    if step.images:
        hours = ", ".join(f"{gpu} {hours:.2g}" for gpu, hours in cost.hours.items())
        rows += [
            [f"memory of a step with {step.images} images", f"{cost.gpu_gib:.2f} GiB on one GPU, less on several"],
            ["operations of a step", f"{step.operations / 1e12:.3g} T"],
            ["hours on one GPU", hours],
            ["these figures", cost.source],
        ]
    return rows


def plan(cfg: CfgNode) -> Iterator[str]:
    """The three tables, each as soon as it is known."""
    for headers, rows in (
        (["data", "name", "found"], data_rows),
        (["schedule", ""], schedule_rows),
        (["model", cfg.MODEL.META_ARCHITECTURE], model_rows),
    ):
        yield tabulate(rows(cfg), headers, tablefmt="github")
