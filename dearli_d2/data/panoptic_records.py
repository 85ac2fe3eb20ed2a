"""Images of a COCO-panoptic data set as detectron2 dicts, read from its JSON file."""

from __future__ import annotations

import logging
from functools import lru_cache

from detectron2.data import MetadataCatalog

from ..errors import DatasetError, first_few
from .images import image_sizes
from .panoptic_json import read_panoptic_json, without_annotation
from .sources import PanopticSource
from .taxonomy import Taxonomy

logger = logging.getLogger(__name__)


def read_taxonomy(source: PanopticSource, name: str) -> Taxonomy:
    """Classes in the order of the JSON file's categories. `name` of the data set, for errors."""
    return _read(source, _stamp(source), name)[1]


def read_dicts(source: PanopticSource, base: str, name: str) -> list[dict]:
    """The dicts of all images; sets the metadata of `name`, a view of `base`.

    Raises:
        DatasetError: the JSON file is missing or wrong.
    """
    records, taxonomy = _read(source, _stamp(source), base)
    _set_metadata(name, source, taxonomy)
    return [_to_dict(record, source) for record in records]


def _stamp(source: PanopticSource) -> tuple[int, int]:
    path = source.panoptic_json
    if not path.is_file():
        raise DatasetError(f"no annotation file {path}; {source.hint}")
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _read(source: PanopticSource, stamp: tuple[int, int], name: str) -> tuple[list[dict], Taxonomy]:
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
