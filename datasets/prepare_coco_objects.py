#!/usr/bin/env python
"""COCO-Objects from COCO-panoptic: 80 things, and one background class that collects all stuff.

Reads below $DETECTRON2_DATASETS/coco what prepare_coco.py has made, and writes

    annotations/panoptic_objects_{train,val}2017.json
    panoptic_objects_{train,val}2017/*.png       all stuff segments of an image as one

Void pixels stay void. An interrupted run resumes.

    python datasets/prepare_coco_objects.py [--splits train val] [--workers 4]
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from dearli_d2.cli import report_errors
from dearli_d2.data.catalog import datasets_root
from dearli_d2.data.mappers import read_panoptic, segment_ids
from dearli_d2.data.preparation import convert_all, ids_to_rgb, save_png, segment_info
from dearli_d2.errors import DatasetError
from dearli_d2.files import write_json

THINGS = 80
# beyond COCO's ids, which end at 200
BACKGROUND = {
    "id": 201,
    "name": "background",
    "isthing": 0,
    "synonyms": ["wall", "building", "sky", "ground", "tree", "grass", "water", "food", "furniture"],
}


@lru_cache(maxsize=1)
def read_panoptic_json(path: Path) -> tuple[dict, dict[str, dict], frozenset[int]]:
    """Content, annotations by label file, ids of stuff categories. Read once in a process; workers that are forked have it
    already."""
    content = json.loads(path.read_text())
    stuff = frozenset(c["id"] for c in content["categories"] if not c["isthing"])
    return content, {a["file_name"]: a for a in content["annotations"]}, stuff


def merge_stuff(path: Path, source: Path, target: Path, name: str) -> dict:
    """Writes one label image with its stuff as a single segment; returns its annotation."""
    _, annotations, stuff = read_panoptic_json(path)
    annotation = annotations[name]
    ids = segment_ids(read_panoptic(str(source / name)))
    merged = [s["id"] for s in annotation["segments_info"] if s["category_id"] in stuff]
    segments = [s for s in annotation["segments_info"] if s["category_id"] not in stuff]
    where = np.isin(ids, merged)
    if where.any():
        ids = np.where(where, merged[0], ids)  # an id of the image's own, so no thing has it
        segments.append(segment_info(merged[0], BACKGROUND["id"], where))
    save_png(target / name, ids_to_rgb(ids))
    return {"image_id": annotation["image_id"], "file_name": name, "segments_info": segments}


def prepare(root: Path, split: str, workers: int) -> None:
    """One split."""
    path = root / "annotations" / f"panoptic_{split}2017.json"
    if not path.is_file():
        raise DatasetError(f"{split}: no file {path}; run datasets/prepare_coco.py first")
    content, annotations, _ = read_panoptic_json(path)
    things = [c for c in content["categories"] if c["isthing"]]
    if len(things) != THINGS:
        raise DatasetError(f"{path} has {len(things)} thing categories, COCO has {THINGS}")
    source, target = root / f"panoptic_{split}2017", root / f"panoptic_objects_{split}2017"
    absent = [name for name in annotations if not (source / name).is_file()]
    if absent:
        raise DatasetError(
            f"{split}: {len(absent)} of {len(annotations)} label files are missing in {source}, first: {absent[0]}; "
            "run datasets/prepare_coco.py first"
        )
    target.mkdir(exist_ok=True)
    convert = partial(merge_stuff, path, source, target)
    journal = root / f".panoptic_objects_{split}2017.jsonl"
    results = convert_all(list(annotations), convert, journal, workers, f"coco_objects_{split}")
    objects = {"images": content["images"], "annotations": results, "categories": [*things, BACKGROUND]}
    write_json(root / "annotations" / f"panoptic_objects_{split}2017.json", objects)
    journal.unlink()
    print(f"coco_objects_{split}: {len(results)} images ready")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", nargs="+", choices=("train", "val"), default=["train", "val"])
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args(argv)

    def command() -> int:
        for split in args.splits:
            prepare(datasets_root() / "coco", split, args.workers)
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main())
