"""Programs of `torch.export` (.pt2), which torch runs without this package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from ..deploy.metadata import KEY, Metadata
from ..errors import WeightsError
from .graph import Inputs


def write_program(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Writes a program with its description as the extra file `KEY`."""
    torch.export.save(program, path, extra_files={KEY: metadata.to_json()})


def read_program(path: Path) -> tuple[torch.nn.Module, Metadata]:
    """The network of a file, which takes the inputs by name and returns the outputs by name, and its description.

    Raises:
        WeightsError: the file is none that `dearli export` wrote.
    """
    extra = {KEY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # torch raises many types
        raise WeightsError(f"{path} is no program of torch.export: {error}") from error
    return program.module(), Metadata.from_json(extra[KEY], str(path))


@torch.no_grad()
def run_program(path: Path, inputs: Inputs) -> Inputs:
    """The outputs of a file, by name."""
    network, _ = read_program(path)
    outputs: Inputs = network(**inputs)
    return outputs
