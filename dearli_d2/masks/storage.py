"""Class-agnostic masks on disk: a mask file an image, as in SA-1B, put together in shards, and a manifest."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from ..errors import DatasetError, first_few
from ..files import parse_json, write_atomically
from .bits import run_lengths
from .file_per_image import MANIFEST, OTHER_IMAGE, FilePerImage, check_stems, image_digest
from .shards import Record, Shards

_HINT = "dearli masks generate makes them"
_CHECKED = 2000  # mask files that are compared with their image before training
SHARD = 1000  # images


class MaskFolder(FilePerImage):
    """A folder of class-agnostic masks: a mask file for each image, in `shards/` or alone as `masks/STEM.json`.

    A mask file holds "image" {"file_name", "height", "width", "digest" (see `image_digest`)} and "annotations":
    {"segmentation" (compressed RLE), "area", "bbox" (x, y, w, h), "predicted_iou", "stability_score"}. Masks are written as files
    alone. When there are enough of them for a shard, they become one. A file alone counts before one in a shard.

    Args:
        folder: it need not exist yet.
        shard: images of a shard; 0 = each keeps a file of its own.
    """

    def __init__(self, folder: str | Path, shard: int = SHARD) -> None:
        super().__init__(folder)
        self.shard, self.shards = shard, Shards(self.folder / "shards")
        self._alone: bool | None = None  # whether masks/ may hold files
        self._new: list[str] = []  # stems that were written and are not in a shard
        self._counting, self._packing = threading.Lock(), threading.Lock()

    def path(self, file_name: str) -> Path:
        """The mask file of an image, if it is alone."""
        return self._file(Path(file_name).stem)

    def _file(self, stem: str) -> Path:
        return self.folder / "masks" / f"{stem}.json"

    def place(self, file_name: str) -> Path:
        """The mask file of an image, or the shard that holds it; for an image without masks the file that would be written."""
        alone = self.path(file_name)
        return alone if self._is_alone(file_name) else self.shards.place(Path(file_name).stem) or alone

    def has(self, file_name: str) -> bool:
        """See `FilePerImage`."""
        return self._is_alone(file_name) or self.shards.digest(Path(file_name).stem) is not None

    def have(self, file_names: Sequence[str]) -> np.ndarray:
        """(N,) bool: which of N images have masks on the disk by now."""
        self.refresh()
        alone = self._stems_alone()
        stems = [Path(name).stem for name in file_names]
        return self.shards.have(stems) | np.array([stem in alone for stem in stems], bool)

    def refresh(self) -> None:
        """Looks at the disk again, where other processes may have written."""
        self.shards.refresh()
        self._alone = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "shard": self.shard}  # for workers, which look at the disk themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _is_alone(self, file_name: str) -> bool:
        if self._alone is None:  # no look for a file of each image where there are none
            self._alone = any((self.folder / "masks").glob("*.json"))
        return self._alone and self.path(file_name).is_file()

    def _stems_alone(self) -> set[str]:
        return {path.stem for path in (self.folder / "masks").glob("*.json") if not path.name.startswith(".")}

    # -------------------------------------------------------------------------------------- writing

    def write(self, file_name: str, size: tuple[int, int], annotations: list[dict]) -> None:
        """Stores the masks of one image of (height, width), whole or not at all."""
        image = {"file_name": Path(file_name).name, "height": size[0], "width": size[1]}
        if Path(file_name).is_file():
            image["digest"] = image_digest(file_name)
        self.write_record(
            Record(Path(file_name).stem, json.dumps({"image": image, "annotations": annotations}).encode())
        )

    def write_record(self, record: Record) -> None:
        """Stores a mask file as it is."""
        write_atomically(self._file(record.stem), lambda temporary: temporary.write_bytes(record.content))
        with self._counting:
            self._alone = True
            self._new.append(record.stem)
            if not self.shard or len(self._new) < self.shard:
                return
            full, self._new = self._new, []
        self._pack(full)

    def pack(self, file_names: Sequence[str]) -> None:
        """Puts the mask files of these images that are alone into shards. A process that is killed meanwhile loses none."""
        if self.shard:
            alone = self._stems_alone()
            chosen = [stem for stem in dict.fromkeys(Path(name).stem for name in file_names) if stem in alone]
            for start in range(0, len(chosen), self.shard):
                self._pack(chosen[start : start + self.shard])
            self._new = []

    def _pack(self, stems: Sequence[str]) -> None:
        with self._packing:
            self.shards.refresh()
            records = [_record(self._file(stem)) for stem in stems]
            new = [
                record for record in records if not self.shards.holds(record)
            ]  # a killed process did not remove its files
            if new:
                self.shards.write(new)
            for stem in stems:
                self._file(stem).unlink(missing_ok=True)
            self.shards.refresh()

    # -------------------------------------------------------------------------------------- reading

    def stored_digest(self, file_name: str) -> str | None:
        """See `FilePerImage`."""
        if not self._is_alone(file_name):
            return self.shards.digest(Path(file_name).stem) or None
        with self.path(file_name).open("rb") as file:  # its head; the rest is not read
            return _digest(file.read(2**12)) or None

    def holds(self, record: Record) -> bool:
        """True if the image has this very mask file."""
        if self._is_alone(f"{record.stem}.json"):
            return self._file(record.stem).read_bytes() == record.content
        return self.shards.holds(record)

    def scan(self) -> Iterator[Record | DatasetError]:
        """All mask files, also those that a newer one replaces; in place of a damaged one the error that names it."""
        yield from (_record(self._file(stem)) for stem in sorted(self._stems_alone()))
        for path in self.shards.files():
            yield from self.shards.scan(path)

    def records(self) -> Iterator[Record]:
        """The mask file of each image. Raises `DatasetError` for a damaged shard."""
        alone = self._stems_alone()
        yield from (_record(self._file(stem)) for stem in sorted(alone))
        for path in self.shards.files():
            yield from (record for record in self.shards.records(path) if record.stem not in alone)

    def read(self, file_name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """(N, H, W) bool masks of an image, which may overlap. Arguments and errors are those of `codes`."""
        own, codes = self.codes(file_name, size)
        return rle.decode(codes).transpose(2, 0, 1).astype(bool) if codes else np.zeros((0, *own), bool)

    def codes(self, file_name: str, size: tuple[int, int] | None = None) -> tuple[tuple[int, int], list[dict]]:
        """Height and width of the masks of an image, and their compressed RLEs. Crowd annotations are left out.

        Args:
            file_name: of the image.
            size: height and width that the masks must have; None = those that the file says.

        Raises:
            DatasetError: no mask file, a damaged one, masks of another image or size.
        """
        content = self._content(file_name)
        if content is None:
            raise DatasetError(f"no masks of {file_name}: {self.path(file_name)} is missing; {_HINT}")
        own, codes, problem = parsed(content, size)
        if not own:
            raise DatasetError(f"{self._named(file_name)} is no mask file: {problem}")
        if problem:
            what = "file" if self._is_alone(file_name) else "shard"
            raise DatasetError(f"{self._named(file_name)}: {problem}; delete the {what}, {_HINT}")
        if not self.made_for(file_name):
            raise DatasetError(
                f"{file_name}: {self._named(file_name)} {OTHER_IMAGE}; dearli masks generate --replace makes it anew, or choose another folder"
            )
        return own, codes

    def _content(self, file_name: str) -> bytes | None:
        for attempt in range(2):
            try:
                if self._is_alone(file_name):
                    return self.path(file_name).read_bytes()
            except FileNotFoundError:  # another process has just put it into a shard
                self.refresh()
            found = self.shards.read(Path(file_name).stem)
            if found is not None or attempt:
                return found
            self.refresh()
        return None

    def _named(self, file_name: str) -> str:
        """The mask file for messages."""
        place = self.place(file_name)
        return str(place) if place.suffix == ".json" else f"{place}: {Path(file_name).stem}.json"

    def check(self, dicts: Sequence[dict]) -> str:
        """Checks that all images have masks, and describes them in a line.

        Images that could not be read when the masks were made need none.

        Raises:
            DatasetError: no manifest, other images without masks, masks of other images, two images with one stem, a damaged shard.
        """
        manifest = self.manifest()
        if manifest is None:
            raise DatasetError(f"DATASETS.MASKS {self.folder} holds no {MANIFEST}; {_HINT}")
        files = [d["file_name"] for d in dicts]
        check_stems(files)
        have = self.have(files)
        without = [file for file, there in zip(files, have, strict=True) if not there]
        unreadable = self.unreadable() if without else set()
        missing = [f for f in without if Path(f).stem not in unreadable]
        if missing:
            raise DatasetError(
                f"DATASETS.MASKS {self.folder}: {len(missing)} of {len(dicts)} images have no masks, first: {missing[0]}; {_HINT}"
            )
        there = [file for file, present in zip(files, have, strict=True) if present]
        other = [f for f in there[:: max(1, -(-len(there) // _CHECKED))] if not self.made_for(f)]
        if other:
            raise DatasetError(
                f"DATASETS.MASKS {self.folder}: the masks of {len(other)} images are of others with the same names, first: "
                f"{other[0]}; make them in a folder of their own"
            )
        left_out = f"; {len(without)} that cannot be read are left out: {first_few(without)}" if without else ""
        count, generator = len(dicts) - len(without), manifest.get("generator", "unknown")
        return f"{self.folder}: class-agnostic masks of {count} images, made by {generator}{left_out}"


def _record(path: Path) -> Record:
    content = path.read_bytes()
    return Record(path.stem, content, _digest(content))


def _digest(content: bytes) -> str:
    """The image's digest in the head of a mask file; "" if it has none."""
    found = re.search(rb'"digest": "([0-9a-f]+)"', content[: 2**12].partition(b'"annotations"')[0])
    return found[1].decode() if found else ""


def parsed(content: bytes | str, size: tuple[int, int] | None = None) -> tuple[tuple[int, int] | None, list[dict], str]:
    """Reads what a mask file or a file of SA-1B holds.

    Args:
        content: of the file.
        size: height and width that the masks must have; None = those that the file says.

    Returns:
        Height and width, None for another kind of file. The RLE codes of the masks that are no crowd. What is wrong with them, or "".
    """
    try:
        whole: Any = parse_json(content if isinstance(content, str) else content.decode())
        own = whole["image"]["height"], whole["image"]["width"]
        codes = [a["segmentation"] for a in whole["annotations"] if not a.get("iscrowd", 0)]
        return own, codes, size_problem(own, size, codes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return None, [], str(error)


def size_problem(own: tuple, size: tuple[int, int] | None, codes: list[dict]) -> str:
    """Describes wrong sizes in RLE codes, or "". Decoding trusts the sizes, and would write beyond its memory."""
    if not all(isinstance(side, int) and side > 0 for side in own):
        return f"its image has the size {own}"
    if size is not None and tuple(size) != own:
        return f"its masks are {own[1]} x {own[0]}, the image is {size[1]} x {size[0]} pixels"
    for number, code in enumerate(codes):
        if list(code["size"]) != list(own):
            return f"mask {number} has the size {code['size']}, its image {list(own)}"
    lengths, begin = run_lengths([code["counts"] for code in codes])
    wrong = (np.add.reduceat(lengths, begin) != own[0] * own[1]).nonzero()[0].tolist() if codes else []
    if wrong:
        return f"the run lengths of mask {wrong[0]} do not add up to {own[0]} x {own[1]} pixels"
    return ""


def encode(mask: np.ndarray) -> dict:
    """(H, W) bool to compressed RLE that JSON can hold."""
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}
