"""Masks of a whole data set: shared by processes, resumable, with progress."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from ..data.mappers import read_image
from ..environment import local_rank
from ..errors import ConfigError, DatasetError, UnreadableImageError, first_few
from ..files import remove_leftovers
from ..pipeline import Outcome, Work, chunks_of, run, shard_of
from ..progress import progress
from .file_per_image import FilePerImage, check_stems
from .generator import MaskGenerator
from .storage import MaskFolder

logger = logging.getLogger(__name__)

Engine = Callable[..., Iterator[Outcome[str]]]


def generate(
    files: Sequence[str],
    generator: MaskGenerator[Any],
    folder: MaskFolder,
    batch_size: int = 1,
    shard: tuple[int, int] = (0, 1),
    replace: bool = False,
    engine: Engine = run,
) -> Counter[str]:
    """Makes the masks that are missing.

    Args:
        files: the images.
        generator: makes the masks.
        folder: stores them.
        batch_size: number of images that the generator gets at a time.
        shard, replace, engine: see `fill_folder`.

    Returns:
        Counts "done", "present", "failed", "masks".

    Raises:
        ConfigError: see `fill_folder`.
        DatasetError: see `fill_folder`.
    """
    work, settings = mask_work(generator, folder), generator.settings()
    return fill_masks(files, work, settings, folder, batch_size, shard, replace, engine)


@dataclass(frozen=True)
class LoadMasks:
    """`mask_work`, whose generator is made where it is to run: for an engine on several machines.

    Args:
        make: makes the generator. It can be pickled.
        folder: stores the masks.
    """

    make: Callable[[], MaskGenerator[Any]]
    folder: MaskFolder

    def __call__(self) -> Work[str, np.ndarray, Any]:
        """Makes it."""
        return _skipping(mask_work(self.make(), self.folder))


def mask_work(generator: MaskGenerator[Any], folder: MaskFolder) -> Work[str, np.ndarray, Any]:
    """The work of `generate` for each image file; the record of an image has the number of its "masks"."""

    def write(file: str, image: np.ndarray, found: Any) -> dict[str, int]:
        annotations = generator.annotations(found)
        folder.write(file, image.shape[:2], annotations)
        return {"masks": len(annotations)}

    return Work(read_image, generator.find, write)


def fill_masks(
    files: Sequence[str],
    work: Work[str, Any, Any],
    settings: dict[str, Any],
    folder: MaskFolder,
    batch_size: int = 1,
    shard: tuple[int, int] = (0, 1),
    replace: bool = False,
    engine: Engine = run,
) -> Counter[str]:
    """Fills a folder of masks as `fill_folder` does, and puts them into shards at the end."""
    counts = fill_folder(files, work, settings, folder, batch_size, shard, replace, engine)
    folder.refresh()  # others may have written
    folder.pack(_share(files, batch_size, shard))
    return counts


def fill_folder(
    files: Sequence[str],
    work: Work[str, Any, Any],
    settings: dict[str, Any],
    folder: FilePerImage,
    batch_size: int = 1,
    shard: tuple[int, int] = (0, 1),
    replace: bool = False,
    engine: Engine = run,
) -> Counter[str]:
    """Makes the results of a folder that are missing. Reading and writing happen beside the model.

    Images that cannot be read are skipped and listed in `failed_I_of_N.jsonl` of the folder; a later run tries them again.

    Args:
        files: the images.
        work: the work to do for each; the numbers in its records are added up. Its `read` raises `DatasetError` for an image that
            cannot be read.
        settings: the entries of the manifest that the results depend on.
        folder: the folder that `work` writes to.
        batch_size: number of inputs that `work.find` gets at a time.
        shard: (i, n) chooses every n-th batch from the i-th on. Any number of processes may run at once.
        replace: make the results anew of images that have changed.
        engine: has the arguments of `pipeline.run`.

    Returns:
        Counts "done", "present", "failed", and those of the records.

    Raises:
        ConfigError: the folder holds results of other settings, or the shard is impossible.
        DatasetError: two images with one stem, results of other images of the same names.
    """
    mine = _share(files, batch_size, shard)
    check_stems(list(files))
    for place in (folder.folder, folder.path("any").parent):
        remove_leftovers(place)
    _claim(folder, settings)
    present = {f: folder.made_for(f) for f in progress(mine, "masks that are there", len(mine)) if folder.has(f)}
    other = [f for f, same in present.items() if not same]
    if other and not replace:
        raise DatasetError(
            f"{folder.folder} holds masks of other images with the names of {len(other)} of these: {first_few(other)}; choose "
            "another --out, or give --replace if the images have changed"
        )
    for file in other:
        del present[file]
    counts: Counter[str] = Counter(present=len(present), done=0, failed=0)
    failed: list[dict] = []
    index, count = shard
    chunks = shard_of(chunks_of(files, batch_size), shard)
    with tqdm(total=len(mine), initial=len(present), desc=f"masks {index}/{count}", unit="image") as bar:
        for outcome in engine(_skipping(work), chunks, present):
            if outcome.skipped:
                failed.append({"file": outcome.key, "error": str(outcome.skipped)})
            counts.update({"failed" if outcome.skipped else "done": 1, **outcome.record})
            bar.update()
    log = folder.write_failures(index, count, mine, failed)
    if failed:
        logger.warning("%d images could not be read and are skipped, see %s", len(failed), log)
    return counts


def _skipping(work: Work[str, Any, Any]) -> Work[str, Any, Any]:
    """The work, which skips an image with any `DatasetError`."""

    def read(file: str) -> Any:
        try:
            return work.read(file)
        except DatasetError as error:
            raise UnreadableImageError(str(error)) from error

    return changed(work, read=read)


def _share(files: Sequence[str], batch_size: int, shard: tuple[int, int]) -> list[str]:
    """The files of a process. Raises `ConfigError` for an impossible shard."""
    return [file for chunk in shard_of(chunks_of(files, batch_size), shard) for file in chunk]


def _claim(folder: FilePerImage, settings: dict) -> None:
    present = folder.manifest()
    if present is None:
        folder.write_manifest({**settings, "dearli_d2": __version__})
        return
    before = {"precision": "fp32", **present}  # manifests did not always name it
    for key, value in settings.items():
        if before.get(key) != value:
            raise ConfigError(
                f"{folder.folder} holds masks made with {key} {before.get(key)}, not {value}; choose another --out"
            )


def default_device() -> str:
    """The GPU of this process among those that it sees, or cpu. Raises `ConfigError`, see `environment.started_by`."""
    return f"cuda:{local_rank(os.environ) % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def folder_of(path: str | Path) -> MaskFolder:
    """The mask folder at `path`, which must have been made by `generate`. Raises `DatasetError`."""
    folder = MaskFolder(path)
    if folder.manifest() is None:
        raise DatasetError(f"{path} is no folder of masks, it has no manifest.json; dearli masks generate makes one")
    return folder
