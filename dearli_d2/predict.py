"""Segments image files with a trained model."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from tqdm import tqdm

from .checkpoint import load_content
from .config import get_config
from .data.captions import read_captions
from .data.custom import listed_classes
from .data.images import read_image
from .data.mappers import TestMapper
from .data.panoptic_png import ids_to_rgb, segment_info
from .data.sizes import enlarge_read_out
from .data.taxonomy import Taxonomy, named, same_classes
from .errors import ConfigError, DatasetError, UnreadableImageError, first_few
from .files import file_digest, write_atomically
from .modeling import build_model
from .modeling.per_pixel.semantic import class_segments, normalized
from .prediction import Picture, Prediction, as_pixels
from .prediction_folder import Inputs, PredictionFolder
from .reporting import is_out_of_memory
from .visualization import prediction_picture
from .weights import read_file

logger = logging.getLogger(__name__)

AnyPicture = TypeVar("AnyPicture", bound=Picture)


def _with_read_out(config: CfgNode) -> CfgNode:
    """The config with every output on that a prediction is made of."""
    config = config.clone()
    config.defrost()
    config.TEST.SEMANTIC_ON = True
    config.TEST.PANOPTIC_ON = config.INPUT.TARGETS == "panoptic"
    return config


class Predictor:
    """A trained model, ready for images.

    Args:
        config: a config from `get_config`, or a config file.
        weights: checkpoint or weight file; None = MODEL.WEIGHTS of the config.
        class_names: other classes ("cat, dog|puppy, grass"); only for a text classifier (M2F-Lang).

    Raises:
        ConfigError, WeightsError.
    """

    def __init__(
        self, config: CfgNode | str | Path, weights: str | Path | None = None, class_names: str | None = None
    ) -> None:
        if not isinstance(config, CfgNode):
            config = get_config(config)
        config = _with_read_out(config)
        weights = weights or config.MODEL.WEIGHTS
        if not weights:
            raise ConfigError("prediction needs weights: --weights or MODEL.WEIGHTS")
        content = read_file(weights)
        taxonomy = Taxonomy.of_checkpoint(content, weights)
        listed = listed_classes(config.DATASETS.CUSTOM)
        if taxonomy is not None and listed is not None and class_names is None:
            same_classes(taxonomy, named(config, listed), weights, "DATASETS.CUSTOM.CLASSES")
        self.model = build_model(config, taxonomy, load_backbone=False)
        which = "teacher" if config.TEST.WEIGHTS == "teacher" else "student"
        load_content(self.model, content, weights, which=which)
        self.config, self.weights, self._own_classes = config, Path(weights), self.model.taxonomy
        self.name_classes(class_names)
        self.model.eval()
        self.mapper = TestMapper(config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)

    def name_classes(self, class_names: str | None) -> None:
        """Changes the classes of the predictions from now on.

        Args:
            class_names: as for the constructor; None = the classes of the checkpoint.

        Raises:
            ConfigError: the model cannot take these classes. Then those from before stay.
        """
        taxonomy = self._own_classes if class_names is None else Taxonomy.from_text(class_names)
        if taxonomy is None:
            raise ConfigError(
                f"{self.weights} does not say its classes; register the data set of DATASETS.TRAIN or give class names"
            )
        if taxonomy != self.model.taxonomy:
            self.model.set_taxonomy(taxonomy)

    @overload
    def __call__(self, images: Picture, captions: str | None = None) -> Prediction: ...
    @overload
    def __call__(
        self, images: list[AnyPicture] | tuple[AnyPicture, ...], captions: Sequence[str] | None = None
    ) -> list[Prediction]: ...
    def __call__(
        self,
        images: Picture | list[AnyPicture] | tuple[AnyPicture, ...],
        captions: str | Sequence[str] | None = None,
    ) -> Prediction | list[Prediction]:
        """Predicts one image, or a list of images, which may differ in kind and size.

        Args:
            images: a path of an image file, a PIL image, or a uint8 array: (H, W, 3) RGB, (H, W) or (H, W, 1) grey, or
                (H, W, 4) with an alpha channel, which is dropped. Files and PIL images are turned as their EXIF tag says.
            captions: for a model that reads one: a text, or one for each image of the list.

        Returns:
            Maps of the size of the image as it is seen; for a list of images a list.

        Raises:
            DatasetError: no such file, another kind of image, more than 8 bits a channel, or not a caption for each image.
                The message says what to do.
        """
        if not isinstance(images, (list, tuple)):
            if captions is not None and not isinstance(captions, str):
                raise DatasetError(f"one image needs one caption as text, not {type(captions).__name__}")
            return self._predict(as_pixels(images), captions)
        each: Sequence[str | None]
        if captions is None:
            each = [None] * len(images)
        elif isinstance(captions, str) or len(captions) != len(images):
            raise DatasetError(f"a list of {len(images)} images needs a list of as many captions")
        else:
            each = captions
        return [self._predict(as_pixels(image), caption) for image, caption in zip(images, each, strict=True)]

    @torch.no_grad()
    def _predict(self, image: np.ndarray, caption: str | None) -> Prediction:
        sample = self.mapper.prepare(image)
        output = self.model([sample if caption is None else {**sample, "caption": caption}])[0]
        # a semantic model has one segment a class
        panoptic, segments = output["panoptic_seg"] if "panoptic_seg" in output else class_segments(output["sem_seg"])
        confidence, semantic = normalized(output["sem_seg"].float()[None])[0].max(0)
        maps = [enlarge_read_out(x.cpu().numpy(), image.shape[:2]) for x in (panoptic, semantic, confidence)]
        return Prediction(maps[0], segments, maps[1], maps[2], self.model.known_taxonomy())


def captions_of(inputs: Inputs, path: Path) -> dict[Path, str]:
    """The caption of each image, from a caption file.

    An image is looked up by its path as given, then by the path below the common folder, then by its file's name if no other
    image has the same.

    Raises:
        DatasetError: images without a caption, or a damaged file.
    """
    captions, shared = read_captions(path), Counter(image.name for image in inputs.paths)
    found: dict[Path, str] = {}
    missing = []
    for image, file_name in zip(inputs.paths, inputs.file_names, strict=True):
        keys = [str(image), file_name, *([image.name] if shared[image.name] == 1 else [])]
        if key := next((key for key in keys if key in captions), None):
            found[image] = captions[key]
        else:
            missing.append(str(image))
    if missing:
        raise DatasetError(
            f"{path}: {len(missing)} of {len(inputs.paths)} images have no caption: {first_few(missing)}"
        )
    return found


def identity(predictor: Predictor, class_names: str | None, captions: Path | None) -> dict[str, str]:
    """Digests of everything that the prediction of an image depends on, under names that a user knows."""
    config = predictor.config.clone()
    config.defrost()
    config.MODEL.DEVICE = config.MODEL.WEIGHTS = config.OUTPUT_DIR = ""
    return {
        "weights": file_digest(predictor.weights),
        "settings": hashlib.sha256(config.dump().encode()).hexdigest(),
        "classes": class_names or "",
        "captions": file_digest(captions) if captions else "",
    }


def predict_files(
    predictor: Predictor, folder: PredictionFolder, captions: Mapping[Path, str] | None = None
) -> list[tuple[Path, str]]:
    """Predicts and writes all images of a folder; those that cannot be predicted are reported and skipped.

    Args:
        captions: of the images, for a model that reads them.

    Returns:
        (path, reason) of the skipped images.

    Raises:
        OSError: a file cannot be written, as on a full disk; `predictions.json` then says that it is not complete.
    """
    images, annotations, skipped = [], [], []
    inputs = folder.inputs
    _check_ids(predictor.model.known_taxonomy())
    entries = zip(inputs.paths, inputs.file_names, inputs.names, strict=True)
    for number, (path, file_name, name) in enumerate(tqdm(entries, total=len(inputs.paths), unit="image"), start=1):
        try:
            image = read_image(path)
            prediction = predictor(image, None if captions is None else captions[path])
        except Exception as error:
            if not isinstance(error, UnreadableImageError) and not is_out_of_memory(error):
                raise
            reason = (
                str(error) if isinstance(error, UnreadableImageError) else f"{path} needs more memory than there is"
            )
            tqdm.write(f"skipped: {reason}", file=sys.stderr)
            skipped.append((path, reason))
            folder.remove(name)
            continue
        save_prediction(folder, name, image, prediction)
        height, width = image.shape[:2]
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        panoptic = folder.path(name, "panoptic").relative_to(folder.out).as_posix()
        annotations.append({"image_id": number, "file_name": panoptic, "segments_info": _segments_info(prediction)})
    folder.finish(images, annotations, predictor.model.known_taxonomy(), skipped)
    folder.write_formats()
    return skipped


def _check_ids(taxonomy: Taxonomy) -> None:
    wrong = [i for i in taxonomy.dataset_ids if not 0 <= i < 2**16]
    if wrong:
        raise ConfigError(f"{len(wrong)} class ids do not fit into a PNG of 16 bits, 0 to 65535: {first_few(wrong)}")


def _segments_info(prediction: Prediction) -> list[dict[str, Any]]:
    """Segments as COCO-panoptic has them, in the ids of the training data."""
    taxonomy, infos = prediction.taxonomy, []
    for segment in prediction.segments:
        mask = prediction.panoptic == segment["id"]
        if mask.any():
            category = segment["category_id"]
            info = segment_info(segment["id"], taxonomy.dataset_ids[category], mask)
            infos.append({**info, "score": segment["score"], "category_name": taxonomy.main_names[category]})
    return infos


def save_prediction(folder: PredictionFolder, name: str, image: np.ndarray, prediction: Prediction) -> None:
    """Writes the PNG files of one image that `folder.kinds` names."""
    for kind in folder.kinds:
        write_atomically(folder.path(name, kind), output_picture(kind, image, prediction).save)


def output_picture(kind: str, image: np.ndarray, prediction: Prediction) -> Image.Image:
    """The PNG file of a kind of `prediction_folder.KINDS`; `image` is (H, W, 3) uint8 RGB."""
    if kind == "panoptic":
        return Image.fromarray(ids_to_rgb(prediction.panoptic))
    if kind == "semantic":
        ids = np.array(prediction.taxonomy.dataset_ids)
        return Image.fromarray(ids[prediction.semantic].astype(np.uint8 if ids.max() < 256 else np.uint16))
    if kind == "confidence":
        return Image.fromarray((255 * prediction.confidence).round().astype(np.uint8))
    return prediction_picture(image, prediction.panoptic, prediction.segments, prediction.taxonomy)


if __name__ == "__main__":  # `python -m dearli_d2.predict`, the first name of `dearli predict`
    from .cli import main

    sys.exit(main(["predict", *sys.argv[1:]]))
