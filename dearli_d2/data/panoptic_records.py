"""The records of a COCO-panoptic data set, read once from its JSON file into a table of the cache folder."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..errors import DatasetError, first_few
from .images import image_sizes
from .packed import Table, cache_file, cached
from .panoptic_json import read_panoptic_json, without_annotation
from .records import PanopticRecords, pack_panoptic
from .sources import PanopticSource
from .taxonomy import Taxonomy

logger = logging.getLogger(__name__)


def read_taxonomy(source: PanopticSource, name: str) -> Taxonomy:
    """Classes in the order of the JSON file's categories. `name` of the data set, for errors."""
    return _read(source, _stamp(source), name)[1]


def read_records(source: PanopticSource, base: str, name: str) -> PanopticRecords:
    """The records of all images; sets the metadata of `name`, a view of `base`.

    Raises:
        DatasetError: the JSON file is missing or wrong.
    """
    table, taxonomy = _read(source, _stamp(source), base)
    _set_metadata(name, source, taxonomy)
    classes = {dataset_id: i for i, dataset_id in enumerate(taxonomy.dataset_ids)}
    return PanopticRecords(table, (source.image_root, source.panoptic_root, source.semantic_root), classes)


def _stamp(source: PanopticSource) -> tuple[int, ...]:
    path = source.panoptic_json
    if not path.is_file():
        raise DatasetError(f"no annotation file {path}; {source.hint}")
    status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


@lru_cache(maxsize=8)
def _read(source: PanopticSource, stamp: tuple[int, ...], name: str) -> tuple[Table, Taxonomy]:
    """The content of a JSON file, and its classes; it is read once, unless it changes."""
    path, image_root = source.panoptic_json, source.image_root

    def build() -> Table:
        try:
            content = read_panoptic_json(path)
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from error
        left_out = without_annotation(content)
        annotated = {a["image_id"] for a in content["annotations"]}
        images = [image for image in content["images"] if image["id"] in annotated]
        unmeasured = [i for i in images if not {"height", "width"} <= set(i)]
        by_id = {image["id"]: image for image in _with_sizes(images, unmeasured, image_root)}
        records = [
            {"image": by_id[a["image_id"]], "png": a["file_name"], "segments": a["segments_info"]}
            for a in content["annotations"]
        ]
        facts = {
            "categories": content["categories"], "images": len(content["images"]), "left out": len(left_out),
            "first left out": first_few(left_out), "measured": len(unmeasured),
        }  # fmt: skip
        try:
            return pack_panoptic(records, facts)
        except UnicodeEncodeError as error:
            raise DatasetError(f"{name}: {path}: {error.object!r} is no text in UTF-8") from error

    place = cache_file("panoptic", os.path.abspath(path), os.path.abspath(image_root))
    table = cached(place, stamp, build)
    if table.facts["measured"]:  # an image may have changed since
        place.unlink(missing_ok=True)
        table = Table(table.facts, table.arrays)
    if table.facts["left out"]:
        logger.warning(
            "%s: %s of %s images of %s have no annotation and are left out: %s",
            name, table.facts["left out"], table.facts["images"], path, table.facts["first left out"],
        )  # fmt: skip
    categories = [c for c in table.facts["categories"] if c["name"] not in source.without]
    return table, Taxonomy.from_categories(categories, source.classes)


def _with_sizes(images: list[dict], without: list[dict], root: Path) -> list[dict]:
    """The images; a size that the JSON file does not give is that of the image file."""
    sizes = image_sizes([root / i["file_name"] for i in without])
    measured = {i["id"]: {"height": h, "width": w} for i, (h, w) in zip(without, sizes, strict=True)}
    return [{**i, **measured.get(i["id"], {})} for i in images]


def _set_metadata(name: str, source: PanopticSource, taxonomy: Taxonomy) -> None:
    """Sets the metadata that detectron2's own tools (its panoptic evaluator and visualiser) look up."""
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
