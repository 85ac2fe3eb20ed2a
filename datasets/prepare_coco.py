#!/usr/bin/env python
"""Checks and unpacks the official COCO-panoptic downloads.

Reads below $DETECTRON2_DATASETS/coco:

    train2017/*.jpg, val2017/*.jpg                               from train2017.zip, val2017.zip
    annotations/panoptic_{train,val}2017.json and .zip           from panoptic_annotations_trainval2017.zip

and unpacks the label PNG files to panoptic_{train,val}2017/. An interrupted run resumes.

    dearli prepare coco train val
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from dearli_d2.cli.base import command, run
from dearli_d2.cli.prepare import splits
from dearli_d2.data.catalog import datasets_root
from dearli_d2.data.preparation import read_official_json
from dearli_d2.errors import DatasetError, first_few
from dearli_d2.files import write_atomically

EXPECTED = {"train": 118287, "val": 5000}
HINT = "download the 2017 images and panoptic_annotations_trainval2017.zip from the COCO site and unpack them there"


def unpack(archive: Path, folder: Path, names: set[str]) -> None:
    """Unpacks the PNG files that are missing or of another size.

    Raises:
        DatasetError: a damaged archive, or one without a file that `names` lists.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = {PurePosixPath(m.filename).name: m for m in source.infolist() if m.filename.endswith(".png")}
            missing = sorted(names - set(members))
            if missing:
                raise DatasetError(f"{archive} lacks {len(missing)} label files: {first_few(missing)}")
            for name in tqdm(sorted(names), desc=folder.name, unit="file"):
                path, member = folder / name, members[name]
                if path.is_file() and path.stat().st_size == member.file_size:
                    continue
                with source.open(member) as stream:
                    write_atomically(path, lambda temporary, s=stream: _copy(s, temporary))
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{archive} is damaged ({error}); download it again") from error


def _copy(stream: zipfile.ZipExtFile, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(stream, target)


def prepare(root: Path, splits: list[str]) -> None:
    """Checks and unpacks the splits."""
    for split in splits:
        path = root / "annotations" / f"panoptic_{split}2017.json"
        content = read_official_json(path, HINT)
        names = {a["file_name"] for a in content["annotations"]}
        images = {i["file_name"] for i in content["images"]}
        folder = root / f"{split}2017"
        present = {p.name for p in folder.glob("*.jpg")} if folder.is_dir() else set()
        missing = sorted(images - present)
        if missing:
            raise DatasetError(
                f"{split}: {len(missing)} of {len(images)} images are missing in {folder}: {first_few(missing)}; {HINT}"
            )
        if len(images) != EXPECTED[split]:
            print(f"note: {split} has {len(images)} images, the official release {EXPECTED[split]}")
        archive = root / "annotations" / f"panoptic_{split}2017.zip"
        if not archive.is_file():
            raise DatasetError(f"{split}: no file {archive}; {HINT}")
        unpack(archive, root / f"panoptic_{split}2017", names)
        print(f"coco_panoptic_{split}: {len(images)} images ready")


@command(help=__doc__)
@splits
def main(splits: tuple[str, ...]) -> None:
    prepare(datasets_root() / "coco", splits)


if __name__ == "__main__":
    sys.exit(run(main))
