"""Own data from one YAML file (keys `DATASETS.CUSTOM.*`): a folder of images with masks, and one of unlabelled images.

The command `example` writes such a folder, with the class list in classes.txt, to try everything out.

    ROOT/images/*.jpg        labelled images
    ROOT/masks/*.png         index masks of the same names: pixel value = class id; or, with PANOPTIC_JSON, COCO-panoptic PNG
    ROOT/unlabeled/**        any images; no masks, no list

Index masks are converted once to the COCO-panoptic format of all other data sets, in the cache folder: a stuff class is one
segment of an image, a thing class one segment for each connected region.

Example:

    python -m dearli_d2.data.custom example --out mine
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from scipy import ndimage
from tabulate import tabulate
from tqdm import tqdm

from ..arguments import command_parser
from ..errors import ConfigError, DatasetError, first_few
from ..files import cache_dir, write_atomically, write_json
from ..visualization import annotation_sheet
from . import miniworld
from .catalog import ImageFolder, PanopticSource, dataset_dicts, register, taxonomy_of
from .images import find_images, image_sizes
from .mappers import read_panoptic, segment_ids
from .preparation import convert_all, ids_to_rgb, save_png, segment_info

logger = logging.getLogger(__name__)

TRAIN, VAL, UNLABELED = "custom_train", "custom_val", "custom_unlabeled"
VOID = 255
_LINE = re.compile(r"\s*(\d+)\s+(thing|stuff)\s+(\S.*?)\s*")
_NEIGHBOURS = np.ones((3, 3), bool)  # regions that touch at a corner are one


@dataclass(frozen=True)
class CustomClass:
    """`id` is the pixel value in the masks."""

    id: int
    isthing: bool
    names: tuple[str, ...]


def parse_classes(lines: list[str]) -> list[CustomClass]:
    """From lines `ID thing|stuff NAME, SYNONYM, ...`.

    Raises:
        ConfigError: a malformed line, an id or name that stands twice.
    """
    classes = []
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            raise ConfigError(
                f"DATASETS.CUSTOM.CLASSES: {line!r} should read 'ID thing NAME, SYNONYM' or 'ID stuff NAME', "
                "for example '1 thing car, automobile'"
            )
        names = tuple(n.strip() for n in found[3].split(",") if n.strip())
        classes.append(CustomClass(int(found[1]), found[2] == "thing", names))
    for what, values in (("id", [c.id for c in classes]), ("name", [c.names[0] for c in classes])):
        double = sorted({str(v) for v in values if values.count(v) > 1})
        if double:
            raise ConfigError(f"DATASETS.CUSTOM.CLASSES: {what} {', '.join(double)} stands twice")
    if len(classes) > VOID:
        raise ConfigError(f"DATASETS.CUSTOM.CLASSES: {len(classes)} classes; index masks can have {VOID}")
    if any(c.id == VOID for c in classes):
        raise ConfigError(f"DATASETS.CUSTOM.CLASSES: {VOID} means 'ignore' in the masks and can be no class")
    return classes


def number_of_classes(custom: CfgNode) -> int:
    """Of the class list, or of the JSON file's categories. Raises `ConfigError`."""
    if not custom.PANOPTIC_JSON:
        if not custom.CLASSES:
            raise ConfigError(
                "DATASETS.CUSTOM.CLASSES is empty: list your classes, or give DATASETS.CUSTOM.PANOPTIC_JSON"
            )
        return len(parse_classes(custom.CLASSES))
    if custom.CLASSES:
        raise ConfigError(
            "DATASETS.CUSTOM.CLASSES and PANOPTIC_JSON exclude each other: the JSON file holds the classes"
        )
    return len(_read_json(Path(custom.ROOT) / custom.PANOPTIC_JSON)["categories"])


def register_custom(custom: CfgNode) -> None:
    """Makes `custom_train`, `custom_val` and `custom_unlabeled` known; converts the masks unless the cache has them.

    Raises:
        ConfigError, DatasetError: with the file, the key and what to do.
    """
    root = Path(custom.ROOT).expanduser()
    if not root.is_dir():
        raise DatasetError(f"DATASETS.CUSTOM.ROOT: no folder {root}")
    images = root / custom.IMAGES
    if not images.is_dir():
        raise DatasetError(f"no folder {images} of labelled images (DATASETS.CUSTOM.ROOT / DATASETS.CUSTOM.IMAGES)")
    make = _from_json if custom.PANOPTIC_JSON else _from_masks
    folder, panoptic = make(custom, root)
    for name, split in ((TRAIN, "train"), (VAL, "val")):
        semantic = folder / "semantic" if not custom.PANOPTIC_JSON else None
        register(name, PanopticSource(images, folder / f"{split}.json", panoptic, semantic))
    unlabeled = root / custom.UNLABELED
    register(UNLABELED, ImageFolder(unlabeled, "put unlabelled images there, or set DATASETS.CUSTOM.UNLABELED"))


def _split(stems: list[str], fraction: float) -> set[str]:
    """The names of the validation part: those with the smallest hashes, so that new images hardly move old ones."""
    ordered = sorted(stems, key=lambda stem: hashlib.sha256(stem.encode()).digest())
    return set(ordered[: max(1, round(fraction * len(stems)))])


def _fingerprint(custom: CfgNode, files: list[Path]) -> str:
    described = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    options = [custom.CLASSES, custom.VAL_FRACTION, custom.MIN_THING_AREA, custom.PANOPTIC_JSON, custom.IMAGES]
    return hashlib.sha256(json.dumps([described, options, str(Path(custom.ROOT).resolve())]).encode()).hexdigest()[:16]


def _write_splits(custom: CfgNode, folder: Path, content: dict) -> None:
    """train.json and val.json of a COCO-panoptic dict."""
    stems = [Path(i["file_name"]).stem for i in content["images"]]
    if len(stems) < 2:
        raise DatasetError(f"DATASETS.CUSTOM: {len(stems)} labelled image; training and validation need at least 2")
    held_back = _split(stems, custom.VAL_FRACTION)
    for split in ("train", "val"):
        images = [i for i in content["images"] if (Path(i["file_name"]).stem in held_back) == (split == "val")]
        ids = {i["id"] for i in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        write_json(folder / f"{split}.json", {**content, "images": images, "annotations": annotations})


# ---------------------------------------------------------------------------------------------- COCO-panoptic JSON


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
        if not all(isinstance(content[key], list) for key in ("images", "annotations", "categories")):
            raise KeyError("images, annotations and categories must be lists")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"DATASETS.CUSTOM.PANOPTIC_JSON: {path} is no COCO-panoptic JSON file: {error}") from error


def _from_json(custom: CfgNode, root: Path) -> tuple[Path, Path]:
    path, panoptic = root / custom.PANOPTIC_JSON, root / custom.MASKS
    content = _read_json(path)
    if not panoptic.is_dir():
        raise DatasetError(f"no folder {panoptic} of panoptic PNG files (DATASETS.CUSTOM.MASKS)")
    folder = cache_dir() / "custom" / _fingerprint(custom, [path])
    if not (folder / "val.json").is_file():
        _write_splits(custom, folder, content)
    return folder, panoptic


# ---------------------------------------------------------------------------------------------- index masks


def _pairs(custom: CfgNode, root: Path) -> dict[str, tuple[Path, Path]]:
    """Stem to (image, mask). Raises `DatasetError` where one has no other."""
    images, masks = root / custom.IMAGES, root / custom.MASKS
    if not masks.is_dir():
        raise DatasetError(f"no folder {masks} of index masks (DATASETS.CUSTOM.ROOT / DATASETS.CUSTOM.MASKS)")
    files = [p for p in find_images([images]) if p.parent == images]
    by_stem = {p.stem: p for p in files}
    if len(by_stem) != len(files):
        raise DatasetError(f"{images}: two images share a name and differ in the suffix only")
    pngs = {p.stem: p for p in masks.iterdir() if p.suffix.lower() == ".png" and not p.name.startswith(".")}
    without_mask, without_image = sorted(set(by_stem) - set(pngs)), sorted(set(pngs) - set(by_stem))
    if without_mask:
        raise DatasetError(
            f"{len(without_mask)} of {len(files)} images in {images} have no mask of the same name in {masks}: "
            f"{first_few(without_mask)}; move images without masks to {root / custom.UNLABELED}"
        )
    if without_image:
        raise DatasetError(
            f"{len(without_image)} masks in {masks} have no image in {images}: {first_few(without_image)}"
        )
    return {stem: (by_stem[stem], pngs[stem]) for stem in sorted(by_stem)}


def _from_masks(custom: CfgNode, root: Path) -> tuple[Path, Path]:
    classes, pairs = parse_classes(custom.CLASSES), _pairs(custom, root)
    folder = cache_dir() / "custom" / _fingerprint(custom, [p for pair in pairs.values() for p in pair])
    panoptic = folder / "panoptic"
    if (folder / "val.json").is_file():
        return folder, panoptic
    for name in ("panoptic", "semantic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sizes = dict(zip(pairs, image_sizes([image for image, _ in pairs.values()]), strict=True))
    convert = partial(
        _convert, folder, classes, custom.MIN_THING_AREA, {s: str(m) for s, (_, m) in pairs.items()}, sizes
    )
    records = convert_all(list(pairs), convert, folder / "journal.jsonl", 1, "index masks")
    content = {
        "images": [
            {"id": s, "file_name": image.name, "height": sizes[s][0], "width": sizes[s][1]}
            for s, (image, _) in pairs.items()
        ],
        "annotations": [
            {"image_id": s, "file_name": f"{s}.png", "segments_info": r["segments_info"]}
            for s, r in zip(pairs, records, strict=True)
        ],
        "categories": [
            {"id": c.id, "name": c.names[0], "synonyms": list(c.names[1:]), "isthing": int(c.isthing)} for c in classes
        ],
    }
    _write_splits(custom, folder, content)
    return folder, panoptic


def _convert(
    folder: Path,
    classes: list[CustomClass],
    min_area: int,
    masks: dict[str, str],
    sizes: dict[str, tuple[int, int]],
    stem: str,
) -> dict:
    """Writes the panoptic and the semantic PNG of one image; returns its segments."""
    values = read_index_mask(masks[stem])
    if values.shape != tuple(sizes[stem]):
        raise DatasetError(
            f"{masks[stem]} is {values.shape[1]} x {values.shape[0]}, its image is {sizes[stem][1]} x {sizes[stem][0]} pixels"
        )
    strangers = sorted(set(np.unique(values).tolist()) - {c.id for c in classes} - {VOID})
    if strangers:
        raise DatasetError(
            f"{masks[stem]} holds the value {first_few(strangers)}, which is no id in DATASETS.CUSTOM.CLASSES "
            f"(ignored pixels are {VOID})"
        )
    ids, segments = np.zeros(values.shape, np.int64), []
    semantic = np.full(values.shape, VOID, np.uint8)
    for index, cls in enumerate(classes):
        here = values == cls.id
        if not here.any():
            continue
        semantic[here] = index
        regions = ndimage.label(here, _NEIGHBOURS)[0] if cls.isthing else here.astype(np.int32)
        large = np.bincount(regions.ravel()) >= (min_area if cls.isthing else 1)
        large[0] = False  # what is not of this class
        for region in np.nonzero(large)[0]:  # a noisy mask has thousands of specks: only what counts is looked at
            mask = regions == region
            identifier = len(segments) + 1
            ids[mask] = identifier
            segments.append(segment_info(identifier, cls.id, mask))
    save_png(folder / "panoptic" / f"{stem}.png", ids_to_rgb(ids))
    save_png(folder / "semantic" / f"{stem}.png", semantic)
    return {"segments_info": segments}


def read_index_mask(path: str) -> np.ndarray:
    """(H, W) class ids of a greyscale or palette PNG. Raises `DatasetError`."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "I", "I;16", "1"):
                raise DatasetError(
                    f"{path} is a colour image ({image.mode}); an index mask is a greyscale or palette PNG whose pixel "
                    "value is the class id"
                )
            return np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError) as error:
        raise DatasetError(f"{path} cannot be read as an index mask: {error}") from error


# ---------------------------------------------------------------------------------------------- what was found


def describe(custom: CfgNode) -> str:
    """Counts, sizes and class frequencies of the registered data."""
    lines, taxonomy = [], taxonomy_of(TRAIN)
    for name in (TRAIN, VAL, UNLABELED):
        if name == UNLABELED and not (Path(custom.ROOT) / custom.UNLABELED).is_dir():
            lines.append(f"{name}: no folder {Path(custom.ROOT) / custom.UNLABELED}")
            continue
        dicts = dataset_dicts(name)
        widths, heights = [d["width"] for d in dicts], [d["height"] for d in dicts]
        lines.append(
            f"{name}: {len(dicts)} images, {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)} pixels (w x h)"
        )
    rows = np.zeros((len(taxonomy), 3), dtype=np.int64)  # images, segments, pixels
    pixels = 0
    for d in tqdm(dataset_dicts(TRAIN) + dataset_dicts(VAL), desc="class frequencies", unit="image", leave=False):
        ids = segment_ids(read_panoptic(d["pan_seg_file_name"]))
        areas = dict(zip(*(x.tolist() for x in np.unique(ids, return_counts=True)), strict=True))
        pixels += ids.size
        for c in {s["category_id"] for s in d["segments_info"]}:
            rows[c, 0] += 1
        for s in d["segments_info"]:
            rows[s["category_id"], 1:] += 1, areas.get(s["id"], 0)
    table = [
        [name, "thing" if i in taxonomy.thing_ids else "stuff", *rows[i, :2].tolist(), 100 * rows[i, 2] / pixels]
        for i, name in enumerate(taxonomy.main_names)
    ]
    absent = [name for i, name in enumerate(taxonomy.main_names) if not rows[i, 1]]
    if absent:
        lines.append(f"note: no image shows {first_few(absent)}")
    return (
        "\n".join(lines)
        + "\n"
        + tabulate(table, ["class", "kind", "images", "segments", "% of pixels"], floatfmt=".2f")
    )


def write_contact_sheet(path: Path, rows: int = 6) -> None:
    """Labelled images beside their segments."""
    dicts = dataset_dicts(TRAIN)
    chosen = [dicts[i] for i in np.linspace(0, len(dicts) - 1, min(rows, len(dicts))).astype(int)]
    sheet = annotation_sheet(chosen, taxonomy_of(TRAIN))
    write_atomically(path, lambda temporary: sheet.save(temporary))


# ---------------------------------------------------------------------------------------------- an example


def write_example(out: Path, labeled: int = 40, unlabeled: int = 200) -> None:
    """A folder as the module's docstring shows, of miniworld's first scenes."""
    for name in ("images", "masks", "unlabeled"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(labeled + unlabeled), desc="example", unit="scene", leave=False):
        scene = miniworld.make_scene(0, index)
        target = "images" if index < labeled else "unlabeled"
        miniworld.save_image(scene, out / target / f"{index:06d}.jpg")
        if index < labeled:
            save_png(out / "masks" / f"{index:06d}.png", scene.semantic())
    lines = [f"{c.id - 1} {'thing' if c.isthing else 'stuff'} {c.name}" for c in miniworld.CLASSES]
    (out / "classes.txt").write_text("\n".join(lines) + os.linesep)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m dearli_d2.data.custom", __doc__)
    commands = parser.add_subparsers(required=True)
    example = commands.add_parser("example", help="write an example folder, made of generated scenes")
    example.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    example.add_argument("--labeled", type=int, default=40, metavar="N", help="images with masks; default: %(default)s")
    example.add_argument("--unlabeled", type=int, default=200, metavar="N", help="images without; default: %(default)s")
    args = parser.parse_args(argv)
    write_example(args.out, args.labeled, args.unlabeled)
    print(f"{args.out}: {args.labeled} labelled and {args.unlabeled} unlabelled images, classes in classes.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
