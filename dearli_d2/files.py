"""Small file helpers: the cache folder and writes that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
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


def parse_json(text: str) -> Any:
    """The content of a JSON text. Every fault of the text raises `ValueError`."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error


def is_text(name: str) -> bool:
    """True if a file's name can be written in UTF-8, the coding of all text files."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def same_writing(name: str) -> str:
    """A name in Unicode's form NFC: macOS writes an accented letter as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def output_names(file_names: Sequence[str]) -> list[str]:
    """A name for the output of each of several different paths.

    It is the path without its suffix, or with it where two outputs would share a name.
    """
    names = {file: file[: len(file) - len(Path(file).suffix)] for file in file_names}
    while shared := {name for name, count in Counter(names.values()).items() if count > 1}:
        names = {file: file if name in shared else name for file, name in names.items()}
    return list(names.values())


def picture_names(files: Sequence[str]) -> list[str]:
    """`output_names` of files anywhere: below the folder that holds all of them."""
    paths = [Path(os.path.abspath(file)) for file in files]
    above = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return output_names([path.relative_to(above).as_posix() for path in paths])


def leads_out(name: object) -> bool:
    """True if a name from a user's file must not be joined to a folder: it is no text, or its path leads elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name:
        return True
    path = PurePath(name)
    return path.is_absolute() or ".." in path.parts or not path.name


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any], through: Path | None = None) -> None:
    """Calls `write(temporary)`, then renames. A killed process leaves the old file or the new one.

    Args:
        path: the file.
        write: writes the file of the path that it gets.
        through: folder of the temporary file, on the same disk; None = beside `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (through or path.parent) / f".{path.stem[:64]}-{secrets.token_hex(4)}{path.suffix}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask, as any new file
        mode = temporary.stat().st_mode & 0o777
        write(temporary)
        os.chmod(temporary, mode)  # safetensors puts a file of its own in place of this one
        os.replace(temporary, path)
    except OSError as error:  # the error of a full disk names no file, or the temporary one
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str], stem: str = "", age: float = _IN_USE) -> None:
    """Deletes the temporary files and folders that killed processes left in a folder.

    Args:
        folder: the place.
        stem: of the file that was to be written; "" = of any.
        age: younger ones, in seconds, may be in use and stay; 0 where no other process writes there.
    """
    for path in Path(folder).glob(f".{stem[:64]}*"):
        with suppress(FileNotFoundError):  # another process was faster
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime >= age:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = None) -> None:
    """Writes `content` as JSON, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=indent)))
