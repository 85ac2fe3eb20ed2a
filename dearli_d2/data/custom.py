"""Own data from one YAML file (keys `DATASETS.CUSTOM.*`): a folder of images with masks, and one of unlabelled images.

`dearli data example --out mine` writes such a folder to try everything out.

    ROOT/images/**           labelled images, in subfolders if you like
    ROOT/masks/**.png        index masks at the same places: pixel value = class id; or, with PANOPTIC_JSON, COCO-panoptic PNG
    ROOT/unlabeled/**        any images; no masks, no list. Or UNLABELED is a list file, tar shards or a URL, see `listing`
    ROOT/LABELS              or labels of a labelling tool, where DATASETS.CUSTOM.LABELS names them; images lie below ROOT
    ROOT/classes.txt         lines "ID thing|stuff NAME, SYNONYM", where DATASETS.CUSTOM.CLASSES is empty

Index masks are converted once to the COCO-panoptic format of all other data sets, in the cache folder: a stuff class is one
segment of an image, a thing class one segment for each connected region.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from detectron2.config import CfgNode

from ..errors import ConfigError, DatasetError, DearliError, first_few
from ..labels.mask_files import masks_below
from ..labels.proposal import no_class_list
from .catalog import ImageFolder, PanopticSource, register
from .custom_classes import class_file, classes_of_root, parse_classes
from .custom_labels import from_labels, label_classes, labels_of
from .custom_masks import from_masks
from .custom_split import cache_folder, digest, held_back_of, write_splits
from .foreign import layout_hint
from .images import files_below, relative_name
from .listing import is_folder
from .panoptic_json import read_panoptic_json, without_annotation
from .taxonomy import Taxonomy

logger = logging.getLogger(__name__)

TRAIN, VAL, TEST, UNLABELED = "custom_train", "custom_val", "custom_test", "custom_unlabeled"
_UNLABELED_HINT = (
    "put unlabelled images there, set DATASETS.CUSTOM.UNLABELED, or train with labels alone by DATASETS.UNLABELED '()'"
)


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
        return classes_of_root(root, bool(custom.LABELS))
    if len(given) > 1 or not isinstance(given[0], str) or not given[0].endswith(".txt"):
        return given
    found = next((p for p in (root / given[0], Path(given[0]).expanduser()) if p.is_file()), None)
    if found is None:
        raise ConfigError(f"DATASETS.CUSTOM.CLASSES: no file {given[0]}, nor {root / given[0]}")
    return class_file(found)


def holds_back(custom: CfgNode) -> bool:
    """True if some labelled images are held back for validation."""
    return bool(custom.VAL) or custom.VAL_FRACTION > 0


def number_of_classes(custom: CfgNode) -> int:
    """Number of classes in the class list, or of categories in the JSON file.

    Raises:
        ConfigError, DatasetError: there is no class list, there are two, or one cannot be read.
    """
    if custom.LABELS and custom.PANOPTIC_JSON:
        raise ConfigError("DATASETS.CUSTOM.LABELS and PANOPTIC_JSON exclude each other; LABELS reads COCO-panoptic too")
    if custom.LABELS:
        return len(label_classes(custom))
    if not custom.PANOPTIC_JSON:
        if not custom.CLASSES:
            raise _no_classes(custom)
        return len(parse_classes(custom.CLASSES, custom.IGNORE_VALUE))
    if custom.CLASSES:
        raise ConfigError(
            "DATASETS.CUSTOM.CLASSES and PANOPTIC_JSON exclude each other: the JSON file holds the classes"
        )
    return len(_read_own_json(custom, Path(custom.ROOT))["categories"])


def _no_classes(custom: CfgNode) -> DearliError:
    problem = (
        "DATASETS.CUSTOM.CLASSES is empty: list your classes there or in ROOT/classes.txt, or give "
        "DATASETS.CUSTOM.LABELS or PANOPTIC_JSON"
    )
    folder = Path(custom.ROOT) / custom.MASKS
    masks = masks_below(folder) if folder.is_dir() else []
    if not masks:
        return ConfigError(problem)
    return no_class_list(problem, masks, custom.IGNORE_VALUE, binary_key=f"DATASETS.CUSTOM.LABELS {custom.MASKS}")


def listed_classes(custom: CfgNode) -> Taxonomy | None:
    """The classes of DATASETS.CUSTOM.CLASSES, None where it is empty. Raises `ConfigError`."""
    if custom.BACKGROUND:  # one class more than the list has; a checkpoint knows it
        return None
    classes = parse_classes(custom.CLASSES, custom.IGNORE_VALUE)
    return Taxonomy.from_categories([c.category for c in classes]) if classes else None


# ---------------------------------------------------------------------------------------------- registration


def register_custom(custom: CfgNode) -> None:
    """Makes `custom_train`, `custom_val`, `custom_test` and `custom_unlabeled` known; converts the masks unless the cache has them.

    Raises:
        ConfigError, DatasetError: with the file, the key and what to do.
    """
    root = Path(custom.ROOT)
    if not root.is_dir():
        raise DatasetError(f"DATASETS.CUSTOM.ROOT: no folder {root}")
    if custom.LABELS:
        _register_labels(custom, root)
        return
    images = root / custom.IMAGES
    if not images.is_dir():
        raise DatasetError(
            f"no folder {images} of labelled images (DATASETS.CUSTOM.ROOT / DATASETS.CUSTOM.IMAGES){layout_hint(root)}"
        )
    _check_folders(custom, root)
    make = _from_json if custom.PANOPTIC_JSON else from_masks
    folder, panoptic = make(custom, root)
    semantic = None if custom.PANOPTIC_JSON else folder / "semantic"
    hint = "see DATASETS.CUSTOM.IMAGES and DATASETS.CUSTOM.MASKS"
    register(TRAIN, PanopticSource(images, folder / "train.json", panoptic, semantic, hint=hint))
    if holds_back(custom):
        register(VAL, PanopticSource(images, folder / "val.json", panoptic, semantic, hint=hint))
    else:
        register(VAL, _no_validation)
    register(TEST, _no_test)
    register(UNLABELED, _unlabeled(custom, root))


def _register_labels(custom: CfgNode, root: Path) -> None:
    folder, panoptic = from_labels(custom, root)
    for name, split in ((TRAIN, "train"), (VAL, "val"), (TEST, "test")):
        path = folder / f"{split}.json"
        register(name, PanopticSource(root, path, panoptic, folder / "semantic", hint="see DATASETS.CUSTOM.LABELS"))
    if not holds_back(custom):
        register(VAL, _no_validation)
    if not (folder / "test.json").is_file():
        register(TEST, _no_test)
    # often the folder that holds the labelled images too
    labelled = frozenset(os.path.realpath(image.file) for image in labels_of(custom).images)
    register(UNLABELED, _unlabeled(custom, root, labelled))


def _unlabeled(custom: CfgNode, root: Path, labelled: frozenset[str] = frozenset()) -> ImageFolder:
    """DATASETS.CUSTOM.UNLABELED: a folder, or what of ROOT `listing.listed` takes for a list, shards or a URL."""
    if is_folder(custom.UNLABELED):
        return ImageFolder(root / custom.UNLABELED, _UNLABELED_HINT, labelled)
    return ImageFolder(root, _UNLABELED_HINT, labelled, custom.UNLABELED)


def _no_validation() -> PanopticSource:
    raise DatasetError(
        f"{VAL}: no labelled image is held back, since DATASETS.CUSTOM.VAL_FRACTION is 0 and DATASETS.CUSTOM.VAL is empty"
    )


def _no_test() -> PanopticSource:
    raise DatasetError(f"{TEST}: no image of DATASETS.CUSTOM.LABELS is in a split that is called test")


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
    pairs = [("UNLABELED", "IMAGES"), ("UNLABELED", "MASKS")] if is_folder(custom.UNLABELED) else []
    if not custom.PANOPTIC_JSON:
        pairs.append(("MASKS", "IMAGES"))
    for one, other in pairs:
        a, b = folders[one], folders[other]
        if a.is_relative_to(b) or b.is_relative_to(a):
            raise DatasetError(
                f"DATASETS.CUSTOM.{one} {a} and DATASETS.CUSTOM.{other} {b} overlap; give each a folder of its own"
                + ("" if one == "MASKS" else ": labelled images, or masks, would be taken for unlabelled images")
            )


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
    held_back = held_back_of(custom, root, names)
    folder = cache_folder(digest(path), sorted(held_back))
    if not (folder / "val.json").is_file():
        write_splits(folder, content, held_back)
    return folder, panoptic


def _warn_unused(where: Path, why: str, names: list[str], unlabeled: Path) -> None:
    logger.warning(
        "%s: %s files %s and are not used: %s; images without labels belong into %s",
        where, len(names), why, first_few(names), unlabeled,
    )  # fmt: skip
