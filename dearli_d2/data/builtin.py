"""The data sets that the project knows by name: generated scenes, and what `dearli prepare` writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import miniworld
from .sources import ImageFolder, PanopticSource, Source, datasets_root
from .streets import NOT_IN_SYNTHIA_16


def _miniworld(domain: str, split: str) -> PanopticSource:
    root = miniworld.root(domain)
    return PanopticSource(
        root / "images" / split, root / f"panoptic_{split}.json", root / "panoptic" / split, root / "semantic" / split,
        captions=root / "captions" / f"{split}.jsonl",
    )  # fmt: skip


def _camvid(split: str) -> PanopticSource:
    root = datasets_root() / "camvid"
    return PanopticSource(
        root / "images" / split, root / f"panoptic_{split}.json", root / f"panoptic_{split}", root / f"semantic_{split}",
        root / "partitions", hint="run dearli prepare camvid",
    )  # fmt: skip


def _ade20k(split: str) -> PanopticSource:
    root = datasets_root() / "ADEChallengeData2016"
    folder = {"train": "training", "val": "validation"}[split]
    return PanopticSource(
        root / "images" / folder, root / f"ade20k_panoptic_{split}.json", root / f"ade20k_panoptic_{split}",
        root / "annotations_detectron2" / folder, datasets_root() / "partitions" / "ade20k",
        hint="run dearli prepare ade20k", classes="ade20k",
    )  # fmt: skip


def _coco(split: str, kind: str, classes: str, script: str, labels: str = "", semantic: str = "") -> PanopticSource:
    root = datasets_root() / "coco"
    return PanopticSource(
        root / f"{split}2017", root / "annotations" / f"{kind}_{split}2017.json", root / labels / f"{kind}_{split}2017",
        root / f"{semantic}_{split}2017" if semantic and split == "val" else None, datasets_root() / "partitions" / "coco",
        hint=f"run dearli prepare {script}", classes=classes,
    )  # fmt: skip


def _pascal_voc(split: str, without: tuple[str, ...] = ()) -> PanopticSource:
    root = datasets_root() / "VOCdevkit" / "VOC2012"
    return PanopticSource(
        root / "JPEGImages", root / f"semantic_{split}.json", root / f"semantic_{split}", None,
        datasets_root() / "partitions" / "pascal", "run dearli prepare pascal_voc", without,
        classes="pascal_voc",
    )  # fmt: skip


def _cityscapes(split: str, without: tuple[str, ...] = ()) -> PanopticSource:
    root = datasets_root() / "cityscapes"
    return PanopticSource(
        root / "leftImg8bit" / split, root / f"semantic_{split}.json", root / f"semantic_{split}", None,
        datasets_root() / "partitions" / "cityscapes", "run dearli prepare cityscapes", without,
        datasets_root() / "captions" / f"cityscapes_{split}.jsonl", "cityscapes",
    )  # fmt: skip


def _rendered_streets(name: str, images: str, without: tuple[str, ...] = ()) -> PanopticSource:
    root = datasets_root() / name
    return PanopticSource(
        root / images, root / "semantic_train.json", root / "semantic_train",
        hint=f"run dearli prepare {name}", without=without, classes="cityscapes",
    )  # fmt: skip


def _sa1b() -> ImageFolder:
    return ImageFolder(datasets_root() / "sa1b", hint="unpack ten of SA-1B's archives there, see datasets/README.md")


def _of_split(split: str) -> dict[str, Callable[[], PanopticSource]]:
    return {
        f"miniworld_{split}": partial(_miniworld, "day", split),
        f"miniworld_night_{split}": partial(_miniworld, "night", split),
        f"camvid_{split}": partial(_camvid, split),
        f"ade20k_panoptic_{split}": partial(_ade20k, split),
        f"coco_panoptic_{split}": partial(_coco, split, "panoptic", "coco_panoptic", "coco"),
        f"coco_objects_{split}": partial(
            _coco, split, "panoptic_objects", "coco_objects", "coco_objects", semantic="semantic_objects"
        ),
        f"pascal_voc_{split}": partial(_pascal_voc, split),
        f"pascal_voc_objects_{split}": partial(_pascal_voc, split, ("background",)),
        f"coco_stuff_{split}": partial(_coco, split, "stuff171", "coco_stuff", "coco_stuff", "annotations"),
        f"cityscapes_{split}": partial(_cityscapes, split),
        f"cityscapes_16_{split}": partial(_cityscapes, split, NOT_IN_SYNTHIA_16),
    }


# called at use: the data root is an environment variable, and miniworld is generated
BUILT_IN: dict[str, Callable[[], Source]] = {
    **_of_split("train"),
    **_of_split("val"),
    "gta5_train": partial(_rendered_streets, "gta5", "images"),
    "sa1b_train": _sa1b,
    "synthia_train": partial(_rendered_streets, "synthia", "RGB", NOT_IN_SYNTHIA_16),
}
