"""Classes of a data set: names with synonyms, thing or stuff, colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError

_NO_CLASS = "invalid_class_id"  # a placeholder line of the class-name format


@dataclass(frozen=True)
class Taxonomy:
    """`names[c]` is the tuple of synonyms of contiguous class c, the main name first; `dataset_ids[c]` its id in the
    annotation files; `colors[c]` an RGB triple 0..255."""

    names: tuple[tuple[str, ...], ...]
    thing_ids: frozenset[int]
    dataset_ids: tuple[int, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def main_names(self) -> list[str]:
        return [synonyms[0] for synonyms in self.names]

    def with_names(self, names: Sequence[Sequence[str]], source: str = "names") -> Taxonomy:
        """The same classes under other names (synonyms from a file, `source` in the error)."""
        if len(names) != len(self):
            raise ConfigError(f"{source}: {len(names)} class names for {len(self)} classes")
        return replace(self, names=tuple(tuple(n) for n in names))

    def to_json(self) -> dict:
        """Plain lists, for checkpoints."""
        return {
            "names": [list(n) for n in self.names],
            "thing_ids": sorted(self.thing_ids),
            "dataset_ids": list(self.dataset_ids),
            "colors": [list(c) for c in self.colors],
        }

    @staticmethod
    def from_json(content: dict) -> Taxonomy:
        return Taxonomy(
            tuple(tuple(n) for n in content["names"]),
            frozenset(content["thing_ids"]),
            tuple(content["dataset_ids"]),
            tuple(tuple(c) for c in content["colors"]),
        )

    @staticmethod
    def from_categories(categories: Sequence[dict]) -> Taxonomy:
        """From COCO-panoptic `categories`, in the order of the list; an optional "synonyms" list adds names."""
        fallback = spread_colors(len(categories))
        return Taxonomy(
            names=tuple((c["name"], *c.get("synonyms", ())) for c in categories),
            thing_ids=frozenset(i for i, c in enumerate(categories) if c.get("isthing", 1)),
            dataset_ids=tuple(c["id"] for c in categories),
            colors=tuple(tuple(c.get("color", fallback[i])) for i, c in enumerate(categories)),
        )

    @staticmethod
    def from_text(text: str) -> Taxonomy:
        """A free vocabulary from "cat, dog, tree|bush": `|` joins synonyms; every class counts as a thing."""
        names = tuple(tuple(s.strip() for s in entry.split("|") if s.strip()) for entry in text.split(","))
        names = tuple(n for n in names if n)
        if not names:
            raise ConfigError(f"no class name in {text!r}; write for example --text 'cat, dog, grass'")
        return Taxonomy(names, frozenset(range(len(names))), tuple(range(len(names))), tuple(spread_colors(len(names))))


def spread_colors(count: int) -> list[tuple[int, int, int]]:
    """`count` well separated RGB colours: golden-angle hues at three brightnesses."""
    import colorsys

    colors = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb((i * 0.61803) % 1.0, (0.85, 0.6, 0.75)[i % 3], (0.95, 0.8, 0.6)[i % 3])
        colors.append(tuple(int(255 * v) for v in rgb))
    return colors


def read_class_names(path: str | Path) -> list[tuple[str, ...]]:
    """Reads `id:name,synonym,...` lines; a line named `invalid_class_id` is a placeholder and no class.

    Raises:
        ConfigError: missing file, a line without a name, an id used twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"MODEL.TEXT.CLASS_NAMES: no file {path}")
    names, seen = [], set()
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        identifier, separator, rest = line.partition(":")
        synonyms = tuple(s.strip() for s in rest.split(",") if s.strip())
        if not separator or not synonyms:
            raise ConfigError(f"{path}:{number}: expected 'id:name,synonym,...', found {line!r}")
        if identifier in seen:
            raise ConfigError(f"{path}:{number}: id {identifier} stands twice")
        seen.add(identifier)
        if synonyms[0] != _NO_CLASS:
            names.append(synonyms)
    if not names:
        raise ConfigError(f"{path}: no class name")
    return names
