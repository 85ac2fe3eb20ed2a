"""Data sets by name: one registration for every COCO-panoptic data set, and partitions as views of them.

`NAME` is a whole data set. `NAME@PART` is its labelled part and `NAME@PART:unlabeled` the rest, without annotations.
PART is

* the name of a folder below the data set's partition folder (`1_128`), with `labeled.txt` and perhaps `unlabeled.txt`,
* the path of a list file (`lists/mine.txt`), or
* a fraction, `0.05`, or a number of images, `n100`, or with a seed, `0.05~3`, `n100~3`; smaller parts of one seed are subsets
  of larger ones.

A list file names one image a line, see `lists`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import DatasetError, first_few
from . import miniworld
from .images import image_sizes, relative_name, usable_images
from .lists import read_list
from .panoptic_json import read_panoptic_json, without_annotation
from .partitions import describe, drawn, published_size
from .streets import NOT_IN_SYNTHIA_16
from .taxonomy import Taxonomy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PanopticSource:
    """Where a COCO-panoptic data set lies.

    `image_root`, `panoptic_root` (PNG), `panoptic_json` as in COCO. `semantic_root`: optional PNG of contiguous class
    ids, 255 = ignore, named like the panoptic PNG; without it semantic ground truth comes from the panoptic PNG.
    `partition_root`: folder of partition folders. `hint`: what to run when files are missing. `without`: categories, by
    name, that the data set leaves out; their pixels are not annotated. `captions`: see `captions.caption_file`. `classes`: data
    set of `class_names` whose names and synonyms replace those of the JSON file.
    """

    image_root: Path
    panoptic_json: Path
    panoptic_root: Path
    semantic_root: Path | None = None
    partition_root: Path | None = None
    hint: str = "check DETECTRON2_DATASETS"
    without: tuple[str, ...] = ()
    captions: Path | None = None
    classes: str | None = None


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, subfolders included, without annotations: for DATASETS.UNLABELED, mask generation and warm-up."""

    image_root: Path
    hint: str = "put images there"


Source = PanopticSource | ImageFolder
_SOURCES: dict[str, Callable[[], Source]] = {}


def datasets_root() -> Path:
    """`$DETECTRON2_DATASETS`, else `./datasets` as in detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register(name: str, source: Source | Callable[[], Source]) -> None:
    """Makes `name` and all its views known; files are first touched when the data set is used.

    Args:
        source: or a function that gives it, called at use (generated data, environment variables).
    """
    _SOURCES[name] = source if callable(source) else lambda: source
    _register_view(name)


def _register_view(name: str) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: dataset_dicts(name))


def split_name(name: str) -> tuple[str, str | None, bool]:
    """`"a@1_8:unlabeled"` to ("a", "1_8", True).

    Raises:
        DatasetError: an unknown data set or a malformed name.
    """
    base, _, view = name.partition("@")
    part, colon, kind = view.partition(":")
    if (colon and kind != "unlabeled") or ("@" in name and not part):
        raise DatasetError(f"{name!r} is no data set name; write NAME, NAME@PART or NAME@PART:unlabeled")
    if base not in _SOURCES:
        raise DatasetError(f"there is no data set {base!r}; known: {', '.join(sorted(_SOURCES))}")
    return base, part or None, bool(kind)


def source_of(name: str) -> Source:
    """Where the data set (or the one that `name` is a view of) lies."""
    return _SOURCES[split_name(name)[0]]()


def taxonomy_of(name: str) -> Taxonomy:
    """Classes of a data set, in the order of its JSON file's categories. Raises `DatasetError` for a folder of images."""
    source = source_of(name)
    if isinstance(source, ImageFolder):
        raise DatasetError(f"{name} is a folder of images without annotations; it can be a DATASETS.UNLABELED")
    return _read_json(source, _stamp(source), name)[1]


def class_source(cfg: CfgNode) -> str | None:
    """The data set whose classes a config's model has: the first labelled one, of the target where there is one, and the first of
    evaluation where nothing is trained on."""
    return next(iter((*cfg.DATASETS.TRAIN, *cfg.DATASETS.SOURCE, *cfg.DATASETS.TEST)), None)


def ensure_registered(name: str) -> None:
    """Makes a view's name known to detectron2's catalogs."""
    split_name(name)
    if name not in DatasetCatalog:
        _register_view(name)


def dataset_dicts(name: str) -> list[dict]:
    """The images of a data set or view, as detectron2 dicts.

    Each has "file_name", "image_id", "height", "width" and, unless unlabelled, "pan_seg_file_name", "segments_info"
    ("id", contiguous "category_id", "iscrowd", "area" in pixels or None) and perhaps "sem_seg_file_name".

    Raises:
        DatasetError: see `validation` for what is checked beyond the JSON file.
    """
    base, part, unlabeled = split_name(name)
    source = source_of(base)
    dicts = _scan(source.image_root, source.hint) if isinstance(source, ImageFolder) else _annotated(base, name, source)
    if part is not None:
        dicts = _choose(name, dicts, part, unlabeled, source)
    if unlabeled:
        dicts = [{k: d[k] for k in ("file_name", "image_id", "height", "width")} for d in dicts]
    if not dicts:
        where = source.image_root if isinstance(source, ImageFolder) else source.panoptic_json
        raise DatasetError(f"{name}: no image in {where}")
    return dicts


def annotated_dicts(name: str) -> list[dict]:
    """The images of an unlabelled view *with* the annotations that are held back from training, for diagnosis; [] where
    there are none."""
    base = split_name(name)[0]
    if isinstance(source_of(base), ImageFolder):
        return []
    chosen = {d["image_id"] for d in dataset_dicts(name)}
    return [d for d in dataset_dicts(base) if d["image_id"] in chosen]


def class_areas(dicts: Sequence[dict], num_classes: int, needed_by: str) -> np.ndarray:
    """(N, K) annotated pixels of each class in each image, crowds left out.

    Raises:
        DatasetError: segments without an area, which the key `needed_by` needs.
    """
    areas = np.zeros((len(dicts), num_classes))
    for row, d in zip(areas, dicts, strict=True):
        for segment in d["segments_info"]:
            if segment["area"] is None:
                raise DatasetError(
                    f"{d['pan_seg_file_name']}: its segments have no 'area' in the JSON file, which {needed_by} needs"
                )
            if not segment["iscrowd"]:
                row[segment["category_id"]] += segment["area"]
    return areas


def _annotated(base: str, name: str, source: PanopticSource) -> list[dict]:
    records, taxonomy = _read_json(source, _stamp(source), base)
    _set_metadata(name, source, taxonomy)
    return [_to_dict(record, source) for record in records]


@lru_cache(maxsize=8)
def _scan_once(folder: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(file), height, width) for file, height, width in usable_images(folder))


def _scan(folder: Path, hint: str) -> list[dict]:
    if not folder.is_dir():
        raise DatasetError(f"no image folder {folder}; {hint}")
    return [
        {"file_name": f, "image_id": str(Path(f).relative_to(folder)), "height": height, "width": width}
        for f, height, width in _scan_once(folder)
    ]


# ---------------------------------------------------------------------------------------------- JSON


def _stamp(source: PanopticSource) -> tuple[int, int]:
    path = source.panoptic_json
    if not path.is_file():
        raise DatasetError(f"no annotation file {path}; {source.hint}")
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _read_json(source: PanopticSource, stamp: tuple[int, int], name: str) -> tuple[list[dict], Taxonomy]:
    """Records of image, annotation and contiguous segments; cached until the file changes."""
    try:
        content = read_panoptic_json(source.panoptic_json)
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from error
    categories = [c for c in content["categories"] if c["name"] not in source.without]
    taxonomy = Taxonomy.from_categories(categories, source.classes)
    contiguous = {dataset_id: i for i, dataset_id in enumerate(taxonomy.dataset_ids)}
    left_out = without_annotation(content)
    if left_out:
        logger.warning(
            "%s: %s of %s images of %s have no annotation and are left out: %s",
            name, len(left_out), len(content["images"]), source.panoptic_json, first_few(left_out),
        )  # fmt: skip
    by_id = {image["id"]: image for image in _with_sizes(content["images"], source, set(left_out))}
    records = [
        {
            "image": by_id[a["image_id"]],
            "png": a["file_name"],
            "segments": [
                {
                    "id": s["id"],
                    "category_id": contiguous[s["category_id"]],
                    "iscrowd": s["iscrowd"],
                    "area": s.get("area"),
                }
                for s in a["segments_info"]
                if s["category_id"] in contiguous
            ],
        }
        for a in content["annotations"]
    ]
    return records, taxonomy


def _with_sizes(images: list[dict], source: PanopticSource, left_out: set[str]) -> list[dict]:
    """The images; a size that the JSON file does not give is that of the image file."""
    without = [i for i in images if not {"height", "width"} <= set(i) and i["file_name"] not in left_out]
    sizes = image_sizes([source.image_root / i["file_name"] for i in without])
    measured = {i["id"]: {"height": h, "width": w} for i, (h, w) in zip(without, sizes, strict=True)}
    return [{**i, **measured.get(i["id"], {})} for i in images]


def _to_dict(record: dict, source: PanopticSource) -> dict:
    image = record["image"]
    result = {
        "file_name": str(source.image_root / image["file_name"]),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "pan_seg_file_name": str(source.panoptic_root / record["png"]),
        "segments_info": record["segments"],
    }
    if source.semantic_root is not None:
        result["sem_seg_file_name"] = str(source.semantic_root / record["png"])
    return result


def _set_metadata(name: str, source: PanopticSource, taxonomy: Taxonomy) -> None:
    """What detectron2's own tools (its panoptic evaluator and visualiser) look up."""
    things = sorted(taxonomy.thing_ids)
    metadata = MetadataCatalog.get(name)
    if getattr(metadata, "panoptic_json", None) == str(source.panoptic_json):
        return
    MetadataCatalog.pop(name)
    MetadataCatalog.get(name).set(
        image_root=str(source.image_root),
        panoptic_root=str(source.panoptic_root),
        panoptic_json=str(source.panoptic_json),
        thing_classes=[taxonomy.main_names[i] for i in things],
        thing_colors=[taxonomy.colors[i] for i in things],
        stuff_classes=taxonomy.main_names,
        stuff_colors=list(taxonomy.colors),
        thing_dataset_id_to_contiguous_id={taxonomy.dataset_ids[i]: i for i in things},
        stuff_dataset_id_to_contiguous_id={
            d: i for i, d in enumerate(taxonomy.dataset_ids) if i not in taxonomy.thing_ids
        },
        ignore_label=255,
        label_divisor=1000,
    )


# ---------------------------------------------------------------------------------------------- partitions


def _choose(name: str, dicts: list[dict], part: str, unlabeled: bool, source: Source) -> list[dict]:
    by_chance = drawn(part, len(dicts), name)
    if by_chance is not None:
        count, seed = by_chance
        order = np.random.default_rng(seed).permutation(len(dicts))
        chosen = sorted(order[count:] if unlabeled else order[:count])
        return [dicts[i] for i in chosen]

    labeled_file = list_file(name, part, source)
    names = [relative_name(d["file_name"], source.image_root) for d in dicts]
    chosen = read_list(labeled_file, names, name)
    published = published_size(split_name(name)[0], part, False)
    if published not in (None, len(chosen)):
        logger.warning(
            "%s: %s labels %d images, the published partition %d", name, labeled_file, len(chosen), published
        )
    if not unlabeled:
        return [dicts[i] for i in chosen]
    unlabeled_file = labeled_file.with_name("unlabeled.txt")
    if labeled_file.name == "labeled.txt" and unlabeled_file.is_file():
        rest = read_list(unlabeled_file, names, name)
        if both := sorted(set(rest) & set(chosen)):
            raise DatasetError(
                f"{name}: {len(both)} images stand in {labeled_file} and in {unlabeled_file}: "
                f"{first_few([names[i] for i in both])}"
            )
        return [dicts[i] for i in rest]
    labeled = set(chosen)
    return [d for i, d in enumerate(dicts) if i not in labeled]


def list_file(name: str, part: str, source: Source) -> Path:
    """The list of a part's labelled images. Raises `DatasetError` where there is none."""
    if part.endswith(".txt"):
        path = Path(part).expanduser()
    elif getattr(source, "partition_root", None) is None:
        raise DatasetError(f"{name}: this data set has no partition folder; use a fraction or the path of a list file")
    else:
        path = source.partition_root / part / "labeled.txt"
    if not path.is_file():
        raise DatasetError(
            f"{name}: no list file {path}; PART is a folder there, a list file (.txt) or a fraction; {describe(split_name(name)[0])}"
        )
    return path


# ---------------------------------------------------------------------------------------------- built-in data sets


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
        root / "partitions", hint="put a CamVid folder as in datasets/README.md below DETECTRON2_DATASETS",
    )  # fmt: skip


def _ade20k(split: str) -> PanopticSource:
    root = datasets_root() / "ADEChallengeData2016"
    folder = {"train": "training", "val": "validation"}[split]
    return PanopticSource(
        root / "images" / folder, root / f"ade20k_panoptic_{split}.json", root / f"ade20k_panoptic_{split}",
        root / "annotations_detectron2" / folder, datasets_root() / "partitions" / "ade20k",
        hint="run python datasets/prepare_ade20k.py", classes="ade20k",
    )  # fmt: skip


def _coco(split: str, kind: str, classes: str, script: str, labels: str = "", semantic: str = "") -> PanopticSource:
    root = datasets_root() / "coco"
    return PanopticSource(
        root / f"{split}2017", root / "annotations" / f"{kind}_{split}2017.json", root / labels / f"{kind}_{split}2017",
        root / f"{semantic}_{split}2017" if semantic and split == "val" else None, datasets_root() / "partitions" / "coco",
        hint=f"run python datasets/{script}", classes=classes,
    )  # fmt: skip


def _pascal_voc(split: str, without: tuple[str, ...] = ()) -> PanopticSource:
    root = datasets_root() / "VOCdevkit" / "VOC2012"
    return PanopticSource(
        root / "JPEGImages", root / f"semantic_{split}.json", root / f"semantic_{split}", None,
        datasets_root() / "partitions" / "pascal", "run python datasets/prepare_pascal_voc.py", without,
        classes="pascal_voc",
    )  # fmt: skip


def _cityscapes(split: str, without: tuple[str, ...] = ()) -> PanopticSource:
    root = datasets_root() / "cityscapes"
    return PanopticSource(
        root / "leftImg8bit" / split, root / f"semantic_{split}.json", root / f"semantic_{split}", None,
        datasets_root() / "partitions" / "cityscapes", "run python datasets/prepare_cityscapes.py", without,
        datasets_root() / "captions" / f"cityscapes_{split}.jsonl", "cityscapes",
    )  # fmt: skip


def _rendered_streets(name: str, images: str, without: tuple[str, ...] = ()) -> PanopticSource:
    root = datasets_root() / name
    return PanopticSource(
        root / images, root / "semantic_train.json", root / "semantic_train",
        hint=f"run python datasets/prepare_{name}.py", without=without, classes="cityscapes",
    )  # fmt: skip


for _split in ("train", "val"):
    register(f"miniworld_{_split}", lambda split=_split: _miniworld("day", split))
    register(f"miniworld_night_{_split}", lambda split=_split: _miniworld("night", split))
    register(f"camvid_{_split}", lambda split=_split: _camvid(split))
    register(f"ade20k_panoptic_{_split}", lambda split=_split: _ade20k(split))
    register(
        f"coco_panoptic_{_split}", lambda split=_split: _coco(split, "panoptic", "coco_panoptic", "prepare_coco.py")
    )
    register(
        f"coco_objects_{_split}",
        lambda split=_split: _coco(
            split, "panoptic_objects", "coco_objects", "prepare_coco_objects.py", semantic="semantic_objects"
        ),
    )
    register(f"pascal_voc_{_split}", lambda split=_split: _pascal_voc(split))
    register(f"pascal_voc_objects_{_split}", lambda split=_split: _pascal_voc(split, ("background",)))
    register(
        f"coco_stuff_{_split}",
        lambda split=_split: _coco(split, "stuff171", "coco_stuff", "prepare_coco_stuff.py", "annotations"),
    )
    register(f"cityscapes_{_split}", lambda split=_split: _cityscapes(split))
    register(f"cityscapes_16_{_split}", lambda split=_split: _cityscapes(split, NOT_IN_SYNTHIA_16))
register("gta5_train", lambda: _rendered_streets("gta5", "images"))
register("synthia_train", lambda: _rendered_streets("synthia", "RGB", NOT_IN_SYNTHIA_16))
