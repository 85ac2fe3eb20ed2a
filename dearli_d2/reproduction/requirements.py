"""What a row needs before it can start: settings that hold together, data, weights. Everything is checked at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import get_config
from ..engine.checks import check_batches
from ..errors import DearliError, RequirementsError
from ..plan import data_rows
from ..runs import Processes
from ..weight_list import PublishedWeights, cached, find, how_to_get, needed_by
from .settings import missing_data
from .stages import Choice, Step

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_MISSING = "MISSING"  # the first word of `data_rows` about what is not there


@dataclass(frozen=True)
class Need:
    """Something that a stage reads.

    Attributes:
        role: such as "unlabelled" or "weights".
        name: of the data set, the file or the key.
        state: how much is there, or what is missing and the command that makes it.
        there: whether it is there.
    """

    role: str
    name: str
    state: str
    there: bool


def config_of(step: Step) -> CfgNode:
    """The resolved config of a training or an evaluation. Raises `ConfigError`."""
    return get_config(f"configs/{step.config}", [*step.overrides, "OUTPUT_DIR", str(step.folder)])


def needs_of(steps: Sequence[Step], num_gpus: int = 1) -> list[Need]:
    """Everything that stages need and no earlier stage makes, each once; a fault of a config counts as a need.

    Views of one data set whose files are missing are one need.
    """
    found: dict[tuple[str, ...], Need] = {}
    captioned = {name for step in steps if step.command[:2] == ("prepare", "captions") for name in step.command[2:]}
    for step in steps:
        for need in _of_step(step, num_gpus):
            if need.role == "captions" and need.name.partition("@")[0] in captioned:
                continue
            found.setdefault((need.role, need.name) if need.there else (need.state,), need)
    return list(found.values())


def check(steps: Sequence[Step], choice: Choice) -> None:
    """Checks that stages can start, and that the folder of all rows can be written to.

    Raises:
        RequirementsError: with all that is missing, and the command that makes each.
    """
    missing = [need for need in needs_of(steps, choice.num_gpus) if not need.there]
    if steps and (fault := _unwritable(choice.out)):
        missing.insert(0, Need("folder", str(choice.out), fault, there=False))
    if missing:
        lines = "".join(f"\n  {need.role} {need.name}: {need.state}" for need in missing)
        raise RequirementsError(f"{len(missing)} things are missing:{lines}" if len(missing) > 1 else lines.strip())


def _unwritable(folder: Path) -> str:
    """Reason why nothing can be written to a folder, which need not exist; "" for none."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file; choose another --out"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} may not be written to; choose another --out"


def _of_step(step: Step, num_gpus: int) -> list[Need]:
    needs = [_weights(find(name)) for name in step.files]
    if not step.config:
        return needs
    try:
        cfg = config_of(step)
        Processes(num_gpus).check(cfg.MODEL.DEVICE, cpu_is_chosen="MODEL.DEVICE" in step.pairs)
        if step.trains:
            check_batches(cfg, num_gpus)
    except DearliError as error:
        return [*needs, Need("setting", step.name, str(error), there=False)]
    used = _without(cfg, step)
    for name in used.DATASETS.TRAIN:  # a list that is missing beside its data set; `data_rows` names the data set alone
        needs += [Need("list", name, hint, there=False) for hint in missing_data(name)[1:]]
    for role, name, state in data_rows(used):
        if role.startswith("sizes, ") or role.endswith(" weights"):
            continue
        there = not state.startswith(_MISSING)
        needs.append(Need(role, name, state.removeprefix(_MISSING).removeprefix(": ") or "no such file", there))
    # a checkpoint holds all that an evaluation reads, CLIP's text encoder too
    return needs + [_weights(weights) for weights in (needed_by(used) if step.trains else [])]


def _without(cfg: CfgNode, step: Step) -> CfgNode:
    """The config without what earlier stages give, and for an evaluation without what only a training reads."""
    cfg = cfg.clone()
    cfg.defrost()
    if not step.trains:
        cfg.DATASETS.TRAIN = cfg.DATASETS.SOURCE = cfg.DATASETS.UNLABELED = ()
    for key in ("DATASETS.MASKS", "MODEL.WEIGHTS", "SSL.TEACHER_WEIGHTS"):
        if key in step.given or not step.trains:
            cfg.merge_from_list([key, ""])
    return cfg


def _weights(weights: PublishedWeights) -> Need:
    path = cached(weights)
    state = f"{path}, licence {weights.licence}" if path else f"{weights.facts}; {how_to_get(weights)}"
    return Need("weights", weights.name, state, path is not None)
