"""Shared parts of the scripts in `datasets/`: long conversions that resume where they stopped."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import DatasetError, first_few
from ..files import leads_out, remove_leftovers, write_atomically, write_json
from ..journal import Journal, entries
from ..locks import only_process
from .class_names import class_table
from .images import opened, orientation, reading_problem, seen_size, turned
from .panoptic_json import read_panoptic_json
from .panoptic_png import segment_info
from .release import Release
from .taxonomy import spread_colors

_ENOUGH = 20  # damaged files after which a conversion stops


def save_png(path: Path, array: np.ndarray) -> None:
    """Writes an image array as PNG, atomically."""
    write_atomically(path, lambda temporary: Image.fromarray(array).save(temporary))


def read_label_ids(path: Path) -> np.ndarray:
    """(H, W) uint8 ids of a grey or palette image, as they are stored: colours of a palette mean nothing.

    Raises:
        DatasetError: a missing or damaged file, or a picture of another kind.
    """
    with opened(path) as image:
        ids = np.array(image)
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DatasetError(f"{path} is no image of label ids (grey or palette, 8 bits), but {ids.dtype} {ids.shape}")
    return ids


def semantic_segments(semantic: np.ndarray, categories: Sequence[dict], file: Path) -> tuple[np.ndarray, list[dict]]:
    """One segment a class of a (H, W) map of contiguous class ids, 255 = ignore: (H, W) segment ids and their infos.

    Args:
        categories: of the classes, in their order.

    Raises:
        DatasetError: an id outside the table, with the name of the file.
    """
    values = np.unique(semantic)
    wrong = values[(values >= len(categories)) & (values != 255)]
    if len(wrong):
        raise DatasetError(f"{file}: class id {int(wrong[0])} is not in 0..{len(categories) - 1}, and not 255 (ignore)")
    ids = np.where(semantic == 255, 0, semantic.astype(np.int64) + 1)
    return ids, [segment_info(int(v) + 1, categories[v]["id"], semantic == v) for v in values if v != 255]


def categories_of(
    dataset: str, colors: Sequence[Sequence[int]] | None = None, things: Collection[int] = ()
) -> list[dict]:
    """COCO `categories` of a data set of `class_names`; `things` are the ids of classes with instances."""
    table = class_table(dataset)
    return [
        {
            "id": entry.id,
            "name": entry.names[0],
            "synonyms": list(entry.names[1:]),
            "isthing": int(entry.id in things),
            "color": list(color),
        }
        for entry, color in zip(table, colors or spread_colors(len(table)), strict=True)
    ]


def check_names(names: Iterable[object], source: Path) -> None:
    """Refuses names of files, listed in `source`, that would lead out of the folder they are joined to."""
    wrong = [name for name in names if leads_out(name)]
    if wrong:
        raise DatasetError(
            f"{source}: {len(wrong)} file names lead out of their folder: {first_few([repr(n) for n in wrong])}"
        )


def read_official_json(path: Path, hint: str) -> dict:
    """Content of an official COCO-panoptic JSON file, see `read_panoptic_json`.

    It is cached, so that forked worker processes have it already.

    Raises:
        DatasetError: a missing or broken file, or file names that lead out of their folder.
    """
    if not path.is_file():
        raise DatasetError(f"no file {path}; {hint}")
    return _read_official_json(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_official_json(path: Path, stamp: int) -> dict:
    content = read_panoptic_json(path)
    check_names((entry["file_name"] for key in ("annotations", "images") for entry in content[key]), path)
    return content


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def convert_all(
    keys: Sequence[str], convert: Callable[[str], dict], journal: Path, workers: int, description: str, fix: str = ""
) -> list[dict]:
    """Runs `convert` for every key and returns its results in the order of the keys.

    Each result is appended to `journal` (JSON lines) as it comes; a later call with the same journal does only what is
    missing. `convert` must be picklable, and must write its own files before it returns.

    Raises:
        DatasetError: `convert` raised one for some keys; with their number, the first ones, and `fix`. The others are done.
    """
    done: dict[str, dict] = {key: result for key, result, *_ in entries(journal)}
    failed: list[str] = []
    missing = [key for key in keys if key not in done]
    with (
        Journal(journal) as log,
        tqdm(total=len(keys), initial=len(keys) - len(missing), desc=description) as bar,
        closing(_run(partial(_attempt, convert), missing, workers)) as results,
    ):
        for key, (result, problem) in zip(missing, results, strict=False):  # the loop may end early
            bar.update()
            if problem:
                failed.append(problem)
                if len(failed) == _ENOUGH:
                    break
                continue
            log.append(key, result)
            done[key] = result
    if failed:
        at_least = "at least " if len(failed) == _ENOUGH else ""
        advice = f". {fix}" if fix else ""
        raise DatasetError(
            f"{description}: {at_least}{len(failed)} of {len(keys)} files are damaged or not as they should be: "
            f"{first_few(failed)}{advice}"
        )
    return [done[key] for key in keys]


def _attempt(convert: Callable[[str], dict], key: str) -> tuple[dict, str]:
    """The result, or what is wrong with the files of this key."""
    try:
        return convert(key), ""
    except DatasetError as error:
        return {}, str(error)


def _run(
    convert: Callable[[str], tuple[dict, str]], keys: list[str], workers: int
) -> Generator[tuple[dict, str], None, None]:
    if workers <= 1:
        yield from map(convert, keys)
        return
    with ProcessPoolExecutor(workers, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        yield from pool.map(convert, keys, chunksize=8)


def _end_with(parent: int) -> None:
    """Ends this worker soon after its parent process, even if the parent is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def fit_to_image(image: Path, *labels: np.ndarray) -> tuple[list[np.ndarray], str]:
    """The labels of an image as it is seen: they are turned where they were drawn on the stored pixels of a turned image.

    Args:
        image: the file.
        labels: (H, W) or (H, W, 3) uint8, all of one size.

    Returns:
        The labels, and a note for the user, or "".

    Raises:
        DatasetError: an image that cannot be read, or that has another size.
    """
    with opened(image) as file:
        if problem := reading_problem(file):
            raise DatasetError(f"{image} {problem}")
        tag, seen, stored = orientation(file), seen_size(file), file.size[::-1]
    shape = labels[0].shape[:2]
    if shape == stored != seen:
        return [turned(label, tag) for label in labels], "label turned with its image, as the EXIF tag says"
    if shape != seen:
        raise DatasetError(f"{image} has {seen[1]} x {seen[0]} pixels, its label {shape[1]} x {shape[0]}")
    return list(labels), "turned by its EXIF tag, look whether its label fits" if tag > 1 and stored == seen else ""


def write_semantic_dataset(
    release: Release,
    json_path: Path,
    keys: Sequence[str],
    convert: Callable[[str], dict],
    categories: list[dict],
    workers: int,
    known_misfits: int = 0,
    also: Sequence[Path] = (),
) -> None:
    """Converts one split, and resumes where it stopped.

    Label images go to the folder `json_path` without its suffix, and the JSON file is written at the end.

    Args:
        release: of the split.
        json_path: the JSON file to write.
        keys: one for each image, which `convert` takes.
        convert: gives a record of `write_panoptic_json`, perhaps with a "note" about its image, or {"stem", "skipped": reason},
            which is left out and reported.
        categories: of the JSON file.
        workers: number of processes.
        known_misfits: how many images of the official release are left out.
        also: other folders that `convert` writes to.

    Raises:
        DatasetError: damaged files, no image that could be used, or more images left out than the release makes necessary.
    """
    name, folder = release.name, json_path.with_suffix("")
    with only_process(json_path.with_name(f".{json_path.stem}.lock")):
        for place in (folder, *also):
            place.mkdir(parents=True, exist_ok=True)
            remove_leftovers(place, age=0)
        remove_leftovers(json_path.parent, json_path.stem, age=0)
        journal = json_path.with_name(f".{json_path.stem}.jsonl")
        results = convert_all(keys, convert, journal, workers, name, release.fix)
        records = [r for r in results if "skipped" not in r]
        _report(release, results, known_misfits)
        write_panoptic_json(json_path, records, categories)
        journal.unlink()
    counts = Counter(c for r in records for c in {s["category_id"] for s in r["segments_info"]})
    shown = ", ".join(f"{c['name']} {counts[c['id']]}" for c in categories)
    print(f"{name}: {len(records)} images ready; images that show a class: {shown}")


def _report(release: Release, results: list[dict], known_misfits: int) -> None:
    """Names images that are doubtful or left out. Raises `DatasetError` where they are too many."""
    notes = [f"{r['stem']} ({r['note']})" for r in results if r.get("note")]
    if notes:
        print(f"warning: {release.name}: {len(notes)} images to look at: {first_few(notes)}")
    skipped = [f"{r['stem']} ({r['skipped']})" for r in results if "skipped" in r]
    if not skipped:
        return
    told = f"{len(skipped)} of {len(results)} images are left out"
    if len(skipped) == len(results):
        raise DatasetError(f"{release.name}: no image could be used: {first_few(skipped)}. {release.fix}")
    if len(skipped) > known_misfits and not release.incomplete:
        raise DatasetError(
            f"{release.name}: {told}, of the official release {known_misfits} (--incomplete accepts it): {first_few(skipped)}. "
            f"{release.fix}"
        )
    print(f"note: {told}: {first_few(skipped)}")


def write_panoptic_json(path: Path, records: list[dict], categories: list[dict]) -> None:
    """Writes a COCO-panoptic JSON file.

    Args:
        path: the file.
        records: {"stem", "height", "width", "segments_info"} of each image, and "image" where the file below the image folder
            is not stem.jpg.
        categories: as in the file.
    """
    write_json(
        path,
        {
            "images": [
                {
                    "id": r["stem"],
                    "file_name": r.get("image", f"{r['stem']}.jpg"),
                    "height": r["height"],
                    "width": r["width"],
                }
                for r in records
            ],
            "annotations": [
                {"image_id": r["stem"], "file_name": f"{r['stem']}.png", "segments_info": r["segments_info"]}
                for r in records
            ],
            "categories": categories,
        },
    )
