"""Writes the samples of this folder with the tools' own libraries; see README.md for their versions.

Run it in an environment that has them, for example: python make_samples.py label_studio
Each function needs one library. The tests import `masks` and `points` alone, which need numpy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HEIGHT, WIDTH = 48, 64
POLYGON = [[8.0, 4.0], [30.0, 4.0], [30.0, 20.0], [8.0, 20.0]]


def masks() -> dict[str, np.ndarray]:
    """The truth of every sample: (48, 64) masks of a road, a car as `POLYGON`, and a round tree with a hole."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = (y - 20) ** 2 + (x - 46) ** 2
    return {
        "road": y >= 34,
        "car": (y >= 4) & (y < 20) & (x >= 8) & (x < 30),
        "tree": (distance <= 121) & (distance > 16),
    }


def label_studio() -> None:
    """A task with brush masks of label-studio-sdk's own encoder and a polygon."""
    from label_studio_sdk.converter.brush import mask2rle

    common = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "from_name": "l", "to_name": "i"}
    results = [
        {**common, "id": name, "type": "brushlabels", "value": {
            "format": "rle", "rle": mask2rle(masks()[name].astype(np.uint8) * 255), "brushlabels": [name]}}
        for name in ("road", "tree")
    ]  # fmt: skip
    percent = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in POLYGON]
    value = {"points": percent, "closed": True, "polygonlabels": ["car"]}
    results.append({**common, "id": "car", "type": "polygonlabels", "value": value})
    annotation = {"id": 7, "was_cancelled": False, "updated_at": "2024-05-02T10:00:00Z", "result": results}
    older = {"id": 6, "was_cancelled": False, "updated_at": "2024-05-01T10:00:00Z", "result": []}
    task = {"id": 1, "annotations": [annotation, older], "file_upload": "0a1b2c3d-photo.jpg", "predictions": [],
            "data": {"image": "/data/upload/1/0a1b2c3d-photo.jpg"}}  # fmt: skip
    (HERE / "label_studio.json").write_text(json.dumps([task]))


def cvat() -> None:
    """annotations.xml as CVAT's documentation has it, with masks of cvat-sdk's own encoder."""
    from cvat_sdk.masks import encode_mask

    lines = []
    for name in ("road", "tree"):
        *runs, left, top, right, bottom = encode_mask(masks()[name])
        place = f'left="{left}" top="{top}" width="{right - left + 1}" height="{bottom - top + 1}"'
        lines.append(
            f'    <mask label="{name}" source="manual" occluded="0" rle="{str(runs)[1:-1]}" {place} z_order="0"/>'
        )
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in POLYGON)
    lines.append(f'    <polygon label="car" source="manual" occluded="0" points="{points}" z_order="1"/>')
    labels = "".join(f"<label><name>{name}</name><color>#33ddff</color></label>" for name in masks())
    (HERE / "cvat.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta><job><labels>{labels}</labels></job></meta>\n"
        f'  <image id="0" name="photo.jpg" subset="Train" task_id="1" width="{WIDTH}" height="{HEIGHT}">\n'
        + "\n".join(lines) + "\n  </image>\n</annotations>\n"
    )  # fmt: skip


def labelme() -> None:
    """A file of Labelme's own writer, with a mask that it encodes."""
    from labelme._label_file import write_label_file
    from labelme.utils import img_arr_to_b64

    def shape(label: str, kind: str, points: list, mask: str | None = None) -> dict:
        extra = {} if mask is None else {"mask": mask}
        return {"label": label, "points": points, "group_id": None, "description": "", "shape_type": kind, "flags": {}, **extra}  # fmt: skip

    y, x = np.nonzero(masks()["tree"])
    box = masks()["tree"][y.min() : y.max() + 1, x.min() : x.max() + 1].astype(np.uint8)
    corners = [[float(x.min()), float(y.min())], [float(x.max()), float(y.max())]]
    shapes = [
        shape("road", "rectangle", [[0.0, 34.0], [float(WIDTH), float(HEIGHT)]]),
        shape("tree", "mask", corners, img_arr_to_b64(box)),
        shape("car", "polygon", POLYGON),
    ]
    write_label_file(str(HERE / "labelme.json"), shapes=shapes, image_path="..\\pictures\\photo.jpg", image_height=HEIGHT, image_width=WIDTH)  # fmt: skip


def _detections():
    import supervision

    found = np.stack(list(masks().values()))
    boxes = supervision.mask_to_xyxy(found)
    detections = supervision.Detections(xyxy=boxes, mask=found, class_id=np.arange(len(found)))
    photo = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return supervision.DetectionDataset(list(masks()), {"photo.jpg": photo}, {"photo.jpg": detections})


def supervision_coco() -> None:
    """A COCO file of supervision, which writes polygons, and run lengths for regions with holes."""
    _detections().as_coco(annotations_path=str(HERE / "supervision_coco.json"))


def supervision_yolo() -> None:
    """The text file and data.yaml of supervision."""
    folder = HERE / "supervision_yolo"
    _detections().as_yolo(annotations_directory_path=str(folder / "labels"), data_yaml_path=str(folder / "data.yaml"))


def pycocotools() -> None:
    """A COCO file with compressed run lengths of pycocotools, and run lengths as a list of a crowd, as COCO has both."""
    from pycocotools import mask as coco

    annotations = []
    for number, (name, mask) in enumerate(masks().items(), start=1):
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = rle["counts"].decode()
        if name == "tree":
            flat = mask.ravel(order="F")
            counts = np.diff(np.flatnonzero(np.diff(flat, prepend=not flat[0], append=not flat[-1]))).tolist()
            counts = [0, *counts] if flat[0] else counts
        annotations.append({
            "id": number, "image_id": 1, "category_id": number, "iscrowd": int(name == "tree"), "area": int(mask.sum()),
            "bbox": coco.toBbox(rle).tolist(), "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}})  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(masks(), start=1)]
    images = [{"id": 1, "file_name": "photo.jpg", "height": HEIGHT, "width": WIDTH}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (HERE / "pycocotools.json").write_text(json.dumps(content))


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        globals()[wanted]()
