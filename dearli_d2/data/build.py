"""The training streams of a config: which images, through which mapper, in which order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import DatasetError
from ..masks.storage import MaskFolder
from ..methods import method_of
from .captions import prepared_for
from .catalog import class_areas, class_source, dataset_records, taxonomy_of
from .mappers import (
    MaskTrainMapper,
    PanopticTrainMapper,
    UnlabeledTrainMapper,
    panoptic_targets,
    semantic_targets,
)
from .photometry import ColorAugmentation, StrongPhotometry
from .records import Joined, Records, without_labels
from .streams import RareClassOrder, build_stream
from .taxonomy import first_difference
from .views import WeakGeometry, scale_steps
from .zero_shot import unseen_classes, without_classes


def labeled_dicts(cfg: CfgNode, key: str = "TRAIN") -> Records:
    """All images of DATASETS.TRAIN or DATASETS.SOURCE. Raises `DatasetError` if the classes of any two sets differ."""
    if cfg.MODEL.CLASSIFIER != "none":
        first = class_source(cfg)
        for name in cfg.DATASETS[key]:
            if taxonomy_of(name).names != taxonomy_of(first).names:
                what = first_difference(taxonomy_of(first), taxonomy_of(name), synonyms=True, kinds=False)
                raise DatasetError(f"DATASETS.{key}: {name} and {first} have different classes: {what}")
    records = Joined([prepared_for(cfg, name, dataset_records(name)) for name in cfg.DATASETS[key]])
    if cfg.DATASETS.UNSEEN_CLASSES:
        return without_classes(records, unseen_classes(cfg.DATASETS.UNSEEN_CLASSES, taxonomy_of(cfg.DATASETS.TRAIN[0])))
    return records


def unlabeled_dicts(cfg: CfgNode) -> Records:
    """All images of DATASETS.UNLABELED, without annotations."""
    names = cfg.DATASETS.UNLABELED
    return without_labels(Joined([prepared_for(cfg, name, dataset_records(name)) for name in names]))


class TrainingImages:
    """The images of a config's training streams, for methods that ask about them. They are read when asked for.

    Args:
        cfg: a config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg

    def class_areas(self, asked_by: str) -> np.ndarray:
        """(K,) annotated pixels of each class in DATASETS.TRAIN and SOURCE.

        Args:
            asked_by: key and value that need them, for the error.

        Raises:
            DatasetError: annotations without areas.
        """
        return class_areas(self._annotated(), self._cfg.MODEL.NUM_CLASSES, asked_by).sum(0)

    def captions(self) -> Iterator[tuple[str, str]]:
        """Yields file name and caption of each image, labelled, of the source, and unlabelled."""
        for sample in itertools.chain(self._annotated(), unlabeled_dicts(self._cfg)):
            yield sample["file_name"], sample["caption"]

    def _annotated(self) -> Records:
        return Joined([labeled_dicts(self._cfg, key) for key in ("TRAIN", "SOURCE") if self._cfg.DATASETS[key]])


def _geometry(cfg: CfgNode, scales: Sequence[float] = ()) -> WeakGeometry:
    return WeakGeometry(
        cfg.INPUT.CROP_SIZE,
        scale_steps(*(scales or cfg.INPUT.SCALE_RANGE)),
        cfg.INPUT.MAX_SIZE_TRAIN,
        flip=cfg.INPUT.RANDOM_FLIP == "horizontal",
    )


def _labeled_colors(cfg: CfgNode) -> ColorAugmentation | StrongPhotometry | None:
    if cfg.INPUT.JITTER:
        return StrongPhotometry(cfg.INPUT.JITTER, grey_probability=0.0, blur_probability=0.0)
    return ColorAugmentation() if cfg.INPUT.COLOR_AUG_SSD else None


def build_labeled_mapper(cfg: CfgNode, scales: Sequence[float] = ()) -> Callable[[dict], dict]:
    """The weak view of labelled images; of images with class-agnostic masks where MODEL.CLASSIFIER is "none".

    Args:
        scales: in place of INPUT.SCALE_RANGE.
    """
    options = _geometry(cfg, scales), _labeled_colors(cfg), cfg.INPUT.CROP_SIZE, cfg.INPUT.PAD_VALUE
    if cfg.MODEL.CLASSIFIER == "none":
        return MaskTrainMapper(MaskFolder(cfg.DATASETS.MASKS), *options)
    own = method_of(cfg).labeled_mapper(cfg, *options)
    if own is not None:
        return own
    return PanopticTrainMapper(
        *options, targets=semantic_targets if cfg.INPUT.TARGETS == "semantic" else panoptic_targets
    )


def _labeled_order(cfg: CfgNode, dicts: Records, seed: int) -> RareClassOrder | None:
    loader = cfg.DATALOADER
    if not loader.RARE_CLASS_SAMPLING:
        return None
    return RareClassOrder(dicts, cfg.MODEL.NUM_CLASSES, loader.RARE_CLASS_TEMPERATURE, loader.RARE_CLASS_AREA, seed)


def build_unlabeled_mapper(cfg: CfgNode) -> UnlabeledTrainMapper:
    """Weak and strong view of unlabelled images."""
    ssl = cfg.SSL
    strong = StrongPhotometry(ssl.JITTER, ssl.GREYSCALE, ssl.BLUR, ssl.BLUR_SIGMA, ssl.JITTER_PROBABILITY)
    return UnlabeledTrainMapper(_geometry(cfg), strong, cfg.INPUT.CROP_SIZE, cfg.INPUT.PAD_VALUE, ssl.STRONG_VIEWS)


def build_streams(cfg: CfgNode, start_iteration: int = 0) -> Iterator[dict[str, list[dict]]]:
    """Endless batches of this rank, as lists of mapped dicts by stream, with tensors on MODEL.DEVICE.

    The streams are "labeled" where DATASETS.TRAIN is set, "source" where DATASETS.SOURCE is set, and "unlabeled" from step
    SSL.START on where DATASETS.UNLABELED is set.

    Args:
        start_iteration: number of forward passes already done.

    Raises:
        DatasetError: a data set cannot be used; raised by the call, before the first batch.
    """
    # first the pass from which a stream takes part; each has a seed of its own, or two streams over the same images would
    # draw them in the same order
    parts = {}
    if cfg.DATASETS.TRAIN:
        mapper = build_labeled_mapper(cfg)
        parts["labeled"] = (0, labeled_dicts(cfg), mapper, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED)
    if cfg.DATASETS.SOURCE:
        mapper = build_labeled_mapper(cfg, cfg.INPUT.SOURCE_SCALE_RANGE)
        parts["source"] = (0, labeled_dicts(cfg, "SOURCE"), mapper, cfg.SSL.SOURCE_IMS_PER_BATCH, cfg.SEED + 0x50CE)
    if cfg.DATASETS.UNLABELED:
        first = cfg.SSL.START * cfg.SOLVER.ACCUMULATION_STEPS
        mapper = build_unlabeled_mapper(cfg)
        parts["unlabeled"] = (first, unlabeled_dicts(cfg), mapper, cfg.SSL.IMS_PER_BATCH, cfg.SEED + 0x5E111)
    rank, world_size, workers = comm.get_rank(), comm.get_world_size(), cfg.DATALOADER.NUM_WORKERS
    streams = {
        name: (
            first,
            build_stream(
                dicts,
                mapper,
                batch // world_size,
                seed,
                max(start_iteration - first, 0),
                rank,
                world_size,
                workers,
                None if name == "unlabeled" else _labeled_order(cfg, dicts, seed),
                replace_damaged=name == "unlabeled" or cfg.MODEL.CLASSIFIER == "none",  # images without labels
                device=cfg.MODEL.DEVICE,
            ),
        )
        for name, (first, dicts, mapper, batch, seed) in parts.items()
    }
    return (
        {name: next(stream) for name, (first, stream) in streams.items() if index >= first}
        for index in itertools.count(start_iteration)
    )
