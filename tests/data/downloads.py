"""Made-up downloads in the layout of the official ones: two images or so of each data set, below a root folder."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from scipy.io import savemat

from dearli_d2.data.class_names import class_table
from dearli_d2.data.panoptic_png import ids_to_rgb, segment_info
from dearli_d2.data.preparation import save_png
from dearli_d2.masks.storage import encode


def ade20k(data: Path) -> Path:
    """Two images a split: a wall (1), a floor (4), two beds (8 = instance class 1), one bed pixel without instance."""
    root = data / "ADEChallengeData2016"
    for folder in ("training", "validation"):
        for part in ("images", "annotations", "annotations_instance"):
            (root / part / folder).mkdir(parents=True)
        for stem in ("ADE_1", "ADE_2"):
            semantic = np.zeros((12, 16), np.uint8)
            semantic[:6], semantic[6:] = 1, 4
            semantic[2:5, 2:6], semantic[8:11, 2:6], semantic[11, 15], semantic[0, 0] = 8, 8, 8, 0
            instance = np.zeros((12, 16, 3), np.uint8)
            instance[2:5, 2:6], instance[8:11, 2:6] = (1, 1, 0), (1, 2, 0)
            Image.new("RGB", (16, 12)).save(root / "images" / folder / f"{stem}.jpg")
            Image.fromarray(semantic).save(root / "annotations" / folder / f"{stem}.png")
            Image.fromarray(instance).save(root / "annotations_instance" / folder / f"{stem}.png")
    names = [", ".join((entry.official[0], "another name")) for entry in class_table("ade20k")]
    rows = [f"{i}\t0.1\t1\t1\t0\t{name}" for i, name in enumerate(names, start=1)]
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "\n".join(rows))
    return root


def coco_unpacked(data: Path) -> Path:
    """Two images with a toothbrush, two stuff segments and a void pixel; the masks that go with COCO-Objects say less."""
    root = data / "coco"
    categories = [{k: c[k] for k in ("id", "name", "isthing")} for c in COCO_CATEGORIES]
    ids = np.zeros((10, 12), np.int64)
    ids[:5], ids[5:], ids[2:7, 3:6], ids[0, 0] = 70000, 300, 7, 0
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir(parents=True)
        content = {"images": [], "annotations": [], "categories": categories}
        for index in range(2):
            Image.new("RGB", (12, 10)).save(root / f"{split}2017" / f"{index}.jpg")
            save_png(root / f"panoptic_{split}2017" / f"{index}.png", ids_to_rgb(ids))
            content["images"].append({"id": index, "file_name": f"{index}.jpg", "height": 10, "width": 12})
            segments = [segment_info(i, c, ids == i) for i, c in ((70000, 92), (300, 200), (7, 90))]
            content["annotations"].append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(content))
    mask = np.zeros((10, 12), np.uint8)
    mask[2:7, 3:5], mask[9] = 80, 255
    for index in range(2):
        save_png(root / "masks" / f"{index}.png", mask)
    return root


def pascal_voc(data: Path) -> Path:
    """VOC: one training image and one for validation; SBD: the same training image with another label, one of its own, and
    VOC's validation image."""
    root, sbd = data / "VOCdevkit" / "VOC2012", data / "benchmark_RELEASE" / "dataset"
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass", sbd / "cls"):
        folder.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("v\n")
    (sbd / "train.txt").write_text("a\nb\n")
    (sbd / "val.txt").write_text("v\n")
    for stem in "abv":
        Image.new("RGB", (8, 6)).save(root / "JPEGImages" / f"{stem}.jpg")
        savemat(sbd / "cls" / f"{stem}.mat", {"GTcls": {"Segmentation": np.full((6, 8), 15, np.uint8)}})
    for stem in "av":
        label = np.zeros((6, 8), np.uint8)
        label[2:4], label[4, 0] = 20, 255
        picture = Image.fromarray(label, mode="P")
        picture.putpalette([i for c in range(256) for i in (c, 255 - c, 7)])
        picture.save(root / "SegmentationClass" / f"{stem}.png")
    return root


def cityscapes(data: Path) -> Path:
    """One image a split: road, a bicycle, a parking place (ignored) and a car."""
    root = data / "cityscapes"
    for split in ("train", "val"):
        for folder in ("leftImg8bit", "gtFine"):
            (root / folder / split / "jena").mkdir(parents=True)
        Image.new("RGB", (12, 6)).save(root / "leftImg8bit" / split / "jena" / "jena_1_leftImg8bit.png")
        label = np.full((6, 12), 7, np.uint8)
        label[0], label[1], label[2] = 33, 9, 26  # bicycle, parking (ignored), car
        Image.fromarray(label).save(root / "gtFine" / split / "jena" / "jena_1_gtFine_labelIds.png")
    return root


def gta5(data: Path) -> Path:
    """Two scenes; the label of the second is smaller than its image."""
    root = data / "gta5"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for stem, size in (("00001", (12, 6)), ("00002", (10, 6))):
        Image.new("RGB", (12, 6)).save(root / "images" / f"{stem}.png")
        label = np.full(size[::-1], 7, np.uint8)
        label[0], label[1] = 24, 34  # person, licence plate
        picture = Image.fromarray(label, mode="P")
        picture.putpalette([i for c in range(256) for i in (c, 0, 255 - c)])
        picture.save(root / "labels" / f"{stem}.png")
    return root


def synthia(data: Path) -> Path:
    """One scene: road with instances, a person, a truck (left out) and a lane mark."""
    root = data / "synthia"
    for folder in ("RGB", "GT/LABELS"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (12, 6)).save(root / "RGB" / "0000000.png")
    label = np.zeros((6, 12, 3), np.uint16)  # blue, green, red: the first channel is written last
    label[..., 2], label[..., 1] = 3, 500  # road; instances
    label[0, :, 2], label[1, :, 2], label[2, :, 2] = 10, 18, 22  # person, truck (left out), lane mark
    cv2.imwrite(str(root / "GT" / "LABELS" / "0000000.png"), label)
    return root


def sa1b(data: Path) -> Path:
    """An unpacked archive with one image and its two masks."""
    folder = data / "sa1b" / "sa_000000"
    folder.mkdir(parents=True)
    Image.new("RGB", (16, 12)).save(folder / "sa_1.jpg")
    masks = np.zeros((2, 12, 16), bool)
    masks[0, :6], masks[1, :, 5:] = True, True
    annotations = [
        {"id": i, "segmentation": encode(m), "area": int(m.sum()), "bbox": [0, 0, 1, 1], "predicted_iou": 0.9, "stability_score": 0.97}
        for i, m in enumerate(masks)
    ]  # fmt: skip
    info = {"image_id": 1, "file_name": "sa_1.jpg", "height": 12, "width": 16}
    (folder / "sa_1.json").write_text(json.dumps({"image": info, "annotations": annotations}))
    return folder.parent


def camvid(data: Path) -> Path:
    """Four images for training and one for validation: road, two cars, of which one is too small, and a void row."""
    root = data / "camvid"
    label = np.full((20, 30), 3, np.uint8)
    label[2:10, 2:10], label[12:15, 20:23], label[19] = 8, 8, 11
    for split, images in (("train", 4), ("val", 1)):
        for index in range(images):
            save_png(root / split / f"{index}.png", np.full((20, 30, 3), 40 * index, np.uint8))
            save_png(root / f"{split}annot" / f"{index}.png", label)
    return root


def coco(data: Path) -> Path:
    """As `coco_unpacked`, but with the label files still zipped, and with label maps of COCO-Stuff."""
    root = coco_unpacked(data)
    for split in ("train", "val"):
        folder = root / f"panoptic_{split}2017"
        with zipfile.ZipFile(root / "annotations" / f"panoptic_{split}2017.zip", "w") as archive:
            for png in sorted(folder.iterdir()):
                archive.write(png, f"{folder.name}/{png.name}")
                label = np.full((10, 12), 255, np.uint8)
                label[:5], label[5:8] = 0, 181  # person, wood
                save_png(root / "stuffthingmaps" / f"{split}2017" / png.name, label)
                png.unlink()
        folder.rmdir()
    return root
