"""Config files: safe YAML without repeated keys, and the files that `_BASE_` names."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

_BASE = "_BASE_"


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in lines:
                raise yaml.MarkedYAMLError(problem=f"{key} stands twice, in lines {lines[key]} and {line}")
            lines[key] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML's readers of dates and tagged values raise errors of many types
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(problem=f"{node.value!r} is no {kind}", problem_mark=node.start_mark) from error


def read_config_files(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file, content) of a config file and all that it inherits from, bases first.

    Raises:
        ConfigError: a file that is missing, unreadable, empty, unsafe, or that inherits from itself; a key twice.
    """
    yield from _read(Path(path), ())


def _read(path: Path, inherited_by: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    if path.resolve() in (p.resolve() for p in inherited_by):
        chain = " -> ".join(str(p) for p in (*inherited_by, path))
        raise ConfigError(f"{_BASE} goes in a circle: {chain}")
    if not path.is_file():
        if inherited_by:
            raise ConfigError(f"{inherited_by[-1]}: the file that {_BASE} names is missing: {path}")
        raise ConfigError(f"no config file {path}")
    content = read_mapping(path)
    bases = content.pop(_BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: {_BASE} is {bases!r}; it must be a path or a list of paths")
    for base in bases:
        yield from _read(path.parent / Path(base).expanduser(), (*inherited_by, path))
    yield path, content


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping. Raises `ConfigError` for any other and for a key that stands twice."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no safe YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if content is None:
        raise ConfigError(f"{path} is empty; write keys such as SOLVER.MAX_ITER, or {_BASE}: the file to start from")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; a config is a mapping of keys to values")
    return content
