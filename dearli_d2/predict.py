"""Segments image files with a trained model."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from .checkpoint import load_content
from .config import get_config
from .data.captions import read_captions
from .data.custom import listed_classes
from .data.images import read_image
from .data.mappers import TestMapper
from .data.sizes import enlarge_read_out
from .data.taxonomy import Taxonomy, named, same_classes
from .environment import local_rank
from .errors import ConfigError, DatasetError, first_few
from .files import file_digest
from .modeling import build_model
from .modeling.label_maps import LabelMaps
from .modeling.segmenter import input_divisor
from .pipeline import Work, chunks_of, shard_of
from .prediction import Picture, Prediction, as_pixels
from .prediction_files import Maps, check_ids, per_pixel, picture
from .prediction_folder import PredictionFolder, Summary, WriteTask
from .prediction_inputs import Inputs, Task, tasks_of
from .ray_engine import RayCluster, RayEngine
from .tiles import Tiles, predict_tiles
from .weights import read_file

logger = logging.getLogger(__name__)

AnyPicture = TypeVar("AnyPicture", bound=Picture)
Pending: TypeAlias = Callable[[], Maps]


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

    def _predict(self, image: np.ndarray, caption: str | None) -> Prediction:
        loaded = load_pixels(self.mapper, image, caption)
        maps = self.maps([loaded])[0]
        assert maps.semantic is not None
        assert maps.confidence is not None
        return Prediction(maps.panoptic, maps.segments, maps.semantic, maps.confidence, self.model.known_taxonomy())

    def maps(self, images: Sequence[Loaded], semantic: bool = True, amp: torch.dtype | None = None) -> list[Maps]:
        """The predictions of images as one batch of the network.

        Args:
            images: of one `padded_size`, so that padding does not change a prediction.
            semantic: with the class of each pixel and its probability; without them less is computed.
            amp: floating-point type of the network, torch.bfloat16 or torch.float16; None = fp32.
        """
        return [read_out() for read_out in self.pending(images, semantic, amp)]

    def pending(self, images: Sequence[Loaded], semantic: bool = True, amp: torch.dtype | None = None) -> list[Pending]:
        """Runs the network for `maps`. Returns for each image a function that makes its maps, in any thread."""
        with self._inference(amp):
            found = self.model.pending_maps([image.sample for image in images], semantic)

        def finish(read_out: Callable[[], LabelMaps], size: Sequence[int]) -> Maps:
            with self._inference(amp):
                return _maps_at(read_out(), size)

        return [
            partial(finish, read_out, image.pixels.shape[:2]) for image, read_out in zip(images, found, strict=True)
        ]

    @contextmanager
    def _inference(self, amp: torch.dtype | None) -> Iterator[None]:
        """Computes in `amp`, without a gradient, in this thread."""
        with torch.no_grad(), torch.autocast(self.model.device.type, amp, enabled=amp is not None):
            yield


@dataclass(frozen=True)
class Loaded:
    """An image, ready for the network.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        sample: see `Segmenter.forward`; without "image" for one that is cut into tiles.
    """

    pixels: np.ndarray
    sample: dict[str, Any]


def load_pixels(mapper: TestMapper, pixels: np.ndarray, caption: str | None = None) -> Loaded:
    """Prepares (H, W, 3) uint8 RGB pixels for the network."""
    sample = mapper.prepare(pixels)
    return Loaded(pixels, sample if caption is None else {**sample, "caption": caption})


def padded_size(divisor: int, image: Loaded) -> tuple[int, int]:
    """The size of an image in the network, whose sides are multiples of `divisor`. One that is cut into tiles has its own."""
    if "image" not in image.sample:
        return id(image), 0
    height, width = (-(-side // divisor) * divisor for side in image.sample["image"].shape[-2:])
    return height, width


def _maps_at(maps: LabelMaps, size: Sequence[int]) -> Maps:
    """The maps at the size of the image, on the host."""

    def enlarged(values: torch.Tensor | None) -> np.ndarray | None:
        return None if values is None else enlarge_read_out(values.cpu().numpy(), size)

    panoptic = enlarged(maps.panoptic)
    assert panoptic is not None
    return Maps(panoptic, maps.segments, enlarged(maps.semantic), enlarged(maps.confidence))


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


def identity(
    predictor: Predictor,
    class_names: str | None,
    captions: Path | None,
    amp: str | None = None,
    tiles: Tiles | None = None,
) -> dict[str, str]:
    """Digests of everything that the prediction of an image depends on, under names that a user knows."""
    config = predictor.config.clone()
    config.defrost()
    config.MODEL.DEVICE = config.MODEL.WEIGHTS = config.OUTPUT_DIR = ""
    return {
        "weights": file_digest(predictor.weights),
        "settings": hashlib.sha256(config.dump().encode()).hexdigest(),
        "classes": class_names or "",
        "captions": file_digest(captions) if captions else "",
        **({"--amp": amp} if amp else {}),
        **({"--tile": f"{tiles.size} {tiles.overlap}"} if tiles else {}),
    }


@dataclass(frozen=True)
class ReadTask:
    """`Work.read` of prediction: decodes and resizes an image."""

    mapper: TestMapper
    tiles: Tiles | None = None

    def __call__(self, task: Task) -> Loaded:
        """The image, of any size where it is cut into tiles. Raises `UnreadableImageError`."""
        if self.tiles is not None:
            Image.MAX_IMAGE_PIXELS = None
        pixels = read_image(task.path)
        if self.tiles is None or self.tiles.hold(*pixels.shape[:2]):
            return load_pixels(self.mapper, pixels, task.caption)
        return Loaded(pixels, {} if task.caption is None else {"caption": task.caption})


def _given(maps: Maps) -> Maps:
    return maps


@dataclass(frozen=True)
class FindMaps:
    """`Work.find` of prediction: runs the network on images that share a batch, or on one that is cut into tiles.

    Args:
        predictor: the model.
        semantic, amp: see `Predictor.maps`.
        tiles: cut images that are larger than a tile.
        batch: number of tiles that go through the network at once.
    """

    predictor: Predictor
    semantic: bool = True
    amp: torch.dtype | None = None
    tiles: Tiles | None = None
    batch: int = 1

    def __call__(self, images: Sequence[Loaded]) -> list[Pending]:
        """Runs the network. Returns for each image a function that makes its maps.

        On a GPU the maps are made at once, since masks that wait would fill its memory. They are also made at once where torch has
        several threads: these keep all cores busy, and other threads beside them make both slower.
        """
        if "image" not in images[0].sample:
            return [partial(_given, self._by_tiles(image)) for image in images]
        pending = self.predictor.pending(images, self.semantic, self.amp)
        if self.predictor.model.device.type == "cpu" and torch.get_num_threads() == 1:
            return pending
        return [partial(_given, read_out()) for read_out in pending]

    def _by_tiles(self, image: Loaded) -> Maps:
        def find(parts: Sequence[np.ndarray]) -> list[Maps]:
            loaded = [load_pixels(self.predictor.mapper, part, image.sample.get("caption")) for part in parts]
            return self.predictor.maps(loaded, self.semantic, self.amp)

        assert self.tiles is not None
        taxonomy = self.predictor.model.known_taxonomy()
        return predict_tiles(find, image.pixels, self.tiles, taxonomy, self.batch)


@dataclass(frozen=True)
class WriteMaps:
    """`Work.write` of prediction: makes the maps of an image and writes its files."""

    write: WriteTask

    def __call__(self, task: Task, loaded: Loaded, pending: Pending) -> dict[str, Any]:
        """The record of the image."""
        return self.write(task, loaded, pending())


@dataclass(frozen=True)
class LoadWork:
    """`prediction_work`, whose model is loaded where it is to run: on the GPU of that machine if it has one.

    Args:
        work: that of this process, without its model.
        config: of the model.
        weights: of the model.
        taxonomy: its classes.
        semantic, amp, tiles, batch: see `FindMaps`.
    """

    work: Work[Task, Loaded, Pending]
    config: CfgNode
    weights: Path
    taxonomy: Taxonomy
    semantic: bool
    amp: torch.dtype | None
    tiles: Tiles | None
    batch: int

    def __call__(self) -> Work[Task, Loaded, Pending]:
        """Loads it."""
        config = self.config.clone()
        config.defrost()
        config.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        predictor = Predictor(config, self.weights)
        if predictor.model.taxonomy != self.taxonomy:
            predictor.model.set_taxonomy(self.taxonomy)
        return replace(self.work, find=FindMaps(predictor, self.semantic, self.amp, self.tiles, self.batch))


def _no_model(images: Sequence[Loaded]) -> Sequence[Pending]:
    raise AssertionError("the model is in the actors")


def prediction_work(
    predictor: Predictor,
    folder: PredictionFolder,
    amp: torch.dtype | None = None,
    shard: tuple[int, int] = (0, 1),
    tiles: Tiles | None = None,
    batch: int = 1,
) -> Work[Task, Loaded, Pending]:
    """The three parts of predicting files.

    Args:
        predictor: the model. `read` and `write` do without it and can be pickled.
        folder: the place and the kinds of the files.
        amp: see `Predictor.maps`.
        shard: of this process.
        tiles: cut images that are larger than a tile.
        batch: number of tiles that go through the network at once.
    """
    size = partial(padded_size, input_divisor(predictor.model.backbone))
    find = FindMaps(predictor, per_pixel(folder.kinds), amp, tiles, batch)
    taxonomy = predictor.model.known_taxonomy()
    write = WriteMaps(WriteTask(folder.out, folder.staging(shard), tuple(folder.kinds), taxonomy))
    return Work(ReadTask(predictor.mapper, tiles), find, write, group=size)


def precision(name: str | None, predictor: Predictor) -> torch.dtype | None:
    """The type of autocast by its name, "bf16" or "fp16"; None = none. Raises `ConfigError` for fp16 on a CPU."""
    if name is None:
        return None
    if name == "fp16" and predictor.model.device.type == "cpu":
        raise ConfigError("--amp fp16 needs a GPU; on a CPU there is bf16")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[name]


def use_own_gpu() -> None:
    """Makes the GPU of this process among those that it sees the one that "cuda" means."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank(os.environ) % torch.cuda.device_count())


def predict_files(
    predictor: Predictor,
    folder: PredictionFolder,
    captions: Mapping[Path, str] | None = None,
    batch: int = 1,
    amp: torch.dtype | None = None,
    shard: tuple[int, int] = (0, 1),
    workers: int | None = None,
    cluster: RayCluster | None = None,
    tiles: Tiles | None = None,
) -> Summary:
    """Predicts and writes the images of a folder that are missing there; those that cannot be predicted are reported and skipped.

    Args:
        predictor: the model.
        folder: the place of the files.
        captions: of the images, for a model that reads them.
        batch: number of images that go through the network at once. They are neighbours of one size. With another number the
            last bits of the network's output differ.
        amp: see `Predictor.maps`.
        shard: (i, n) chooses every n-th batch from the i-th on. Any number of shards may run at once. The one that ends last
            completes `predictions.json`.
        workers: number of threads that read, and that write; None = by the number of cores.
        cluster: does the work on a Ray cluster; None = in this process.
        tiles: cut images that are larger than a tile.

    Raises:
        ClusterError: see `RayEngine`.
        ConfigError: an impossible shard.
        DatasetError: another process works on this shard.
        OSError: a file cannot be written, as on a full disk; `predictions.json` then says that it is not complete.
    """
    taxonomy = predictor.model.known_taxonomy()
    check_ids(taxonomy)
    work = prediction_work(predictor, folder, amp, shard, tiles, batch)
    chunks = shard_of(chunks_of(tasks_of(folder.inputs, captions), batch), shard)
    if cluster is None:
        return folder.fill(work, chunks, taxonomy, shard, workers)
    parts = replace(work, find=_no_model)
    load = LoadWork(parts, predictor.config, predictor.weights, taxonomy, per_pixel(folder.kinds), amp, tiles, batch)
    engine: RayEngine[Loaded, Pending] = RayEngine(cluster, load, folder.staging(shard) / "ray")
    return folder.fill(work, chunks, taxonomy, shard, workers, engine)


def output_picture(kind: str, image: np.ndarray, prediction: Prediction) -> Image.Image:
    """The PNG file of a kind of `prediction_files.KINDS`; `image` is (H, W, 3) uint8 RGB."""
    maps = Maps(prediction.panoptic, prediction.segments, prediction.semantic, prediction.confidence)
    return Image.fromarray(picture(kind, image, maps, prediction.taxonomy))


if __name__ == "__main__":  # `python -m dearli_d2.predict`, the first name of `dearli predict`
    from .cli import main

    sys.exit(main(["predict", *sys.argv[1:]]))
