"""Small file helpers: the cache folder and writes that are whole or absent."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from .errors import DearliError

_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")  # as tempfile names them
_IN_USE = 3600.0  # seconds


def cache_dir() -> Path:
    """Folder for generated and derived files: `$DEARLI_CACHE`, else `~/.cache/dearli_d2`."""
    return Path(os.environ.get("DEARLI_CACHE", Path.home() / ".cache" / "dearli_d2"))


def beside_package(name: str) -> Path:
    """`configs`, `datasets` or `scripts`: at the top of a checkout, inside an installed package."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def read_text(path: Path, error: type[DearliError]) -> str:
    """A text file in UTF-8, with or without a byte-order mark. Raises `error` for another coding."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is no text in UTF-8 ({problem}); save it as UTF-8") from problem


def leads_out(name: object) -> bool:
    """Whether a name that a file of others gives must not be joined to a folder: it is no text, or its path ends elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name:
        return True
    path = PurePath(name)
    return path.is_absolute() or ".." in path.parts or not path.name


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Calls `write(temporary)` beside `path`, then renames; a killed process leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:  # of a full disk: it names no file, or the temporary one
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Deletes the temporary files and folders that killed processes left in a folder; younger ones than an hour may be in use."""
    for path in Path(folder).glob(".*"):
        with suppress(FileNotFoundError):  # another process was faster
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > _IN_USE:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def write_json(path: str | os.PathLike, content: Any, indent: int | None = None) -> None:
    """Writes `content` as JSON, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=indent)))
