"""Captions of images: JSON lines {"file", "caption", "model"}, made once by `dearli prepare captions`.

"file" is the image's path below the image folder of its data set.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from detectron2.config import CfgNode

from ..errors import DatasetError, first_few
from ..files import parse_json, read_text
from ..methods import method_of
from .catalog import datasets_root, source_of, split_name
from .packed import TextPacker, Texts
from .records import Captions, Changed, Records
from .sources import PanopticSource


def caption_file(name: str) -> Path:
    """The caption file of a data set, or of the data set that `name` is a view of.

    Its source may name the file. The default is `$DETECTRON2_DATASETS/captions/NAME.jsonl`.
    """
    source = source_of(name)
    own = source.captions if isinstance(source, PanopticSource) else None
    return own or datasets_root() / "captions" / f"{split_name(name)[0]}.jsonl"


def read_captions(path: Path) -> dict[str, str]:
    """File to caption.

    Raises:
        DatasetError: no such file; lines that are no JSON, lack a key or a word, or name a file again, with line numbers.
    """
    if not path.is_file():
        raise DatasetError(f"no caption file {path}")
    return _read(path, path.stat().st_mtime)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: float) -> dict[str, str]:
    captions: dict[str, str] = {}
    line_of: dict[str, int] = {}
    broken, double = [], []
    for number, line in enumerate(read_text(path, DatasetError).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            file, caption = entry["file"], entry["caption"]
            if not (isinstance(file, str) and isinstance(caption, str) and caption.strip()):
                raise ValueError("empty")
        except (ValueError, KeyError, TypeError):
            broken.append(f"line {number}")
            continue
        if file in captions:
            double.append(f"{file} in lines {line_of[file]} and {number}")
        captions[file], line_of[file] = caption.strip(), number
    if broken:
        raise DatasetError(
            f'{path}: {len(broken)} lines are not {{"file": ..., "caption": ...}} with words in both: {first_few(broken)}'
        )
    if double:
        raise DatasetError(f"{path}: {len(double)} files have two captions: {first_few(double)}")
    return captions


def with_captions(name: str, records: Records) -> Records:
    """The images of a data set or view with their "caption".

    Raises:
        DatasetError: no caption file, or images without a caption, with the command that makes them.
    """
    path = caption_file(name)
    base = split_name(name)[0]
    command = f"dearli prepare captions {base} makes them, or set CAPTIONS in the section of the method to class_names"
    try:
        captions = read_captions(path)
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}; {command}") from error
    files = records.names()
    missing = [f for f in files if f not in captions]
    if missing and len(missing) == len(files) and captions:
        raise DatasetError(
            f"{name}: {path} is of other files: it has {len(captions)} captions such as that of {next(iter(captions))}, "
            f"the images are {first_few(files)}; {command}"
        )
    if missing:
        raise DatasetError(
            f"{name}: {len(missing)} of {len(files)} images have no caption in {path}: {first_few(missing)}; {command}"
        )
    return Changed(records, Captions(Texts(*TextPacker(captions[f] for f in files).arrays())))


def reads_captions(cfg: CfgNode) -> bool:
    """True if the method of a config needs a caption for each image."""
    return method_of(cfg).reads_captions(cfg)


def prepared_for(cfg: CfgNode, name: str, records: Records) -> Records:
    """The images of a data set, with captions where the config needs them."""
    return with_captions(name, records) if reads_captions(cfg) else records
