"""The sections of data, of their views and of their loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .options import Options, option
from .values import (
    COUNT,
    NAME,
    NAMES,
    PART,
    PATH,
    POSITIVE,
    POSITIVE_COUNT,
    RANGE,
    SHARE,
    SIDE,
    SWITCH,
    TEXT,
    WEIGHT,
    Items,
    Number,
    Text,
    one_of,
)


@dataclass(frozen=True)
class Datasets(Options):
    """The data sets of each role."""

    SECTION: ClassVar[str] = "DATASETS"

    unseen_classes: tuple[str, ...] = option(
        (),
        NAMES,
        "Names of classes that training must not see (zero-shot). Their segments are removed when labels are read.",
    )
    unlabeled: tuple[str, ...] = option(
        (), NAMES, "Data sets or views without labels. Training never reads their annotations."
    )
    source: tuple[str, ...] = option(
        (), NAMES, "Labelled data of another domain, as a stream of its own. Its classes are those of DATASETS.TRAIN."
    )
    partition: str = option(
        "",
        Text(like="a text; in a YAML file in quotes, such as '1_8', which would be the number 18"),
        'Fills the word PARTITION in names of data sets, such as "ade20k_panoptic_train@PARTITION". It is a published partition, a fraction, a number such as n100, a list file, or "all". With DATASETS.SOURCE "n0" means no labels.',
    )
    masks: str = option(
        "",
        PATH,
        'Folder that `dearli masks generate` wrote. Its masks are the targets where MODEL.CLASSIFIER is "none".',
    )
    allow_overlap: bool = option(False, SWITCH, "Allows images of TEST in TRAIN, SOURCE or UNLABELED.")


@dataclass(frozen=True)
class CustomData(Options):
    """Own data: see data/custom.py and docs/custom_data.md; used where ROOT is set."""

    SECTION: ClassVar[str] = "DATASETS.CUSTOM"

    root: str = option("", PATH, "Folder of the data. All other paths of this section are below it.")
    images: str = option("images", NAME, "Folder of labelled images, with its subfolders.")
    masks: str = option(
        "masks", NAME, "Folder of PNG index masks, whose values are class ids, or of panoptic PNG files."
    )
    panoptic_json: str = option("", TEXT, 'COCO-panoptic JSON file. "" means index masks.')
    labels: str = option(
        "",
        TEXT,
        "File or folder of labels in the format of a labelling tool. It replaces IMAGES and MASKS: images are found below ROOT.",
    )
    format: str = option("", TEXT, 'Format of LABELS, such as "coco-instances". "" recognises it.')
    background: str = option(
        "", TEXT, 'Class of the pixels that LABELS leaves free, such as "background". "": they carry no loss.'
    )
    mask_name: str = option(
        "", TEXT, 'Name of the mask of an image, where LABELS is a folder of masks, such as "{stem}_mask.png".'
    )
    unlabeled: str = option(
        "unlabeled",
        TEXT,
        "Folder of images without masks, list file (.txt), tar shards such as shards/*.tar, or a URL; see docs/many_images.md.",
    )
    classes: list[str] = option(
        [],
        NAMES,
        'Lines "ID thing|stuff NAME, SYNONYM", or one file of them. [] takes ROOT/classes.txt, or the classes of PANOPTIC_JSON.',
    )
    ignore_value: int = option(
        255,
        Number(-1, 2**16 - 1, whole=True),
        'Pixel value of index masks that means "ignore". -1 means that there is none.',
    )
    val_fraction: float = option(0.2, PART, "Share of the labelled images that is held back for validation.")
    val: str = option(
        "", PATH, "List file (.txt) or subfolder of IMAGES with the images held back. It replaces VAL_FRACTION."
    )
    allow_absent_classes: bool = option(False, SWITCH, "Lets a run start although no labelled image shows some class.")
    min_labeled: float = option(
        0.05, SHARE, "The run stops where most images have labels on a smaller share of their pixels. 0 checks nothing."
    )
    min_thing_area: int = option(16, COUNT, "Connected regions of a thing class with fewer pixels are ignored.")


@dataclass(frozen=True)
class Input(Options):
    """Sizes, crops and augmentation."""

    SECTION: ClassVar[str] = "INPUT"

    format: str = option("RGB", one_of("RGB"), "Order of the colours.")
    crop_size: int = option(640, SIDE, "Side of the square crop in pixels.")
    scale_range: tuple[float, ...] = option(
        (0.5, 2.0), RANGE, "Range of the short side divided by CROP_SIZE, drawn in steps of 0.1."
    )
    source_scale_range: tuple[float, ...] = option(
        (), Items(POSITIVE, (0, 2), rising=True), "The same for images of DATASETS.SOURCE. () takes SCALE_RANGE."
    )
    max_size_train: int = option(2560, POSITIVE_COUNT, "Longest side of a resized training image in pixels.")
    min_size_test: int = option(640, COUNT, "Short side at evaluation in pixels.")
    max_size_test: int = option(2560, POSITIVE_COUNT, "Longest side at evaluation in pixels.")
    color_aug_ssd: bool = option(True, SWITCH, "Changes the colours of labelled images as SSD does.")
    jitter: tuple[float, ...] = option(
        (),
        Items(WEIGHT, (0, 4)),
        "Changes the colours of labelled images by brightness, contrast, saturation and hue as SSL.JITTER. () leaves them.",
    )
    targets: str = option(
        "panoptic",
        one_of("panoptic", "semantic"),
        '"panoptic", or "semantic": one segment for each class, and pixels without an annotation carry no loss.',
    )
    pad_value: int = option(128, Number(0, 255, whole=True), "Value of padded pixels, 0 to 255. They carry no loss.")


@dataclass(frozen=True)
class DataLoading(Options):
    """Order and workers."""

    SECTION: ClassVar[str] = "DATALOADER"

    num_workers: int = option(4, COUNT, "Processes that load each stream. 0 loads in the training process.")
    rare_class_sampling: bool = option(
        False, SWITCH, "Draws a class first, rare ones more often, then a labelled image that shows it (DAFormer)."
    )
    rare_class_temperature: float = option(
        0.01, POSITIVE, "T of the class probabilities softmax((1 - f) / T), where f is the share of annotated pixels."
    )
    rare_class_area: float = option(0.005, PART, "Share of an image from which on it counts for a class.")
