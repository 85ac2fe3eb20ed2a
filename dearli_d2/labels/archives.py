"""Zip files of labels, as tools export them."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from ..errors import DatasetError, first_few
from ..files import cache_dir, file_digest, leads_out

_LARGEST = 2**35  # bytes of all unpacked files


def unpacked(path: Path) -> Path:
    """The folder that holds the content of a zip file, in the cache; any other path as it is.

    Raises:
        DatasetError: a damaged archive, one that is too large, or names that lead out of it.
    """
    if path.suffix.lower() != ".zip" or not path.is_file():
        return path
    folder = cache_dir() / "unpacked" / file_digest(path)[:16]
    if not folder.is_dir():
        unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with zipfile.ZipFile(path) as archive:
                _check(archive, path)
                archive.extractall(unfinished)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise DatasetError(f"{path} cannot be unpacked: {error}; export it again") from error
        if folder.is_dir():  # another process was faster
            shutil.rmtree(unfinished)
        else:
            os.replace(unfinished, folder)
    inside = [p for p in folder.iterdir() if p.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    entries = archive.infolist()
    wrong = [e.filename for e in entries if leads_out(e.filename) or "\\" in e.filename]
    if wrong:
        raise DatasetError(f"{path}: {len(wrong)} names lead out of the archive: {first_few(wrong)}")
    total = sum(e.file_size for e in entries)
    if total > _LARGEST:
        raise DatasetError(f"{path} would be {total >> 30} GiB unpacked; unpack it yourself, and name the folder")
    if not any(not e.is_dir() for e in entries):
        raise DatasetError(f"{path} is empty")
