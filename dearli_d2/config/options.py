"""Typed sections of the configuration: the default, the rule and the explanation of a key stand in one place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .values import Rule

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_Section = TypeVar("_Section", bound="Options")


def option(default: Any, rule: Rule, explanation: str = "") -> Any:
    """A key of a section.

    Args:
        default: its type is that of the key.
        rule: the values that the key accepts.
        explanation: meaning, unit and source.
    """
    return field(default_factory=lambda: copy.copy(default), metadata={"rule": rule, "explanation": explanation})


@dataclass(frozen=True)
class Key:
    """A configuration key as it is declared."""

    name: str
    default: Any
    rule: Rule
    explanation: str


class Options:
    """A section of the configuration. A subclass is a frozen dataclass, and each of its fields is a key.

    The field `prompt_tokens` of a section "MODEL.HVL" is the key MODEL.HVL.PROMPT_TOKENS.
    """

    SECTION: ClassVar[str]

    @classmethod
    def entries(cls) -> Iterator[Key]:
        """Yields the keys of the section, with their full names."""
        for entry in fields(cls):  # type: ignore[arg-type]  # every subclass is a dataclass
            name = ".".join(filter(None, (cls.SECTION, entry.name.upper())))
            yield Key(name, entry.default_factory(), entry.metadata["rule"], entry.metadata["explanation"])  # type: ignore[misc]

    @classmethod
    def add_to(cls, cfg: CfgNode) -> None:
        """Puts the keys with their defaults into a config, in place."""
        for key in cls.entries():
            *path, name = key.name.split(".")
            node = cfg
            for part in path:
                if part not in node:
                    node[part] = type(cfg)()
                node = node[part]
            node[name] = key.default

    @classmethod
    def of(cls: type[_Section], cfg: CfgNode) -> _Section:
        """The section of a config."""
        node = cfg
        for part in filter(None, cls.SECTION.split(".")):
            node = node[part]
        return cls(**{entry.name: node[entry.name.upper()] for entry in fields(cls)})  # type: ignore[arg-type]
