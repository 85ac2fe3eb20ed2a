#!/usr/bin/env python
"""Checks and unpacks the official COCO-panoptic downloads.

Reads below $DETECTRON2_DATASETS/coco

    {train,val}2017/*.jpg                              train2017.zip (18 GB), val2017.zip (1 GB); 118287 and 5000 images
    annotations/panoptic_{train,val}2017.json, .zip    panoptic_annotations_trainval2017.zip (821 MB)

All archives are on https://cocodataset.org/#download, without registration, and are unpacked in $DETECTRON2_DATASETS/coco. The
annotations are under CC BY 4.0, the photographs under the terms of Flickr.

It unpacks the label PNG files to panoptic_{train,val}2017/; labels that are there already are kept. An interrupted run resumes.

    dearli prepare coco train val
"""

from __future__ import annotations

import shutil
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import incomplete, splits, workers
from dearli_d2.data.images import image_size
from dearli_d2.data.preparation import convert_all, only_process, read_official_json
from dearli_d2.data.release import Download, Release
from dearli_d2.data.sources import datasets_root
from dearli_d2.errors import DatasetError, first_few
from dearli_d2.files import remove_leftovers, write_atomically
from dearli_d2.progress import progress

EXPECTED = {"train": 118287, "val": 5000}
HINT = (
    "download train2017.zip, val2017.zip and panoptic_annotations_trainval2017.zip from https://cocodataset.org/#download and unpack "
    "them in $DETECTRON2_DATASETS/coco"
)


@lru_cache(maxsize=1)
def open_archive(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive, and its PNG files by name. Raises `DatasetError` for one that is missing or damaged."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DatasetError(f"{path} is missing or damaged ({error}); download it again") from error
    return archive, {PurePosixPath(m.filename).name: m for m in archive.infolist() if m.filename.endswith(".png")}


def unpack(archive: Path, folder: Path, name: str) -> dict:
    """Writes a PNG file that is missing or of another size. Raises `DatasetError` where it is damaged in the archive."""
    source, members = open_archive(archive)
    path, member = folder / name, members[name]
    if not path.is_file() or path.stat().st_size != member.file_size:
        try:
            with source.open(member) as stream:
                write_atomically(path, lambda temporary: _copy(stream, temporary))
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DatasetError(f"{archive}: {name} is damaged ({error})") from error
    return {}


def _copy(stream: zipfile.ZipExtFile, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(stream, target)


def misfits(folder: Path, images: list[dict]) -> list[str]:
    """Images that are damaged, or have another size than the JSON file says."""

    def look(image: dict) -> str:
        try:
            height, width = image_size(folder / image["file_name"])
        except DatasetError as error:
            return str(error)
        wanted = image["height"], image["width"]
        return (
            ""
            if (height, width) == wanted
            else f"{image['file_name']} is {width} x {height}, not {wanted[1]} x {wanted[0]}"
        )

    with ThreadPoolExecutor(8) as pool:
        return [
            problem for problem in progress(pool.map(look, images), f"{folder.name}: sizes", len(images)) if problem
        ]


def check(root: Path, split: str, incomplete: bool) -> list[str]:
    """Names of a split's label files, all of which can be had. Raises `DatasetError` for a download that is not as the release."""
    release = Release(f"coco_panoptic_{split}", EXPECTED[split], HINT, incomplete=incomplete)
    content = read_official_json(root / "annotations" / f"panoptic_{split}2017.json", HINT)
    download, folder = Download(release), root / f"{split}2017"
    listed = [image["file_name"].removesuffix(".jpg") for image in content["images"]]
    download.count(listed, f"panoptic_{split}2017.json")
    present = set(download.stems(folder, ".jpg"))
    missing = sorted(set(listed) - present)
    if missing:
        download.refuse(f"{len(missing)} of {len(listed)} images are missing in {folder}", missing)
    wrong = misfits(folder, [i for i in content["images"] if i["file_name"].removesuffix(".jpg") in present])
    if wrong:
        download.refuse(f"{len(wrong)} images are damaged or of another size", wrong)
    names = sorted(annotation["file_name"] for annotation in content["annotations"])
    if absent := labels_that_lack(root, split, names):
        download.refuse(absent)
    download.stop()
    return names


def labels_that_lack(root: Path, split: str, names: list[str]) -> str:
    """What is wrong with the label files: they are in an archive, or have been unpacked before."""
    archive, folder = root / "annotations" / f"panoptic_{split}2017.zip", root / f"panoptic_{split}2017"
    if archive.is_file():
        where, known = archive, set(open_archive(archive)[1])
    elif folder.is_dir():
        where, known = folder, {path.name for path in folder.iterdir()}
    else:
        return f"there is no file {archive}"
    missing = [name for name in names if name not in known]
    return f"{where} lacks {len(missing)} label files: {first_few(missing)}" if missing else ""


def prepare(root: Path, splits: tuple[str, ...], workers: int, incomplete: bool) -> None:
    """Unpacks the splits, once all are found complete."""
    found = {split: check(root, split, incomplete) for split in splits}
    for split, names in found.items():
        archive, folder = root / "annotations" / f"panoptic_{split}2017.zip", root / f"panoptic_{split}2017"
        if archive.is_file():
            with only_process(root / f".panoptic_{split}2017.lock"):
                folder.mkdir(exist_ok=True)
                remove_leftovers(folder, age=0)
                journal = root / f".panoptic_{split}2017.jsonl"
                convert_all(names, partial(unpack, archive, folder), journal, workers, folder.name, HINT)
                journal.unlink()
        print(f"coco_panoptic_{split}: {len(names)} images ready")


@command(help=__doc__)
@splits
@workers
@incomplete
def main(splits: tuple[str, ...], workers: int, incomplete: bool) -> None:
    prepare(datasets_root() / "coco", splits, workers, incomplete)


if __name__ == "__main__":
    sys.exit(run(main))
