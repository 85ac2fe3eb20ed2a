"""The folder that `predict` writes: the names of its files, what lies there already, and `predictions.json`."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .data.images import find_images
from .data.taxonomy import Taxonomy
from .errors import ConfigError, DatasetError, first_few
from .files import leads_out, output_names, parse_json, remove_leftovers, write_json

logger = logging.getLogger(__name__)

KINDS = ("panoptic", "semantic", "overlay", "confidence")
DEFAULT_KINDS = KINDS[:3]
_LIST = "predictions.json"
_GENERATOR = "dearli_d2.predict"
_ADVICE = "choose another --out, or replace them with --overwrite"


@dataclass(frozen=True)
class Inputs:
    """Images to predict.

    Args:
        folder: the common folder of all arguments.
        paths: of the images, as given.
        file_names: the paths below `folder`.
        names: of the outputs, all different.
    """

    folder: Path
    paths: list[Path]
    file_names: list[str]
    names: list[str]


def find_inputs(arguments: Sequence[str | Path]) -> Inputs:
    """Images among the arguments and below the folders there, without the pictures that an earlier prediction wrote.

    Raises:
        DatasetError: a path that does not exist, no image, or none but such pictures.
    """
    found = find_images(arguments)
    folders = [Path(os.path.abspath(a)) for a in arguments if Path(a).is_dir()]
    files = [Path(os.path.abspath(a)) for a in arguments if not Path(a).is_dir()]
    paths: dict[Path, Path] = {}  # a file that is named twice is predicted once
    for path in found:
        whole = Path(os.path.abspath(path))
        if whole in files or not _written_before(whole, folders):
            paths.setdefault(whole, path)
    left_out = len(found) - len(paths)
    if not paths:
        raise DatasetError(
            f"all {len(found)} images in {first_few(list(arguments))} were written by an earlier prediction"
        )
    if left_out:
        logger.warning(
            "%d of %d images were written by an earlier prediction, or named twice: left out", left_out, len(found)
        )
    above = Path(os.path.commonpath([*folders, *(f.parent for f in files)]))
    file_names = [whole.relative_to(above).as_posix() for whole in paths]
    return Inputs(above, list(paths.values()), file_names, output_names(file_names))


def _written_before(image: Path, folders: Sequence[Path]) -> bool:
    """True if a prediction into a folder between one of `folders` and the image has written it."""
    for folder in image.parents:
        if any(folder.is_relative_to(f) for f in folders) and image.relative_to(folder).as_posix() in _outputs(folder):
            return True
    return False


@lru_cache(maxsize=4096)
def _outputs(folder: Path) -> frozenset[str]:
    content = _own_list(folder / _LIST) or {}
    return frozenset(f"{name}_{kind}.png" for name in content.get("outputs", {}) for kind in KINDS)


def _own_list(path: Path) -> dict[str, Any] | None:
    """The content of a `predictions.json` of this program; None for any other file, or none."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        own = content["info"]["generator"] == _GENERATOR and isinstance(content["outputs"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if own else None


# the formats of labelling tools need packages that predictions alone do not


def _writable(formats: Sequence[str]) -> list[str]:
    if not formats:
        return []
    from .labels.convert import writable

    return [writable(name) for name in dict.fromkeys(formats)]


def _known(formats: Sequence[str]) -> list[str]:
    if not formats:
        return []
    from .labels.formats import formats as known

    return [name for name in formats if name in known()]


class PredictionFolder:
    """The folder of the predictions of `inputs`. Until `finish` its `predictions.json` says that it is not complete.

    Args:
        out: the folder; made if it is missing.
        inputs: the images.
        run: identifies the run by everything that its predictions depend on, for example {"weights": digest}. The same run may
            write the folder again, also with more images.
        overwrite: replace other files there.
        kinds: the files to write of each image, among `KINDS`; "panoptic" always is.
        formats: of labels to write as well, each to a folder of its name in `out`, see `labels.formats`.

    Raises:
        ConfigError: a format that cannot be written; an output would replace an image that is read; or, without `overwrite`, predictions of another run or of
            other images, or files of others.
    """

    def __init__(
        self,
        out: str | Path,
        inputs: Inputs,
        run: dict[str, str],
        overwrite: bool = False,
        kinds: Sequence[str] = DEFAULT_KINDS,
        formats: Sequence[str] = (),
    ) -> None:
        self.out, self.inputs, self.run = Path(out), inputs, run
        self.kinds = [kind for kind in KINDS if kind in ("panoptic", *kinds)]
        self.formats = _writable(formats)
        targets = {f"{name}_{kind}.png" for name in inputs.names for kind in KINDS}
        read = {os.path.realpath(path): path for path in inputs.paths}
        replaced = [read[real] for t in sorted(targets) if (real := os.path.realpath(self.out / t)) in read]
        if replaced:
            raise ConfigError(
                f"--out {self.out}: {len(replaced)} of the images to predict would be overwritten by predictions of others: "
                f"{first_few(replaced)}; choose another folder"
            )
        before = _own_list(self.out / _LIST)
        earlier = _known((before or {}).get("info", {}).get("formats", ()))
        if not overwrite:
            self._check_free(before, targets)
            strange = [name for name in self.formats if name not in earlier and (self.out / name).exists()]
            if strange:
                raise ConfigError(f"{self.out / strange[0]} was not written by this program; {_ADVICE}")
        for name in earlier:  # they are made anew of the predictions
            shutil.rmtree(self.out / name, ignore_errors=True)
        self._write(False, [], [], [], [])
        for name in set((before or {}).get("outputs", {})) - set(inputs.names):
            if not leads_out(name):
                self.remove(name)
        for folder in {(self.out / name).parent for name in inputs.names}:
            remove_leftovers(folder)
        _outputs.cache_clear()

    def _check_free(self, before: dict[str, Any] | None, targets: set[str]) -> None:
        path, ours = self.out / _LIST, set()
        if before is None and path.exists():
            raise ConfigError(f"{path} was not written by this version of this program; {_ADVICE}")
        if before is not None:
            info, outputs = before["info"], before["outputs"]
            known = info.get("run") if isinstance(info.get("run"), dict) else {}
            other = [key for key in {**known, **self.run} if known.get(key) != self.run.get(key)]
            if other:
                raise ConfigError(f"{self.out} holds predictions made with other {' and '.join(other)}; {_ADVICE}")
            own = set(self.inputs.file_names)
            strange = [file for file in outputs.values() if file not in own]
            if strange or info.get("image_folder") != str(self.inputs.folder):
                raise ConfigError(
                    f"{self.out} holds predictions of {len(strange) or len(outputs)} other images, of "
                    f"{info.get('image_folder')}: {first_few(strange or list(outputs.values()))}; {_ADVICE}"
                )
            ours = {f"{name}_{kind}.png" for name in outputs for kind in KINDS}
        strangers = [t for t in sorted(targets - ours) if (self.out / t).exists()]
        if strangers:
            raise ConfigError(
                f"{self.out} holds {len(strangers)} files that would be overwritten: {first_few(strangers)}; {_ADVICE}"
            )

    def path(self, name: str, kind: str) -> Path:
        """The path of one of the output files of an image."""
        return self.out / f"{name}_{kind}.png"

    def remove(self, name: str) -> None:
        """Deletes what an earlier run has written of an image."""
        for kind in KINDS:
            self.path(name, kind).unlink(missing_ok=True)

    def finish(
        self,
        images: list[dict[str, Any]],
        annotations: list[dict[str, Any]],
        taxonomy: Taxonomy,
        skipped: Sequence[tuple[Path, str]],
    ) -> None:
        """Writes the complete `predictions.json`.

        Args:
            skipped: (path, reason) of images without a prediction.
        """
        categories = [
            {
                "id": taxonomy.dataset_ids[i],
                "name": names[0],
                "synonyms": list(names[1:]),
                "isthing": int(i in taxonomy.thing_ids),
                "color": list(taxonomy.colors[i]),
            }
            for i, names in enumerate(taxonomy.names)
        ]
        self._write(True, images, annotations, categories, [{"image": str(p), "reason": r} for p, r in skipped])

    def write_formats(self) -> None:
        """Writes the finished predictions in each of `formats`.

        Raises:
            OSError: a file cannot be written.
        """
        if not self.formats:
            return
        from .labels.convert import write_labels
        from .labels.recognition import read_labels
        from .labels.structures import Request

        for name in self.formats:
            labels = read_labels(Request(self.out / _LIST, self.inputs.folder), "coco-panoptic")
            write_labels(labels, name, self.out / name, self.inputs.folder, overwrite=True)

    def _write(
        self, complete: bool, images: list[Any], annotations: list[Any], categories: list[Any], skipped: list[Any]
    ) -> None:
        content = {
            "info": {
                "generator": _GENERATOR,
                "complete": complete,
                "image_folder": str(self.inputs.folder),
                "run": self.run,
                "formats": self.formats,
            },
            "images": images,
            "annotations": annotations,
            "categories": categories,
            "skipped": skipped,
            "outputs": dict(zip(self.inputs.names, self.inputs.file_names, strict=True)),
        }
        write_json(self.out / _LIST, content, indent=1)
