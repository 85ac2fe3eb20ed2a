"""Values of configs and places of data sets, read without torch: for lists of many rows."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..config.files import read_config_files
from ..data.builtin import BUILT_IN
from ..data.partitions import NONE, PLACEHOLDER, WHOLE, drawn
from ..data.sources import ImageFolder, PanopticSource
from ..files import beside_package
from ..weight_list import cached, published

_ROLES = ("TRAIN", "SOURCE", "UNLABELED", "TEST")
_GENERATED = "miniworld_"


def settings_of(config: str, overrides: Sequence[Any] = ()) -> dict[str, Any]:
    """Keys that a config below `configs/`, its bases and `overrides` give, with their values; not the defaults, and unchecked.

    Raises:
        ConfigError: a file is missing or no safe YAML.
    """
    own = dict(zip(overrides[::2], overrides[1::2], strict=True))
    return _of_files(beside_package("configs") / config) | {key: _read(value) for key, value in own.items()}


@cache
def _of_files(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, content in read_config_files(path):
        found |= dict(_leaves(content))
    return found


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _read(value)


def _read(value: Any) -> Any:
    """Reads a value as the config does: `"('a', 'b')"` is a tuple. Numbers stay texts: `1_128` is the name of a partition."""
    return ast.literal_eval(value) if isinstance(value, str) and value.startswith(("(", "[")) else value


def data_of(settings: Mapping[str, Any]) -> list[str]:
    """Names of the data sets and views of a config, each once."""
    part = settings.get("DATASETS.PARTITION", "")
    names = [str(name) for role in _ROLES for name in settings.get(f"DATASETS.{role}") or ()]
    return list(dict.fromkeys(name.replace(f"@{PLACEHOLDER}", f"@{part}") for name in names))


def missing_data(name: str) -> list[str]:
    """Advice on the files of a data set or view that are missing, without reading any.

    Returns:
        The command that makes the data set, and the list of labelled images with the command that copies it.
    """
    base, _, view = name.partition("@")
    if base.startswith(_GENERATED):
        return []
    if base not in BUILT_IN:
        return [f"there is no data set {base}"]
    source = BUILT_IN[base]()
    if isinstance(source, ImageFolder):
        return [] if source.image_root.is_dir() else [source.hint]
    path = list_of(source, view.partition(":")[0], name)
    missing = [] if source.panoptic_json.is_file() else [source.hint.removeprefix("run ")]
    return missing if path is None or path.is_file() else [*missing, f"dearli prepare partitions FOLDER ({path})"]


def list_of(source: PanopticSource, part: str, name: str) -> Path | None:
    """The list of labelled images of a part; None where it has none."""
    if part in ("", WHOLE, NONE) or drawn(part, float("inf"), name) is not None:
        return None
    if source.partition_root is None or part.endswith(".txt"):
        return Path(part)
    return source.partition_root / part / "labeled.txt"


def weights_of(settings: Mapping[str, Any]) -> list[str]:
    """Names in the list of weights of a config's backbones and text encoder; those that the list does not have are left out."""
    found = []
    for section in dict.fromkeys(key.rpartition(".")[0] for key in settings if ".BACKBONE." in key):
        name, arch, weights = (settings.get(f"{section}.{key}", "") for key in ("NAME", "ARCH", "WEIGHTS"))
        if name == "TimmBackbone" and weights:  # without a tag it is timm's first
            found += [known for known in published() if f"{known}.".startswith(f"timm/{arch}.")][:1]
        elif weights:
            found.append(f"open_clip/{arch}/{weights}")
    found.append(f"open_clip/{settings.get('MODEL.TEXT.ENCODER')}/{settings.get('MODEL.TEXT.WEIGHTS')}")
    return [name for name in dict.fromkeys(found) if name in published()]


def missing_weights(name: str) -> str:
    """The name of weights that are not on this machine, "" for others."""
    return "" if cached(published()[name]) else name
