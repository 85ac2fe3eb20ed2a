"""Places of data sets on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PanopticSource:
    """The files and folders of a COCO-panoptic data set.

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
    """A folder of images, subfolders included, without annotations: for DATASETS.UNLABELED, mask generation and warm-up.

    `without`: real paths of images in it that are left out, since they have labels. `what`: a list file, tar shards or a URL in
    place of all images of the folder, see `listing.listed`.
    """

    image_root: Path
    hint: str = "put images there"
    without: frozenset[str] = frozenset()
    what: str = ""


Source = PanopticSource | ImageFolder


def datasets_root() -> Path:
    """`$DETECTRON2_DATASETS`, else `./datasets` as in detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
