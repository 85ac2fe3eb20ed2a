#!/usr/bin/env python
"""COCO-Objects from COCO-panoptic: 80 things, and one background class of all stuff and all pixels without annotation.

Reads below $DETECTRON2_DATASETS/coco what `dearli prepare coco` has made, and

    masks/*.png               "masks" of the COCO data of UniMatch; semantic labels, 0 = background, 1..80 = thing, 255 = ignore

The masks are linked from https://github.com/LiheYoung/UniMatch, as "masks", and are ground_truth_coco.zip of the release "checkpoints" of
https://github.com/google-research/semivl. Papers measure mIoU against those of val2017. Annotations are under CC BY 4.0.

It writes

    annotations/panoptic_objects_{train,val}2017.json
    panoptic_objects_{train,val}2017/*.png       the things as they were, the rest as one segment
    semantic_objects_val2017/*.png               the masks, checked

--semantic panoptic makes the semantic labels from the panoptic ones instead: mIoU then differs from that of papers by what
the two disagree about. An interrupted run resumes.

    dearli prepare coco_objects train val --workers 4
    dearli prepare coco_objects val --semantic panoptic
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click
import numpy as np

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, splits, workers
from dearli_d2.data.class_names import COCO_BACKGROUND, COCO_THINGS
from dearli_d2.data.panoptic_png import ids_to_rgb, read_panoptic, segment_ids, segment_info
from dearli_d2.data.preparation import (
    categories_of,
    convert_all,
    only_process,
    read_label_ids,
    read_official_json,
    save_png,
)
from dearli_d2.data.release import Download, Release
from dearli_d2.data.sources import datasets_root
from dearli_d2.errors import DatasetError, first_few
from dearli_d2.files import remove_leftovers, write_json

CATEGORIES = categories_of("coco_objects", things=COCO_THINGS)
CLASS_OF = {category["id"]: index for index, category in enumerate(CATEGORIES)}
EXPECTED = {"train": 118287, "val": 5000}
HINT = "run dearli prepare coco first"
MASKS_HINT = "; download the COCO masks of UniMatch and unpack them in $DETECTRON2_DATASETS/coco/masks, or use --semantic panoptic"


def with_background(ids: np.ndarray, segments: list[dict]) -> tuple[np.ndarray, list[dict]]:
    """Joins all that is no thing, pixels without annotation included, into one background segment.

    Args:
        ids: (H, W) segment ids, 0 = not annotated. segments: their infos.

    Returns:
        The same of things and background. The background takes the id of the first stuff segment, else one that is free.
    """
    things = [s for s in segments if s["category_id"] in COCO_THINGS]
    stuff = [s["id"] for s in segments if s["category_id"] not in COCO_THINGS]
    where = np.isin(ids, [0, *stuff])
    if not where.any():
        return ids, things
    taken = {s["id"] for s in segments}
    free = stuff[0] if stuff else next(i for i in range(1, len(taken) + 2) if i not in taken)
    return np.where(where, free, ids), [*things, segment_info(free, COCO_BACKGROUND, where)]


def semantic_of(ids: np.ndarray, segments: list[dict]) -> np.ndarray:
    """(H, W) uint8 classes 0..80 of (H, W) segment ids."""
    semantic = np.full(ids.shape, 255, np.uint8)
    for segment in segments:
        semantic[ids == segment["id"]] = CLASS_OF[segment["category_id"]]
    return semantic


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 classes 0..80, 255 = ignore. Raises `DatasetError` for another size or other values."""
    mask = read_label_ids(path)
    if mask.shape != shape:
        raise DatasetError(f"{path} has {mask.shape} pixels, the panoptic label {shape}")
    wrong = mask[(mask >= len(CATEGORIES)) & (mask != 255)]
    if len(wrong):
        raise DatasetError(f"{path}: class {int(wrong[0])} is not in 0..{len(CATEGORIES) - 1}, and not 255 (ignore)")
    return mask


def convert(root: Path, split: str, masks: Path | None, index: str) -> dict:
    """Writes the label images of one annotation; returns its new annotation."""
    content = read_official_json(root / "annotations" / f"panoptic_{split}2017.json", HINT)
    annotation = content["annotations"][int(index)]
    name = annotation["file_name"]
    ids = segment_ids(read_panoptic(str(root / f"panoptic_{split}2017" / name)))
    ids, segments = with_background(ids, annotation["segments_info"])
    save_png(root / f"panoptic_objects_{split}2017" / name, ids_to_rgb(ids))
    if split == "val":
        semantic = semantic_of(ids, segments) if masks is None else read_mask(masks / name, ids.shape)
        save_png(root / f"semantic_objects_{split}2017" / name, semantic)
    return {"image_id": annotation["image_id"], "file_name": name, "segments_info": segments}


def check(root: Path, split: str, masks: Path | None, incomplete: bool) -> dict:
    """Content of a split's JSON file, all of whose label files are there. Raises `DatasetError` for what is not as it should be."""
    path = root / "annotations" / f"panoptic_{split}2017.json"
    content = read_official_json(path, HINT)
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    expected = set(CLASS_OF) - {COCO_BACKGROUND}
    if things != expected:
        raise DatasetError(
            f"{path} has {len(things)} thing categories, COCO has {len(expected)}; "
            f"ids of only one of them: {first_few(sorted(things ^ expected))}"
        )
    fix = HINT if masks is None else HINT + MASKS_HINT
    download = Download(Release(f"coco_objects_{split}", EXPECTED[split], fix, incomplete=incomplete))
    stems = [annotation["file_name"].removesuffix(".png") for annotation in content["annotations"]]
    download.count(stems, path.name)
    download.labelled(stems, root / f"panoptic_{split}2017", ".png")
    if masks is not None:
        download.labelled(stems, masks, ".png", "mask")
    download.stop()
    return content


def prepare(root: Path, splits: tuple[str, ...], semantic: str, workers: int, incomplete: bool) -> None:
    """The splits, once all are found complete."""
    masks = {split: root / "masks" if semantic == "masks" and split == "val" else None for split in splits}
    for split in splits:
        check(root, split, masks[split], incomplete)
    for split in splits:
        content = read_official_json(root / "annotations" / f"panoptic_{split}2017.json", HINT)
        with only_process(root / f".objects_{split}2017.lock"):
            path = root / "annotations" / f"panoptic_objects_{split}2017.json"
            for folder in (root / f"panoptic_objects_{split}2017", root / f"semantic_objects_{split}2017"):
                remove_leftovers(folder, age=0)
            remove_leftovers(path.parent, path.stem, age=0)
            journal = root / f".objects_{split}2017_{semantic}.jsonl"
            one, keys = (
                partial(convert, root, split, masks[split]),
                [str(i) for i in range(len(content["annotations"]))],
            )
            results = convert_all(keys, one, journal, workers, f"coco_objects_{split}", HINT)
            write_json(path, {"images": content["images"], "annotations": results, "categories": CATEGORIES})
            journal.unlink()
        truth = f"; mIoU against {masks[split] or 'labels made from the panoptic ones'}" if split == "val" else ""
        print(f"coco_objects_{split}: {len(results)} images ready{truth}")


@command(help=__doc__)
@splits
@click.option(
    "--semantic",
    type=click.Choice(("masks", "panoptic")),
    default="masks",
    show_default=True,
    help="Origin of the semantic labels.",
)
@workers
@incomplete
def main(splits: tuple[str, ...], semantic: str, workers: int, incomplete: bool) -> None:
    prepare(datasets_root() / "coco", splits, semantic, workers, incomplete)


if __name__ == "__main__":
    sys.exit(run(main))
