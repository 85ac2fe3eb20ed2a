"""One process of each machine looks at the images of a run; the others take over what it found."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from detectron2.utils import comm

from ..errors import DearliError
from .catalog import ImageFolder, dataset_records, source_of, split_name
from .listing import known, take_over


def look_once(names: Sequence[str]) -> None:
    """Every process of a run calls it, with the same data sets; see `listing`. What is wrong with them is raised at their use."""
    if comm.get_world_size() == 1:
        return
    first = comm.get_local_rank() == 0
    if first:
        for base in dict.fromkeys(split_name(name)[0] for name in names):
            if isinstance(source_of(base), ImageFolder):
                with suppress(DearliError):
                    dataset_records(base)
    found = comm.all_gather(known() if first else {})
    if not first:
        take_over(found[comm.get_rank() - comm.get_local_rank()])
