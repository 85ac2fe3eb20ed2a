"""Shared parts of the scripts in `datasets/`: long conversions that resume where they stopped."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import DatasetError, first_few
from ..files import leads_out, remove_leftovers, write_atomically, write_json
from .class_names import class_table
from .images import opened
from .panoptic_json import read_panoptic_json
from .taxonomy import spread_colors


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


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """(H, W) segment ids to (H, W, 3) uint8 of the COCO-panoptic format."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def segment_info(identifier: int, category_id: int, mask: np.ndarray) -> dict:
    """Entry of `segments_info` for a (H, W) bool mask that is not empty."""
    rows, columns = np.nonzero(mask)
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    return {"id": identifier, "category_id": category_id, "area": len(rows), "bbox": box, "iscrowd": 0}


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
    keys: Sequence[str], convert: Callable[[str], dict], journal: Path, workers: int, description: str
) -> list[dict]:
    """Runs `convert` for every key and returns its results in the order of the keys.

    Each result is appended to `journal` (JSON lines) as it comes; a later call with the same journal does only what is
    missing. `convert` must be picklable, and must write its own files before it returns.
    """
    journal.parent.mkdir(parents=True, exist_ok=True)
    done = _read_journal(journal)
    missing = [key for key in keys if key not in done]
    with journal.open("a") as log, tqdm(total=len(keys), initial=len(keys) - len(missing), desc=description) as bar:
        for key, result in zip(missing, _run(convert, missing, workers), strict=True):
            log.write(json.dumps({"key": key, "result": result}) + "\n")
            log.flush()
            done[key] = result
            bar.update()
    return [done[key] for key in keys]


def _run(convert: Callable[[str], dict], keys: list[str], workers: int) -> Iterable[dict]:
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


def _read_journal(path: Path) -> dict[str, dict]:
    """Results so far; a last line that a kill cut off is dropped, also from the file."""
    if not path.is_file():
        return {}
    results, kept = {}, []
    for line in path.read_text().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        results[entry["key"]] = entry["result"]
        kept.append(line if line.endswith("\n") else line + "\n")
    write_atomically(path, lambda temporary: temporary.write_text("".join(kept)))
    return results


def check_pairs(images: Path, labels: Sequence[Path], split: str, expected: int | None, hint: str) -> list[str]:
    """Stems of the images (.jpg) of a folder, sorted, after a check that each has a .png in every label folder.

    Raises:
        DatasetError: a missing folder or missing files, with the first ones.
    """
    for folder in (images, *labels):
        if not folder.is_dir():
            raise DatasetError(f"{split}: no folder {folder}; {hint}")
    stems = sorted(p.stem for p in images.glob("*.jpg"))
    if not stems:
        raise DatasetError(f"{split}: no .jpg file in {images}; {hint}")
    for folder in labels:
        present = {p.stem for p in folder.glob("*.png")}
        missing = [s for s in stems if s not in present]
        if missing:
            raise DatasetError(
                f"{split}: {len(missing)} of {len(stems)} images have no label in {folder}: {first_few(missing)}; {hint}"
            )
    if expected is not None and len(stems) != expected:
        print(f"note: {split} has {len(stems)} images, the official release {expected}")
    return stems


def write_semantic_dataset(
    name: str,
    json_path: Path,
    keys: Sequence[str],
    convert: Callable[[str], dict],
    categories: list[dict],
    workers: int,
    expected: int,
) -> None:
    """Converts one split, and resumes where it stopped.

    Label images go to the folder `json_path` without its suffix, and the JSON file is written at the end.

    Args:
        name: of the data set.
        json_path: the JSON file to write.
        keys: one for each image, which `convert` takes.
        convert: gives a record of `write_panoptic_json`, or {"stem", "skipped": reason}, which is left out and reported.
        categories: of the JSON file.
        workers: number of processes.
        expected: number of images in the official release, for a note.

    Raises:
        DatasetError: no image could be used.
    """
    if len(keys) != expected:
        print(f"note: {name} has {len(keys)} images, the official release {expected}")
    json_path.with_suffix("").mkdir(parents=True, exist_ok=True)
    remove_leftovers(json_path.with_suffix(""))
    journal = json_path.with_name(f".{json_path.stem}.jsonl")
    results = convert_all(keys, convert, journal, workers, name)
    records = [r for r in results if "skipped" not in r]
    skipped = [f"{r['stem']} ({r['skipped']})" for r in results if "skipped" in r]
    if skipped:
        print(f"note: {len(skipped)} of {len(results)} images are left out: {first_few(skipped)}")
    if not records:
        raise DatasetError(f"{name}: no image could be used: {first_few(skipped)}")
    write_panoptic_json(json_path, records, categories)
    journal.unlink()
    counts = Counter(s["category_id"] for r in records for s in r["segments_info"])
    shown = ", ".join(f"{c['name']} {counts[c['id']]}" for c in categories)
    print(f"{name}: {len(records)} images ready; images that show a class: {shown}")


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
