"""The configuration of a run: defaults, files, the command line, and what follows from them."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as _detectron2_defaults

from ..data.custom import number_of_classes, settle
from ..errors import ConfigError
from ..files import beside_package
from ..methods import method_of
from ..pretrained import resolve_normalization
from .experiment import choose_length, fill_partition, output_folder, resolve_epochs
from .files import read_config_files
from .rules import validate
from .schema import read_value, reads_text, schema, sections


def add_dearli_config(cfg: CfgNode) -> None:
    """Adds the project's keys to a detectron2 config, in place; see `sections` and the options of each method."""
    for section in sections():
        section.add_to(cfg)


def get_config(config_file: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """The frozen, validated configuration, with names of data sets, length and OUTPUT_DIR in full; see `experiment`.

    Args:
        config_file: YAML (safe tags only), `_BASE_` inherits; see `find_config`.
        overrides: "KEY", "VALUE", ... as on the command line.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one), impossible or contradictory values.
    """
    cfg = _detectron2_defaults()
    add_dearli_config(cfg)
    layers: list[Collection[str]] = []  # keys that each file and the command line give
    if config_file is not None:
        for path, content in read_config_files(find_config(config_file)):
            given: set[str] = set()
            _merge(cfg, content, f"{path}: ", given)
            choose_length(cfg, given, f"{path}: ")
            layers.append(given)
    overrides = list(map(str, overrides))
    option = next((key for key in overrides[::2] if key.startswith("-")), None)
    if option is not None:
        raise ConfigError(f"{option} stands behind keys of the config; options come before KEY VALUE pairs")
    if len(overrides) % 2:
        raise ConfigError(f"overrides are KEY VALUE pairs; the last, {overrides[-1]!r}, has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        # a class file needs no list around it
        is_file = key == "DATASETS.CUSTOM.CLASSES" and re.fullmatch(r"[^\[(].*\.txt", value)
        _set(cfg, key, [value] if is_file else value, "command line: ")
    layers.append(overrides[::2])
    choose_length(cfg, layers[-1], "command line: ")
    part = fill_partition(cfg, layers)
    if config_file is not None and not any("OUTPUT_DIR" in keys for keys in layers):
        cfg.OUTPUT_DIR = output_folder(find_config(config_file), part)
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.DATASETS.CUSTOM.ROOT:
        settle(cfg.DATASETS)
    if cfg.DATASETS.CUSTOM.ROOT and not cfg.MODEL.NUM_CLASSES:
        cfg.MODEL.NUM_CLASSES = number_of_classes(cfg.DATASETS.CUSTOM)
    resolve_epochs(cfg)
    resolve_normalization(cfg, method_of(cfg).networks)
    validate(cfg)
    cfg.freeze()
    return cfg


def find_config(path: str | Path) -> Path:
    """A config file: the path as it is, else a config of the project by its path below `configs/`.

    Raises:
        ConfigError: neither is there.
    """
    path = Path(path)
    if path.is_file():
        return path
    below = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    own = beside_package("configs") / below
    if not own.is_file():
        raise ConfigError(f"no config file {path}, neither here nor in {beside_package('configs')}")
    return own


def _merge(cfg: CfgNode, content: dict[str, Any], where: str, given: set[str], prefix: str = "") -> None:
    """Merges the content of a file.

    `given` collects its keys, since "TEST.AMP: True" and "TEST: {AMP: True}" write the same key.
    """
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and _section(cfg, key.split(".")) is not None:
            _merge(cfg, value, where, given, f"{key}.")
        elif key in given:
            raise ConfigError(f"{where}{key} stands twice")
        else:
            given.add(key)
            _set(cfg, key, value, where)


def _set(cfg: CfgNode, key: str, value: Any, where: str) -> None:
    """Puts a value into the config. Raises `ConfigError` for an unknown key or a value that it does not accept."""
    *path, name = key.split(".")
    node = _section(cfg, path)
    if node is None or name not in node:
        similar = difflib.get_close_matches(key.upper(), list(all_keys(cfg)), 1)
        raise ConfigError(f"{where}there is no key {key}" + (f"; did you mean {similar[0]}?" if similar else ""))
    default = node[name]
    if isinstance(default, CfgNode):
        example = next((known for known in schema() if known.startswith(f"{key}.")), f"{key}.{next(iter(default))}")
        raise ConfigError(f"{where}{key} is {value!r}; it is a section, give its keys, such as {example}")
    try:
        decoded = _decode(value, reads_text(key, default))
        node[name] = read_value(key, decoded, default)
    except ValueError as error:
        raise ConfigError(f"{where}{error}") from error


def _section(cfg: CfgNode, path: Sequence[str]) -> CfgNode | None:
    for name in path:
        cfg = cfg.get(name) if isinstance(cfg, CfgNode) else None
    return cfg if isinstance(cfg, CfgNode) else None


def _decode(value: Any, text: bool) -> Any:
    """A value as it stands on the command line or in YAML, whose "1e-4" and "(1, 2)" are strings, as Python reads it."""
    if not isinstance(value, str):
        return value
    try:
        decoded = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        lowered = value.strip().lower()
        return float(lowered) if not text and lowered.lstrip("+-") in ("nan", "inf", "infinity") else value
    return value if text and not isinstance(decoded, str) else decoded


def all_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Sections and keys, with dots."""
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from all_keys(value, f"{prefix}{key}.")
