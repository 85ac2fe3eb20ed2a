"""Compares weight files with models, and makes small files of a run's checkpoints."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from .errors import WeightsError, first_few
from .files import parse_json, write_atomically
from .methods import methods
from .modeling.segmenter import Segmenter
from .weights import TORCH_SUFFIXES, read_file, state_dict_of, write_file

logger = logging.getLogger(__name__)

_CONSTANTS = ("pixel_mean", "pixel_std")  # of the config, in some published files


@dataclass
class LoadReport:
    """Names by fate; `wrong_shape` maps a name to (shape in the file, shape in the model)."""

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True if file and model have the same names and shapes."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = [
            f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.wrong_shape)} of wrong shape"
        ]
        for title, names in (("missing in the file", self.missing), ("unknown to the model", self.unexpected)):
            lines += [f"  {title}: {group}" for group in _grouped(names)]
        lines += [
            f"  wrong shape: {n} is {a} in the file, {b} in the model"
            for n, (a, b) in list(self.wrong_shape.items())[:10]
        ]
        if len(self.wrong_shape) > 10:
            lines.append(f"  ... and {len(self.wrong_shape) - 10} more of wrong shape")
        return "\n".join(lines)

    def carry_over(self) -> str:
        """The report on a model that starts from another task's weights: tensors loaded, started fresh, and not used."""
        shapes = [f"{n} (shape {a} in the file, {b} here)" for n, (a, b) in self.wrong_shape.items()]
        parts = (
            ("carried over", _grouped(self.matched)),
            ("starts fresh", _grouped(self.missing) + shapes),
            ("not used", _grouped(self.unexpected)),
        )
        return "\n".join(f"  {title}: {', '.join(names) or 'nothing'}" for title, names in parts)


def _grouped(names: Iterable[str], depth: int = 3) -> list[str]:
    """Names folded by their first parts: `sem_seg_head.pixel_decoder.transformer.* (96)`."""
    names = list(names)
    counts = Counter(".".join(name.split(".")[:depth]) for name in names)
    return [key if count == 1 and key in names else f"{key}.* ({count})" for key, count in counts.items()]


def compare(model: nn.Module, state: dict[str, torch.Tensor]) -> LoadReport:
    """Compares `state`, under the names of this project, with `model`; nothing is loaded."""
    own, report = model.state_dict(), LoadReport()
    for name, value in state.items():
        if name not in own:
            report.unexpected.append(name)
        elif own[name].shape != value.shape:
            report.wrong_shape[name] = (tuple(value.shape), tuple(own[name].shape))
        else:
            report.matched.append(name)
    report.missing = [name for name in own if name not in state]
    return report


def in_our_names(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as the model translates them; those of a file of a backbone alone get the model's prefix."""
    state = {name: value for name, value in state.items() if name not in _CONSTANTS}
    if isinstance(model, Segmenter):
        state = model.own_names(state)
    own = model.state_dict()
    if not any(name in own for name in state) and any(f"backbone.{name}" in own for name in state):
        return {f"backbone.{name}": value for name, value in state.items()}
    return state


def load_weights(model: nn.Module, path: str | Path, strict: bool = True, which: str = "student") -> LoadReport:
    """Loads the weights of a file into a model.

    Args:
        which: "teacher" takes the EMA teacher's of a semi-supervised run.
        strict: every name and shape must fit. Otherwise what fits is loaded and the rest is in the report.

    Raises:
        WeightsError: unreadable file; or strict and not complete, with the report; or nothing fits at all; or a run's checkpoint,
            whose images were normalised otherwise.
    """
    return load_content(model, read_file(path), path, strict, which)


def load_content(
    model: nn.Module, content: dict[str, Any], source: str | Path, strict: bool = True, which: str = "student"
) -> LoadReport:
    """Does the work of `load_weights` with the content of a file."""
    check_normalization(model, content, source)
    return load_state(model, state_dict_of(content, source, which), source, strict)


def check_normalization(model: nn.Module, content: dict[str, Any], source: str | Path) -> None:
    """Checks that images are normalised as in the run that wrote a checkpoint, whose config it holds.

    Raises:
        WeightsError: they are not.
    """
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if "config" not in content or mean is None or std is None:
        return
    try:
        trained = CfgNode.load_cfg(content["config"]).MODEL
        saved = {key: [float(value) for value in trained[key]] for key in ("PIXEL_MEAN", "PIXEL_STD")}
    except Exception as error:  # what another program calls a config may hold anything
        logger.warning(
            "%s holds a config that is none of this project (%s: %s). Whether its images were normalised as here is not checked.",
            source,
            type(error).__name__,
            error,
        )
        return
    for key, tensor in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        values = [round(v, 4) for v in tensor.flatten().tolist()]
        if len(values) != len(saved[key]) or any(abs(a - b) > 0.01 for a, b in zip(saved[key], values, strict=True)):
            raise WeightsError(
                f"{source} was trained with MODEL.{key} {saved[key]}, this config has {values}. Set MODEL.PIXEL_MEAN and "
                "PIXEL_STD to those of the run; if the backbone's weights contradict them, MODEL.BACKBONE.TAG own allows it"
            )


def load_state(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path, strict: bool = True) -> LoadReport:
    """Does the work of `load_weights` with the tensors of a file."""
    state = in_our_names(model, state)
    report = compare(model, state)
    _check_finite(model, {name: state[name] for name in report.matched}, source)
    if not report.matched or (strict and not report.complete):
        raise WeightsError(f"{source} does not fit this model: {report}")
    model.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    if not report.complete:
        logger.warning("%s: %s", source, report)
    return report


def _check_finite(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Constants in buffers may be infinite; weights may not."""
    names = [name for name, _ in model.named_parameters() if name in state]
    broken = [name for name in names if not torch.isfinite(state[name]).all()]
    if broken:
        raise WeightsError(
            f"{source}: {len(broken)} of {len(names)} weights hold NaN or infinity: {first_few(broken)}; they come from a "
            "training that diverged, use an earlier checkpoint"
        )


# ---------------------------------------------------------------------------------------------- command line


def verify(config_file: str, weights: str | None, names: str | None, overrides: Sequence[str]) -> LoadReport:
    """Compares a weight file, or a JSON file {name: shape}, with the model of a config.

    For a JSON file tensors of its shapes are made and loaded.
    """
    from .config import get_config
    from .modeling import build_model

    cfg = get_config(config_file, ["MODEL.DEVICE", "cpu", *overrides])
    model = build_model(cfg, load_backbone=False)
    if weights:
        state = state_dict_of(read_file(weights), weights)
    elif not names:
        raise WeightsError("there is neither a weight file nor a JSON file of names to compare")
    else:
        try:
            shapes = parse_json(Path(names).read_text())
            state = {name: torch.zeros(shape) for name, shape in shapes.items()}
        except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise WeightsError(f"{names} is no JSON file of names and shapes: {error}") from error
    state = in_our_names(model, state)
    report = compare(model, state)
    if report.complete:
        model.load_state_dict(state, strict=True)
    return report


def export(weights: str, out: str | Path, which: str) -> int:
    """Writes what inference needs of a run's checkpoint: weights, classes, config; no optimiser.

    Args:
        which: "student", "teacher", or a part that the method exports alone; then the part's config is written beside
            `out` too, as `.yaml`.

    Returns:
        The number of tensors.

    Raises:
        WeightsError: no such weights in the checkpoint; `out` is the checkpoint itself or has another kind's suffix.
    """
    if Path(out).suffix not in TORCH_SUFFIXES:
        raise WeightsError(f"--out {out}: a file of torch is written; name it {', '.join(TORCH_SUFFIXES)}")
    if Path(out).resolve() == Path(weights).resolve():
        raise WeightsError(
            f"--out {out} is the checkpoint itself, which would lose what a training needs; choose another"
        )
    content = read_file(weights)
    small = {key: content[key] for key in ("taxonomy", "config") if key in content}
    whole = which in ("student", "teacher")
    small["model"] = state_dict_of(content, weights, which if whole else "student")
    if not whole:
        small = _only(which, small, weights)
        path, text = Path(out).with_suffix(".yaml"), small["config"]
        if path.exists() and path.read_text() != text:
            raise WeightsError(
                f"{path} is there and has another content; choose another --out, whose config will be written there"
            )
        write_atomically(path, lambda temporary: temporary.write_text(text))
    write_file(out, small)
    return len(small["model"])


def _only(part: str, content: dict[str, Any], weights: str) -> dict[str, Any]:
    """A part of a checkpoint that its method can export alone."""
    owners = [method for method in methods().values() if part in method.exports]
    if "config" in content:
        name = CfgNode.load_cfg(content["config"]).MODEL.META_ARCHITECTURE
        owners = [method for method in owners if method.architecture == name] or owners
    if not owners:
        raise WeightsError(f"there is no part {part!r} of a checkpoint")
    return owners[0].export(part, content, weights)


if __name__ == "__main__":  # `python -m dearli_d2.checkpoint`, the first name of `dearli checkpoint`
    from .cli import main

    sys.exit(main(["checkpoint", *sys.argv[1:]]))
