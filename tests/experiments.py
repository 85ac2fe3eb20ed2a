"""The experiments of `configs/`, with the partitions that the table in a config's header lists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import REPO

CONFIGS = REPO / "configs"
EXPERIMENTS = sorted(p for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("Base"))
OWN_DATA = ["DATASETS.CUSTOM.ROOT", "mine", "DATASETS.CUSTOM.CLASSES", "['0 thing a', '1 stuff b']"]


def name_of(path: Path) -> str:
    """`ade20k/dear_convnext_b.yaml`, as a test id."""
    return path.relative_to(CONFIGS).as_posix()


def header_of(path: Path) -> str:
    """The comment that a config opens with."""
    return re.match(r"(#.*\n)*", path.read_text())[0]


def partitions_of(path: Path) -> dict[str, int]:
    """Labelled images of each partition in the header's table; {} where there is none."""
    rows = re.search(r"^#   partition .*\n((?:#   \S.*\n)+)", header_of(path), re.MULTILINE)
    return {part: int(count) for part, count in re.findall(r"^#   (\S+) +(\d+)", rows[1], re.MULTILINE)} if rows else {}


def line(part: str) -> list[str]:
    """The overrides of an experiment's line."""
    return ["DATASETS.PARTITION", part] if part else []
