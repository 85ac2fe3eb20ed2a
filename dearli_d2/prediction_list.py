"""`predictions.json`: a COCO-panoptic file of all images of a prediction, with facts about the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.taxonomy import Taxonomy
from .files import parse_json, write_atomically
from .journal import parse_line
from .prediction_files import ENDINGS

if TYPE_CHECKING:
    from .prediction_inputs import Inputs

NAME = "predictions.json"
_GENERATOR = "dearli_d2.predict"

Places = Mapping[
    str, tuple[Path, int]
]  # the journal, and the place of the record there, of each image by its file name


def own_list(path: Path) -> dict[str, Any] | None:
    """The content of a `predictions.json` of this program; None for any other file, or none."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        own = content["info"]["generator"] == _GENERATOR and isinstance(content["outputs"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if own else None


def files_of(names: Iterable[str]) -> set[str]:
    """The files that a prediction may write for images of these output names."""
    return {f"{name}{ending}" for name in names for ending in ENDINGS.values()}


def write_list(
    path: Path, info: dict[str, Any], inputs: Inputs, places: Places | None = None, taxonomy: Taxonomy | None = None
) -> None:
    """Writes the file, a line for each image, without holding all records in memory.

    Args:
        path: the file.
        info: facts about the run.
        inputs: all images.
        places: of the records of all images; None = the prediction is not complete.
        taxonomy: the classes of the predictions.
    """
    sections: dict[str, Iterable[Any]] = {
        "images": _images(inputs, places or {}),
        "annotations": _annotations(inputs, places or {}),
        "categories": [] if taxonomy is None else _categories(taxonomy),
        "skipped": _skips(inputs, places or {}),
    }
    about = {"generator": _GENERATOR, "complete": places is not None, "image_folder": str(inputs.folder), **info}
    outputs = dict(zip(inputs.names, inputs.file_names, strict=True))

    def write(temporary: Path) -> None:
        with temporary.open("w") as file:
            file.write(f'{{\n"info": {json.dumps(about)}')
            for key, items in sections.items():
                file.write(f',\n"{key}": [')
                for number, item in enumerate(items):
                    file.write(f"{',' if number else ''}\n{json.dumps(item)}")
                file.write("]")
            file.write(f',\n"outputs": {json.dumps(outputs, indent=0)}\n}}\n')

    write_atomically(path, write)


def _records(inputs: Inputs, places: Places) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number from 1 on and record of each image, in the order of the inputs."""
    with ExitStack() as stack:
        files = {path: stack.enter_context(path.open("rb")) for path in {path for path, _ in places.values()}}
        for number, file_name in enumerate(inputs.file_names, start=1):
            if file_name in places:
                path, begin = places[file_name]
                files[path].seek(begin)
                entry = parse_line(files[path].readline())
                assert entry is not None  # it was read a moment ago
                yield number, entry[1]


def _images(inputs: Inputs, places: Places) -> Iterator[dict[str, Any]]:
    for number, record in _records(inputs, places):
        if "skipped" not in record:
            size = {"height": record["height"], "width": record["width"]}
            yield {"id": number, "file_name": inputs.file_names[number - 1], **size}


def _annotations(inputs: Inputs, places: Places) -> Iterator[dict[str, Any]]:
    for number, record in _records(inputs, places):
        if "skipped" not in record:
            file_name = f"{record['name']}{ENDINGS['panoptic']}"
            yield {"image_id": number, "file_name": file_name, "segments_info": record["segments_info"]}


def _skips(inputs: Inputs, places: Places) -> Iterator[dict[str, str]]:
    for number, record in _records(inputs, places):
        if "skipped" in record:
            yield {"image": str(inputs.paths[number - 1]), "reason": record["skipped"]}


def _categories(taxonomy: Taxonomy) -> list[dict[str, Any]]:
    return [
        {
            "id": taxonomy.dataset_ids[i],
            "name": names[0],
            "synonyms": list(names[1:]),
            "isthing": int(i in taxonomy.thing_ids),
            "color": list(taxonomy.colors[i]),
        }
        for i, names in enumerate(taxonomy.names)
    ]
