"""Masks of a whole data set: sharded, resumable, with progress."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from ..data.mappers import read_image
from ..errors import ConfigError, DatasetError, first_few
from ..files import remove_leftovers
from ..progress import progress
from .file_per_image import FilePerImage, check_stems
from .generator import MaskGenerator
from .storage import MaskFolder

logger = logging.getLogger(__name__)


Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Work(Generic[Item, Found]):
    """The work that `fill_folder` does for each image.

    Args:
        settings: the entries of the manifest that the results depend on.
        read: reads the input from an image file. It raises `DatasetError` for one that cannot be read.
        find: makes the results of several inputs.
        write: stores the result of an image file. It also gets the input.
    """

    settings: dict[str, Any]
    read: Callable[[str], Item]
    find: Callable[[Sequence[Item]], Sequence[Found]]
    write: Callable[[str, Item, Found], None]


def generate(
    files: Sequence[str],
    generator: MaskGenerator[Any],
    folder: MaskFolder,
    batch_size: int = 1,
    shard: tuple[int, int] = (0, 1),
    replace: bool = False,
) -> Counter[str]:
    """Makes the masks that are missing.

    Args:
        files: the images.
        generator: makes the masks.
        folder: stores them.
        batch_size: number of images that the generator gets at a time.
        shard, replace: see `fill_folder`.

    Returns:
        Counts "done", "present", "failed", "masks".

    Raises:
        ConfigError: see `fill_folder`.
        DatasetError: see `fill_folder`.
    """
    masks = 0

    def write(file: str, image: np.ndarray, found: Any) -> None:
        nonlocal masks
        annotations = generator.annotations(found)
        folder.write(file, image.shape[:2], annotations)
        masks += len(annotations)

    work = Work(generator.settings(), read_image, generator.find, write)
    counts = fill_folder(files, work, folder, batch_size, shard, replace)
    folder.pack(files[shard[0] :: shard[1]])
    counts["masks"] = masks
    return counts


def fill_folder(
    files: Sequence[str],
    work: Work[Item, Found],
    folder: FilePerImage,
    batch_size: int = 1,
    shard: tuple[int, int] = (0, 1),
    replace: bool = False,
) -> Counter[str]:
    """Makes the files of a folder that are missing.

    Images that cannot be read are skipped and listed in `failed_I_of_N.jsonl` of the folder; a later run tries them again.

    Args:
        files: the images.
        work: the work to do for each.
        folder: the folder that `work` writes to.
        batch_size: number of inputs that `work.find` gets at a time.
        shard: (i, n) chooses every n-th image from the i-th on. Any number of processes may run at once.
        replace: make the results anew of images that have changed.

    Returns:
        Counts "done", "present", "failed".

    Raises:
        ConfigError: the folder holds results of other settings, or the shard is impossible.
        DatasetError: two images with one stem, results of other images of the same names.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(f"--shard {index}/{count}: the shard must be one of 0..{count - 1}")
    check_stems(list(files))
    for place in (folder.folder, folder.path("any").parent):
        remove_leftovers(place)
    _claim(folder, work.settings)
    mine = list(files)[index::count]
    present = {f: folder.made_for(f) for f in progress(mine, "masks that are there", len(mine)) if folder.has(f)}
    other = [f for f, same in present.items() if not same]
    if other and not replace:
        raise DatasetError(
            f"{folder.folder} holds masks of other images with the names of {len(other)} of these: {first_few(other)}; choose "
            "another --out, or give --replace if the images have changed"
        )
    for file in other:
        del present[file]
    missing = [f for f in mine if f not in present]
    counts: Counter[str] = Counter(present=len(mine) - len(missing))
    failed: list[dict] = []
    with tqdm(total=len(mine), initial=counts["present"], desc=f"masks {index}/{count}", unit="image") as bar:
        for batch in _read_ahead(missing, batch_size, work.read):
            good = []
            for file, item in batch:
                if isinstance(item, DatasetError):
                    failed.append({"file": file, "error": str(item)})
                else:
                    good.append((file, item))
            results = work.find([item for _, item in good]) if good else []
            for (file, item), found in zip(good, results, strict=True):
                work.write(file, item, found)
            counts["done"] += len(good)
            bar.update(len(batch))
    counts["failed"] = len(failed)
    log = folder.write_failures(index, count, mine, failed)
    if failed:
        logger.warning("%d images could not be read and are skipped, see %s", len(failed), log)
    return counts


def shard_of_process() -> tuple[int, int]:
    """(rank, processes) as torchrun sets them, else (0, 1)."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def parse_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of the text "i/n", or as torchrun sets them. Raises `ConfigError`."""
    if text is None:
        return shard_of_process()
    try:
        index, count = map(int, text.split("/"))
    except ValueError as error:
        raise ConfigError(f"--shard {text}: write i/n, for example 0/4") from error
    return index, count


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


def _read_ahead(
    files: Sequence[str], batch_size: int, read: Callable[[str], Item]
) -> Iterator[list[tuple[str, Item | DatasetError]]]:
    """Batches of (file, image or error). The next batches are read in the background."""

    def attempt(file: str) -> tuple[str, Item | DatasetError]:
        try:
            return file, read(file)
        except DatasetError as error:
            return file, error

    def attempt_all(chunk: Sequence[str]) -> list[tuple[str, Any | DatasetError]]:
        return [attempt(file) for file in chunk]

    chunks = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(attempt_all, chunk) for chunk in chunks[:3]]
        for index in range(len(chunks)):
            batch = pending.pop(0).result()
            if index + 3 < len(chunks):
                pending.append(pool.submit(attempt_all, chunks[index + 3]))
            yield batch


def default_device() -> str:
    """The GPU of this process (cuda:LOCAL_RANK), or cpu."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def folder_of(path: str | Path) -> MaskFolder:
    """The mask folder at `path`, which must have been made by `generate`. Raises `DatasetError`."""
    folder = MaskFolder(path)
    if folder.manifest() is None:
        raise DatasetError(f"{path} is no folder of masks, it has no manifest.json; dearli masks generate makes one")
    return folder
