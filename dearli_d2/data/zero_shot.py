"""Zero-shot data: classes that training must not see."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from .records import Changed, Records, WithoutClasses
from .taxonomy import Taxonomy


def unseen_classes(chosen: Sequence[str], taxonomy: Taxonomy) -> tuple[int, ...]:
    """Ids of the names of DATASETS.UNSEEN_CLASSES, sorted; a class goes by its main name.

    Raises:
        ConfigError: a name that no class has, or no seen or no unseen class.
    """
    names = taxonomy.main_names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ConfigError(
            f"DATASETS.UNSEEN_CLASSES: no class is called {unknown[0]!r}; classes: {', '.join(names[:30])}"
        )
    unseen = {names.index(name) for name in chosen}
    if not unseen or len(unseen) == len(names):
        raise ConfigError(
            f"DATASETS.UNSEEN_CLASSES names {len(unseen)} of {len(names)} classes; there must be seen and unseen ones"
        )
    return tuple(sorted(unseen))


def without_classes(records: Records, unseen: tuple[int, ...]) -> Records:
    """The same images without the segments of some classes: what training reads, so that no later step can see them."""
    return Changed(records, WithoutClasses(unseen))
