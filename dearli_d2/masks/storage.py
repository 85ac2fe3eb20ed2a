"""Class-agnostic masks on disk: one JSON file of RLE annotations an image, as in SA-1B, and a manifest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from ..errors import DatasetError, first_few
from ..files import parse_json, write_atomically
from .file_per_image import MANIFEST, OTHER_IMAGE, FilePerImage, check_stems, image_digest

_HINT = "dearli masks generate makes them"
_CHECKED = 2000  # mask files that are compared with their image before training


class MaskFolder(FilePerImage):
    """A folder of class-agnostic masks: `masks/STEM.json` for each image.

    A mask file holds "image" {"file_name", "height", "width", "digest" (see `image_digest`)} and "annotations":
    {"segmentation" (compressed RLE), "area", "bbox" (x, y, w, h), "predicted_iou", "stability_score"}.
    """

    def path(self, file_name: str) -> Path:
        """The mask file of an image."""
        return self.folder / "masks" / f"{Path(file_name).stem}.json"

    def write(self, file_name: str, size: tuple[int, int], annotations: list[dict]) -> None:
        """Stores the masks of one image of (height, width), whole or not at all."""
        image = {"file_name": Path(file_name).name, "height": size[0], "width": size[1]}
        if Path(file_name).is_file():
            image["digest"] = image_digest(file_name)
        text = json.dumps({"image": image, "annotations": annotations})
        write_atomically(self.path(file_name), lambda temporary: temporary.write_text(text))

    def stored_digest(self, path: Path) -> str | None:
        """The image's digest in the head of a mask file; the rest is not read."""
        with path.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r'"digest": "(\w+)"', file.read(2**12).partition('"annotations"')[0])
        return found[1] if found else None

    def read(self, file_name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """(N, H, W) bool masks of an image; they may overlap. Crowd annotations are left out.

        Args:
            size: height and width that the masks must have; None = those that the file says.

        Raises:
            DatasetError: no file, a damaged one, masks of another image or size.
        """
        path = self.path(file_name)
        try:
            content = parse_json(path.read_text())
            own = content["image"]["height"], content["image"]["width"]
            codes = [a["segmentation"] for a in content["annotations"] if not a.get("iscrowd", 0)]
            problem = size_problem(own, size, codes)
            if not problem:
                masks = rle.decode(codes).transpose(2, 0, 1).astype(bool) if codes else np.zeros((0, *own), bool)
        except FileNotFoundError as error:
            raise DatasetError(f"no masks of {file_name}: {path} is missing; {_HINT}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise DatasetError(f"{path} is no mask file: {error}") from error
        if problem:
            raise DatasetError(f"{path}: {problem}; delete the file, {_HINT}")
        if not self.made_for(file_name):
            raise DatasetError(f"{file_name}: {path} {OTHER_IMAGE}")
        return masks

    def check(self, dicts: list[dict]) -> str:
        """Checks that all images have masks, and describes them in a line.

        Images that could not be read when the masks were made need none.

        Raises:
            DatasetError: no manifest, other images without masks, masks of other images, two images with one stem.
        """
        manifest = self.manifest()
        if manifest is None:
            raise DatasetError(f"DATASETS.MASKS {self.folder} holds no {MANIFEST}; {_HINT}")
        check_stems([d["file_name"] for d in dicts])
        folder = self.folder / "masks"
        present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        without = [d["file_name"] for d in dicts if self.path(d["file_name"]).name not in present]
        unreadable = self.unreadable() if without else set()
        missing = [f for f in without if Path(f).stem not in unreadable]
        if missing:
            raise DatasetError(
                f"DATASETS.MASKS {self.folder}: {len(missing)} of {len(dicts)} images have no masks, first: {missing[0]}; {_HINT}"
            )
        there = [d["file_name"] for d in dicts if self.path(d["file_name"]).name in present]
        other = [f for f in there[:: max(1, -(-len(there) // _CHECKED))] if not self.made_for(f)]
        if other:
            raise DatasetError(
                f"DATASETS.MASKS {self.folder}: the masks of {len(other)} images are of others with the same names, first: "
                f"{other[0]}; make them in a folder of their own"
            )
        left_out = f"; {len(without)} that cannot be read are left out: {first_few(without)}" if without else ""
        count, generator = len(dicts) - len(without), manifest.get("generator", "unknown")
        return f"{self.folder}: class-agnostic masks of {count} images, made by {generator}{left_out}"


def size_problem(own: tuple, size: tuple[int, int] | None, codes: list[dict]) -> str:
    """Describes wrong sizes in RLE codes, or "". Decoding trusts the sizes, and would write beyond its memory."""
    if not all(isinstance(side, int) and side > 0 for side in own):
        return f"its image has the size {own}"
    if size is not None and tuple(size) != own:
        return f"its masks are {own[1]} x {own[0]}, the image is {size[1]} x {size[0]} pixels"
    for number, code in enumerate(codes):
        if list(code["size"]) != list(own):
            return f"mask {number} has the size {code['size']}, its image {list(own)}"
        if _run_lengths(code["counts"]) != own[0] * own[1]:
            return f"the run lengths of mask {number} do not add up to {own[0]} x {own[1]} pixels"
    return ""


def _run_lengths(text: str | bytes) -> int:
    """The sum of the run lengths of a compressed RLE, -1 if one is negative or cut off.

    As in pycocotools' `rleFrString`: a number is a run of characters of 6 bits, the first 5 its value, lowest first, with a sign, the
    sixth says that more follow; from the fourth on it is the difference to the number two before.
    """
    values = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    if not len(values):
        return 0
    ends = (values & 0x20) == 0
    if not ends[-1] or values.min() < 0 or values.max() > 63:
        return -1
    number = np.concatenate([[0], np.cumsum(ends)[:-1]])  # which number a character belongs to
    starts = np.concatenate([[0], ends.nonzero()[0][:-1] + 1])
    shift = 5 * (np.arange(len(values)) - starts[number])
    if shift.max() > 30:
        return -1
    differences = np.bincount(number, (values & 0x1F) << shift).astype(np.int64)
    negative = (values[ends] & 0x10) != 0
    differences[negative] -= np.left_shift(1, shift[ends] + 5)[negative]
    lengths = differences.copy()
    lengths[1::2] = np.cumsum(differences[1::2])
    lengths[2::2] = np.cumsum(differences[2::2])
    return int(lengths.sum()) if lengths.min() >= 0 else -1


def encode(mask: np.ndarray) -> dict:
    """(H, W) bool to compressed RLE that JSON can hold."""
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}
