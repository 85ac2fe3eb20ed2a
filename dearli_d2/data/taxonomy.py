"""Classes of a data set: names with synonyms, thing or stuff, colours."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DatasetError, WeightsError, first_few
from ..files import read_text
from .class_names import CLASS_LISTS, class_table, comma_parts, find_class, plain_words

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

_NO_CLASS = "invalid_class_id"  # a placeholder line of the class-name format


@dataclass(frozen=True)
class Taxonomy:
    """The classes of a data set.

    `names[c]` is the tuple of synonyms of contiguous class c, with the main name first. `dataset_ids[c]` is its id in the
    annotation files. `colors[c]` is an RGB triple 0..255.
    """

    names: tuple[tuple[str, ...], ...]
    thing_ids: frozenset[int]
    dataset_ids: tuple[int, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def main_names(self) -> list[str]:
        """The main name of each class."""
        return [synonyms[0] for synonyms in self.names]

    @property
    def text_names(self) -> tuple[tuple[str, ...], ...]:
        """The names as a text tower reads them, in plain words.

        Parts behind a comma become synonyms unless another class has them too. A name stays as it is if plain words would make
        it equal to the name of another class.
        """
        plain = [tuple(plain_words(part) for part in comma_parts(names[0])) for names in self.names]
        mains = Counter(parts[0] for parts in plain)
        owners = Counter(name for parts, names in zip(plain, self.names, strict=True) for name in {*parts, *names[1:]})
        result = []
        for parts, names in zip(plain, self.names, strict=True):
            main = parts[0] if mains[parts[0]] == 1 else names[0]
            more = [part for part in parts[1:] if owners[part] == 1]
            result.append(tuple(dict.fromkeys((main, *more, *(plain_words(name) for name in names[1:])))))
        return tuple(result)

    @property
    def main_text_names(self) -> list[str]:
        """The main name of each class as a text tower reads it."""
        return [names[0] for names in self.text_names]

    def with_names(self, names: Sequence[Sequence[str]]) -> Taxonomy:
        """The same classes under other names, in the order of the classes."""
        if len(names) != len(self):
            raise ConfigError(f"{len(names)} class names for {len(self)} classes")
        return replace(self, names=tuple(tuple(n) for n in names))

    def with_names_of(self, path: str | Path) -> Taxonomy:
        """The same classes under the names of a file (see `read_class_names`), which belong to the classes by id.

        The file's ids are those of the annotation files, or all one higher (ADE20K's published lists count from 1) or one
        lower; which, its names decide.

        Raises:
            ConfigError: ids without a class, classes without an id, or names that are not those of the classes.
        """
        found = read_class_names(path)
        own = set(self.dataset_ids)
        shift = max((0, 1, -1), key=lambda s: len({i + s for i in own} & set(found)))
        missing = [
            f"{i + shift} ({self.names[c][0]})" for c, i in enumerate(self.dataset_ids) if i + shift not in found
        ]
        strange = [f"{i} ({names[0]})" for i, names in found.items() if i - shift not in own]
        if missing or strange:
            problems = [f"{len(missing)} classes have no line: {first_few(missing)}"] if missing else []
            problems += [f"{len(strange)} lines are of no class: {first_few(strange)}"] if strange else []
            raise ConfigError(
                f"MODEL.TEXT.CLASS_NAMES {path}: {' and '.join(problems)}; it needs one line for each of the {len(self)} "
                f"classes, with their ids in the annotation file ({self.dataset_ids[0]}:{self.names[0][0]} ...)"
            )
        renamed = replace(self, names=tuple(found[i + shift] for i in self.dataset_ids))
        self._check_meaning(renamed, shift, path)
        return renamed

    def _check_meaning(self, renamed: Taxonomy, shift: int, path: str | Path) -> None:
        """Compares names: most classes must keep one of theirs, and few may take that of another class."""
        before, after = ([_comparable(names) for names in taxonomy.names] for taxonomy in (self, renamed))
        owner = {name: c for c, names in enumerate(before) for name in names}
        kept = [bool(b & a) for b, a in zip(before, after, strict=True)]
        swapped = [
            f"{renamed.names[c][0]!r} for {self.names[c][0]!r} (id {i})"
            for c, i in enumerate(self.dataset_ids)
            if not kept[c] and any(name in owner for name in after[c])
        ]
        if len(self) > 1 and (not any(kept) or len(swapped) > sum(kept) or (shift and 2 * sum(kept) < len(self))):
            examples = swapped or [
                f"{renamed.names[c][0]!r} for {self.names[c][0]!r} (id {i})" for c, i in enumerate(self.dataset_ids)
            ]
            raise ConfigError(
                f"MODEL.TEXT.CLASS_NAMES {path}: the ids fit, the names do not: {sum(kept)} of {len(self)} classes have a "
                f"name in common with the data set, and it says {first_few(examples)}; is it the list of another data set?"
            )
        if swapped:
            logger.warning("MODEL.TEXT.CLASS_NAMES %s says %s; is that meant?", path, first_few(swapped))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, for checkpoints."""
        return {
            "names": [list(n) for n in self.names],
            "thing_ids": sorted(self.thing_ids),
            "dataset_ids": list(self.dataset_ids),
            "colors": [list(c) for c in self.colors],
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> Taxonomy:
        """Reverses `to_json`."""
        return Taxonomy(
            tuple(tuple(n) for n in content["names"]),
            frozenset(content["thing_ids"]),
            tuple(content["dataset_ids"]),
            tuple(tuple(c) for c in content["colors"]),
        )

    @staticmethod
    def of_checkpoint(content: dict[str, Any], source: str | Path) -> Taxonomy | None:
        """The classes in the content of a weight file; None where it names none. Raises `WeightsError`."""
        if "taxonomy" not in content:
            return None
        try:
            found = Taxonomy.from_json(content["taxonomy"])
            sound = len(found) == len(found.dataset_ids) == len(found.colors) and all(found.names)
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise WeightsError(f"{source}: its entry 'taxonomy' is no list of classes as this program writes it")
        return found

    @staticmethod
    def from_categories(categories: Sequence[dict[str, Any]], dataset: str | None = None) -> Taxonomy:
        """Reads COCO-panoptic `categories`, in the order of the list; an optional "synonyms" list adds names.

        Args:
            categories: the list.
            dataset: a data set of `class_names`. Its names and synonyms replace those of the list. Classes that it does not
                know keep their names, and the log names them.
        """
        fallback = spread_colors(len(categories))
        known = [find_class(dataset, c["name"]) if dataset else None for c in categories]
        if dataset and None in known:
            unknown = [c["name"] for c, entry in zip(categories, known, strict=True) if entry is None]
            logger.warning("%d categories are not classes of %s: %s", len(unknown), dataset, first_few(unknown))
        moved = [
            f"{c['name']} has {c['id']}, not {entry.id}"
            for c, entry in zip(categories, known, strict=True)
            if entry and entry.id != c["id"]
        ]
        if moved:
            logger.warning(
                "%d categories have other ids than in %s: %s; files that an older version has prepared? Then run "
                "dearli prepare NAME again",
                len(moved), dataset, first_few(moved),
            )  # fmt: skip
        return Taxonomy(
            names=tuple(
                entry.names if entry else (c["name"], *c.get("synonyms", ()))
                for c, entry in zip(categories, known, strict=True)
            ),
            thing_ids=frozenset(i for i, c in enumerate(categories) if c.get("isthing", 1)),
            dataset_ids=tuple(c["id"] for c in categories),
            colors=tuple(tuple(c.get("color", fallback[i])) for i, c in enumerate(categories)),
        )

    @staticmethod
    def from_text(text: str) -> Taxonomy:
        """Reads a free vocabulary such as "cat, dog, tree|bush": `|` joins synonyms; every class counts as a thing."""
        names = tuple(tuple(s.strip() for s in entry.split("|") if s.strip()) for entry in text.split(","))
        names = tuple(n for n in names if n)
        if not names:
            raise ConfigError(f"no class name in {text!r}; write for example 'cat, dog, grass'")
        twice = [
            n for n, count in Counter(name.lower() for synonyms in names for name in set(synonyms)).items() if count > 1
        ]
        if twice:
            raise ConfigError(f"two classes have the name {first_few([repr(n) for n in twice])} in {text!r}")
        return Taxonomy(names, frozenset(range(len(names))), tuple(range(len(names))), tuple(spread_colors(len(names))))


def first_difference(saved: Taxonomy, found: Taxonomy, synonyms: bool = False, kinds: bool = True) -> str | None:
    """The first class that two taxonomies do not share, in words; None where all are the same in number and order.

    Args:
        saved, found: the two taxonomies; the words say that a class of `saved` "was" and that of `found` "is".
        synonyms: compare all names, not only the main ones.
        kinds: compare whether classes are things or stuff.
    """

    def describe(taxonomy: Taxonomy, index: int) -> str:
        names = ", ".join(taxonomy.names[index] if synonyms else taxonomy.names[index][:1])
        kind = (", thing" if index in taxonomy.thing_ids else ", stuff") if kinds else ""
        return f"{names!r} (id {taxonomy.dataset_ids[index]}{kind})"

    for index in range(min(len(saved), len(found))):
        before, now = describe(saved, index), describe(found, index)
        if before != now:
            return f"class {index} was {before}, is {now}"
    return None if len(saved) == len(found) else f"{len(saved)} classes, not {len(found)}"


def named(cfg: CfgNode, taxonomy: Taxonomy) -> Taxonomy:
    """Classes of a data set under the names that a model of the config has for them."""
    return taxonomy.with_names_of(cfg.MODEL.TEXT.CLASS_NAMES) if cfg.MODEL.TEXT.CLASS_NAMES else taxonomy


def same_classes(
    saved: Taxonomy, found: Taxonomy, source: str | Path, here: str, synonyms: bool = False, kinds: bool = True
) -> None:
    """Checks that a data set has the classes that a model was made for.

    Args:
        saved: the classes of the model.
        found: the classes of the data set.
        source, here: the names of model and data set, for the error.
        synonyms, kinds: see `first_difference`.

    Raises:
        DatasetError: number, order, names, ids or kinds differ; with the first class that does.
    """
    difference = first_difference(saved, found, synonyms, kinds)
    if difference is not None:
        raise DatasetError(
            f"{here} has other categories than {source} was made for: {difference}. Give the classes in the order and with "
            "the names and ids that the model was trained with"
        )


def spread_colors(count: int) -> list[tuple[int, int, int]]:
    """`count` well separated RGB colours: golden-angle hues at three brightnesses."""
    import colorsys

    colors = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb((i * 0.61803) % 1.0, (0.85, 0.6, 0.75)[i % 3], (0.95, 0.8, 0.6)[i % 3])
        red, green, blue = (int(255 * v) for v in rgb)
        colors.append((red, green, blue))
    return colors


def names_in(source: str, key: str) -> frozenset[str]:
    """All names of a class list, in plain words and lower case.

    Args:
        source: a list of `class_names`, or a file as `read_class_names` reads it.
        key: of the config that holds `source`, for errors.

    Raises:
        ConfigError: there is neither, or see `read_class_names`.
    """
    if source in CLASS_LISTS:
        lists = [entry.names for entry in class_table(source)]
    elif Path(source).is_file():
        lists = list(read_class_names(source).values())
    else:
        raise ConfigError(f"{key}: {source!r} is neither a file nor one of {', '.join(CLASS_LISTS)}")
    return frozenset(plain_words(name).lower() for names in lists for name in names)


def read_class_names(path: str | Path) -> dict[int, tuple[str, ...]]:
    """Names by id from `id:name,synonym,...` lines; a line named `invalid_class_id` is a placeholder and no class.

    Raises:
        ConfigError: missing file, a line without a number or a name, an id used twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"MODEL.TEXT.CLASS_NAMES: no file {path}")
    names = {}
    for number, line in enumerate(read_text(path, ConfigError).splitlines(), start=1):
        if not line.strip():
            continue
        identifier, separator, rest = line.partition(":")
        synonyms = tuple(s.strip() for s in rest.split(",") if s.strip())
        if not separator or not synonyms or not identifier.strip().isdecimal():
            raise ConfigError(f"{path}:{number}: expected 'id:name,synonym,...', found {line!r}")
        if int(identifier) in names:
            raise ConfigError(f"{path}:{number}: id {int(identifier)} stands twice")
        names[int(identifier)] = synonyms
    names = {i: synonyms for i, synonyms in names.items() if synonyms[0] != _NO_CLASS}
    if not names:
        raise ConfigError(f"{path}: no class name")
    return names


def _comparable(names: Sequence[str]) -> frozenset[str]:
    """Names such that "traffic_lights" and "Traffic light" are the same."""
    words = (part.lower().replace("-", " ").replace("_", " ").strip() for name in names for part in comma_parts(name))
    return frozenset(word.removesuffix("s") for word in words)
