"""Own data from one YAML file (keys `DATASETS.CUSTOM.*`): a folder of images with masks, and one of unlabelled images.

`dearli data example --out mine` writes such a folder to try everything out.

    ROOT/images/**           labelled images, in subfolders if you like
    ROOT/masks/**.png        index masks at the same places: pixel value = class id; or, with PANOPTIC_JSON, COCO-panoptic PNG
    ROOT/unlabeled/**        any images; no masks, no list
    ROOT/classes.txt         lines "ID thing|stuff NAME, SYNONYM", where DATASETS.CUSTOM.CLASSES is empty

Index masks are converted once to the COCO-panoptic format of all other data sets, in the cache folder: a stuff class is one
segment of an image, a thing class one segment for each connected region.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from scipy import ndimage

from ..errors import ConfigError, DatasetError, first_few
from ..files import cache_dir, read_text, remove_leftovers, same_writing, write_json
from ..progress import progress
from .catalog import ImageFolder, PanopticSource, register
from .custom_classes import VOID, CustomClass, parse_classes
from .foreign import layout_hint
from .images import files_below, find_images, image_sizes, opened, orientation, relative_name, seen_size
from .index_masks import check_values, read_index_mask
from .lists import read_list
from .panoptic_json import read_panoptic_json, without_annotation
from .preparation import convert_all, ids_to_rgb, save_png, segment_info
from .taxonomy import Taxonomy

logger = logging.getLogger(__name__)

TRAIN, VAL, UNLABELED = "custom_train", "custom_val", "custom_unlabeled"
_FORMAT = 2  # of the converted files
_NEIGHBOURS = np.ones((3, 3), bool)  # regions that touch at a corner are one


# ---------------------------------------------------------------------------------------------- classes and keys


def settle(datasets: CfgNode) -> None:
    """Resolves the keys of own data.

    A class list in a file becomes a list of lines. DATASETS.TEST loses `custom_val` where no labelled image is held back.

    Args:
        datasets: cfg.DATASETS, not frozen, with CUSTOM.ROOT.

    Raises:
        ConfigError, DatasetError: a class file that is missing or in another encoding.
    """
    custom = datasets.CUSTOM
    if not custom.PANOPTIC_JSON:
        custom.CLASSES = _class_lines(custom)
    if not holds_back(custom):
        datasets.TEST = tuple(name for name in datasets.TEST if name.partition("@")[0] != VAL)


def _class_lines(custom: CfgNode) -> list[str]:
    root, given = Path(custom.ROOT), list(custom.CLASSES)
    if not given:
        path = root / "classes.txt"
        if not path.is_file():
            return []
    elif len(given) == 1 and isinstance(given[0], str) and given[0].endswith(".txt"):
        found = next((p for p in (root / given[0], Path(given[0]).expanduser()) if p.is_file()), None)
        if found is None:
            raise ConfigError(f"DATASETS.CUSTOM.CLASSES: no file {given[0]}, nor {root / given[0]}")
        path = found
    else:
        return given
    lines = [line.strip() for line in read_text(path, ConfigError).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def holds_back(custom: CfgNode) -> bool:
    """True if some labelled images are held back for validation."""
    return bool(custom.VAL) or custom.VAL_FRACTION > 0


def number_of_classes(custom: CfgNode) -> int:
    """Number of classes in the class list, or of categories in the JSON file.

    Raises:
        ConfigError, DatasetError: there is no class list, there are two, or one cannot be read.
    """
    if not custom.PANOPTIC_JSON:
        if not custom.CLASSES:
            raise ConfigError(
                "DATASETS.CUSTOM.CLASSES is empty: list your classes there or in ROOT/classes.txt, or give "
                "DATASETS.CUSTOM.PANOPTIC_JSON"
            )
        return len(parse_classes(custom.CLASSES, custom.IGNORE_VALUE))
    if custom.CLASSES:
        raise ConfigError(
            "DATASETS.CUSTOM.CLASSES and PANOPTIC_JSON exclude each other: the JSON file holds the classes"
        )
    return len(_read_own_json(custom, Path(custom.ROOT))["categories"])


def listed_classes(custom: CfgNode) -> Taxonomy | None:
    """The classes of DATASETS.CUSTOM.CLASSES, None where it is empty. Raises `ConfigError`."""
    classes = parse_classes(custom.CLASSES, custom.IGNORE_VALUE)
    return Taxonomy.from_categories([c.category for c in classes]) if classes else None


# ---------------------------------------------------------------------------------------------- registration


def register_custom(custom: CfgNode) -> None:
    """Makes `custom_train`, `custom_val` and `custom_unlabeled` known; converts the masks unless the cache has them.

    Raises:
        ConfigError, DatasetError: with the file, the key and what to do.
    """
    root = Path(custom.ROOT)
    if not root.is_dir():
        raise DatasetError(f"DATASETS.CUSTOM.ROOT: no folder {root}")
    images = root / custom.IMAGES
    if not images.is_dir():
        raise DatasetError(
            f"no folder {images} of labelled images (DATASETS.CUSTOM.ROOT / DATASETS.CUSTOM.IMAGES){layout_hint(root)}"
        )
    _check_folders(custom, root)
    make = _from_json if custom.PANOPTIC_JSON else _from_masks
    folder, panoptic = make(custom, root)
    semantic = None if custom.PANOPTIC_JSON else folder / "semantic"
    hint = "see DATASETS.CUSTOM.IMAGES and DATASETS.CUSTOM.MASKS"
    register(TRAIN, PanopticSource(images, folder / "train.json", panoptic, semantic, hint=hint))
    if holds_back(custom):
        register(VAL, PanopticSource(images, folder / "val.json", panoptic, semantic, hint=hint))
    else:
        register(VAL, _no_validation)
    unlabeled = root / custom.UNLABELED
    register(UNLABELED, ImageFolder(unlabeled, "put unlabelled images there, or set DATASETS.CUSTOM.UNLABELED"))


def _no_validation() -> PanopticSource:
    raise DatasetError(
        f"{VAL}: no labelled image is held back, since DATASETS.CUSTOM.VAL_FRACTION is 0 and DATASETS.CUSTOM.VAL is empty"
    )


def output_among_images(cfg: CfgNode) -> str:
    """The key of the folder of own images or masks that OUTPUT_DIR lies in; "" where it lies apart.

    A later run would take its pictures for images or masks.
    """
    output = Path(os.path.realpath(cfg.OUTPUT_DIR))
    for key in ("IMAGES", "MASKS", "UNLABELED"):
        folder = os.path.realpath(Path(cfg.DATASETS.CUSTOM.ROOT) / cfg.DATASETS.CUSTOM[key])
        if cfg.DATASETS.CUSTOM.ROOT and output.is_relative_to(folder):
            return f"DATASETS.CUSTOM.{key}"
    return ""


def _check_folders(custom: CfgNode, root: Path) -> None:
    """Unlabelled images lie apart from the labelled ones and the masks; so do masks from images."""
    folders = {key: Path(os.path.realpath(root / custom[key])) for key in ("IMAGES", "MASKS", "UNLABELED")}
    pairs = [("UNLABELED", "IMAGES"), ("UNLABELED", "MASKS")]
    if not custom.PANOPTIC_JSON:
        pairs.append(("MASKS", "IMAGES"))
    for one, other in pairs:
        a, b = folders[one], folders[other]
        if a.is_relative_to(b) or b.is_relative_to(a):
            raise DatasetError(
                f"DATASETS.CUSTOM.{one} {a} and DATASETS.CUSTOM.{other} {b} overlap; give each a folder of its own"
                + ("" if one == "MASKS" else ": labelled images, or masks, would be taken for unlabelled images")
            )


def _key(name: str) -> str:
    """An image's path below its folder without the suffix; its mask has the same."""
    return same_writing(name[: len(name) - len(Path(name).suffix)])


def _held_back(custom: CfgNode, root: Path, names: Sequence[str]) -> set[str]:
    """The images that are for validation, as paths below DATASETS.CUSTOM.IMAGES."""
    if not custom.VAL:
        return _split(names, custom.VAL_FRACTION) if custom.VAL_FRACTION > 0 else set()
    if custom.VAL.endswith(".txt"):
        path = next((p for p in (root / custom.VAL, Path(custom.VAL)) if p.is_file()), None)
        if path is None:
            raise DatasetError(f"DATASETS.CUSTOM.VAL: no list file {root / custom.VAL}")
        chosen = {names[i] for i in read_list(path, names, "DATASETS.CUSTOM.VAL")}
    else:
        folder = Path(custom.VAL).as_posix().rstrip("/") + "/"
        chosen = {name for name in names if name.startswith(folder)}
        if not chosen:
            raise DatasetError(
                f"DATASETS.CUSTOM.VAL: no labelled image below {root / custom.IMAGES / custom.VAL}; it names a subfolder of "
                "DATASETS.CUSTOM.IMAGES or a list file (.txt)"
            )
    if len(chosen) == len(names):
        raise DatasetError(f"DATASETS.CUSTOM.VAL {custom.VAL}: all {len(names)} labelled images are for validation")
    return chosen


def _split(names: Sequence[str], fraction: float) -> set[str]:
    """The validation part: the names with the smallest hashes, so that new images hardly move old ones."""
    if len(names) < 2:
        raise DatasetError(
            f"DATASETS.CUSTOM: {len(names)} labelled image; training and validation need at least 2, or set "
            "DATASETS.CUSTOM.VAL_FRACTION 0"
        )
    ordered = sorted(names, key=lambda name: hashlib.sha256(_key(name).encode()).digest())
    return set(ordered[: min(max(1, round(fraction * len(names))), len(names) - 1)])


def _cache_folder(*content: Any) -> Path:
    """The cache folder of files that `content` alone determines."""
    return cache_dir() / "custom" / hashlib.sha256(json.dumps([_FORMAT, *content]).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_splits(folder: Path, content: dict, held_back: set[str]) -> None:
    """train.json and val.json of a COCO-panoptic dict."""
    for split in ("train", "val"):
        images = [i for i in content["images"] if (i["file_name"] in held_back) == (split == "val")]
        ids = {i["id"] for i in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        write_json(folder / f"{split}.json", {**content, "images": images, "annotations": annotations})


# ---------------------------------------------------------------------------------------------- COCO-panoptic JSON


def _read_own_json(custom: CfgNode, root: Path) -> dict:
    try:
        return read_panoptic_json(root / custom.PANOPTIC_JSON)
    except DatasetError as error:
        raise DatasetError(f"DATASETS.CUSTOM.PANOPTIC_JSON: {error}") from error


def _from_json(custom: CfgNode, root: Path) -> tuple[Path, Path]:
    path, images, panoptic = root / custom.PANOPTIC_JSON, root / custom.IMAGES, root / custom.MASKS
    content = _read_own_json(custom, root)
    if not panoptic.is_dir():
        raise DatasetError(f"no folder {panoptic} of panoptic PNG files (DATASETS.CUSTOM.MASKS)")
    unused = without_annotation(content)
    if unused:
        _warn_unused(path, "have no annotation", unused, root / custom.UNLABELED)
    content["images"] = [i for i in content["images"] if i["file_name"] not in set(unused)]
    if not content["images"]:
        raise DatasetError(f"DATASETS.CUSTOM.PANOPTIC_JSON: {path} annotates no image")
    names = [i["file_name"] for i in content["images"]]
    listed = {relative_name(images / name, images) for name in (*names, *unused)}
    unlisted = {relative_name(p, images) for p in files_below(images)} - listed
    strangers = [n for n in sorted(unlisted) if not n.lower().endswith((".txt", ".json", ".xml"))]
    if strangers:
        _warn_unused(images, f"are not in {path}", strangers, root / custom.UNLABELED)
    held_back = _held_back(custom, root, names)
    folder = _cache_folder(_digest(path), sorted(held_back))
    if not (folder / "val.json").is_file():
        _write_splits(folder, content, held_back)
    return folder, panoptic


def _warn_unused(where: Path, why: str, names: list[str], unlabeled: Path) -> None:
    logger.warning(
        "%s: %s files %s and are not used: %s; images without labels belong into %s",
        where, len(names), why, first_few(names), unlabeled,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- index masks


def _pairs(custom: CfgNode, root: Path) -> dict[str, tuple[Path, Path]]:
    """Path below the image folder to (image, mask). Raises `DatasetError` where one has no other."""
    images, masks = root / custom.IMAGES, root / custom.MASKS
    if not masks.is_dir():
        raise DatasetError(
            f"no folder {masks} of index masks (DATASETS.CUSTOM.ROOT / DATASETS.CUSTOM.MASKS){layout_hint(root)}"
        )
    files = {relative_name(p, images): p for p in find_images([images])}
    by_key = {_key(name): name for name in files}
    if len(by_key) != len(files):
        double = sorted(name for name in files if by_key[_key(name)] != name)
        raise DatasetError(
            f"{images}: {len(double)} images share a name with another and differ in the suffix only: {first_few(double)}"
        )
    found = [p for p in files_below(masks) if p.suffix.lower() == ".png"]
    pngs = {_key(relative_name(p, masks)): p for p in found}
    if len(pngs) != len(found):
        double = [relative_name(p, masks) for p in found if pngs[_key(relative_name(p, masks))] != p]
        raise DatasetError(f"{masks}: {len(double)} masks share a name with another: {first_few(double)}")
    without_mask, without_image = sorted(set(by_key) - set(pngs)), sorted(set(pngs) - set(by_key))
    if without_mask:
        raise DatasetError(
            f"{len(without_mask)} of {len(files)} images in {images} have no mask of the same name in {masks}: "
            f"{first_few(without_mask)}; move images without masks to {root / custom.UNLABELED}"
            f"{layout_hint(root, masks, without_mask)}"
        )
    if without_image:
        others = [p for p in files_below(images) if _key(relative_name(p, images)) in without_image]
        raise DatasetError(
            f"{len(without_image)} masks in {masks} have no image in {images}: {first_few(without_image)}"
            + (
                f"; {others[0]} is there, but files of this suffix are not read: convert it to JPEG or PNG"
                if others
                else ""
            )
        )
    return {by_key[key]: (files[by_key[key]], pngs[key]) for key in sorted(by_key)}


def _from_masks(custom: CfgNode, root: Path) -> tuple[Path, Path]:
    classes, pairs = parse_classes(custom.CLASSES, custom.IGNORE_VALUE), _pairs(custom, root)
    names = list(pairs)
    sizes = dict(zip(names, image_sizes([image for image, _ in pairs.values()]), strict=True))
    held_back = _held_back(custom, root, names)
    masks = {name: mask for name, (_, mask) in pairs.items()}
    folder = _cache_folder(
        list(custom.CLASSES), custom.MIN_THING_AREA, custom.IGNORE_VALUE, sorted(held_back),
        [[name, *sizes[name], _digest(mask)] for name, mask in progress(masks.items(), "looking for changes", len(masks))],
    )  # fmt: skip
    panoptic = folder / "panoptic"
    if (folder / "val.json").is_file():
        return folder, panoptic
    for place in (folder, panoptic, folder / "semantic"):
        remove_leftovers(place)
    _check_sizes(pairs, sizes)
    check_values(masks, {c.id for c in classes}, custom.IGNORE_VALUE)
    convert = partial(_convert, folder, classes, custom.MIN_THING_AREA, {n: str(m) for n, m in masks.items()})
    records = convert_all(names, convert, folder / "journal.jsonl", 1, "index masks")
    content = {
        "images": [{"id": _key(n), "file_name": n, "height": sizes[n][0], "width": sizes[n][1]} for n in names],
        "annotations": [
            {"image_id": _key(n), "file_name": f"{_key(n)}.png", "segments_info": r["segments_info"]}
            for n, r in zip(names, records, strict=True)
        ],
        "categories": [c.category for c in classes],
    }
    _write_splits(folder, content, held_back)
    return folder, panoptic


def _check_sizes(pairs: dict[str, tuple[Path, Path]], sizes: dict[str, tuple[int, int]]) -> None:
    """Every mask has the size of its image as it is seen."""
    problems = []
    for name, (image, mask) in progress(pairs.items(), "sizes of masks", len(pairs)):
        with opened(mask, "an index mask") as file:
            size = seen_size(file)
        if size == sizes[name]:
            continue
        height, width = sizes[name]
        problem = f"{mask} is {size[1]} x {size[0]}, its image is {width} x {height} pixels"
        with opened(image) as file:
            if size == (width, height) and orientation(file) >= 5:
                problem += " as its EXIF tag turns it; if the mask fits the stored pixels remove the tag (exiftool -Orientation= FILE)"
        problems.append(problem)
    if problems:
        raise DatasetError(
            f"{len(problems)} of {len(pairs)} masks have another size than their image: {first_few(problems)}"
        )


def _convert(folder: Path, classes: list[CustomClass], min_area: int, masks: dict[str, str], name: str) -> dict:
    """Writes the panoptic and the semantic PNG of one image; returns its segments."""
    values = read_index_mask(masks[name])
    ids = np.zeros(values.shape, np.int64)
    segments: list[dict[str, Any]] = []
    semantic = np.full(values.shape, VOID, np.uint8)
    for index, cls in enumerate(classes):
        here = values == cls.id
        if not here.any():
            continue
        semantic[here] = index
        regions = ndimage.label(here, _NEIGHBOURS)[0] if cls.isthing else here.astype(np.int32)
        large = np.bincount(regions.ravel()) >= (min_area if cls.isthing else 1)
        large[0] = False  # pixels of other classes
        for region in np.nonzero(large)[0]:  # a noisy mask has thousands of specks; only the large regions are visited
            mask = regions == region
            identifier = len(segments) + 1
            ids[mask] = identifier
            segments.append(segment_info(identifier, cls.id, mask))
    save_png(folder / "panoptic" / f"{_key(name)}.png", ids_to_rgb(ids))
    save_png(folder / "semantic" / f"{_key(name)}.png", semantic)
    return {"segments_info": segments}
