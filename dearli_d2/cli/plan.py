"""`dearli plan`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .base import PictureFile, command, config_file, overrides


@command()
@config_file
@click.option(
    "--picture", type=PictureFile(), metavar="FILE", help="Own data: write labelled images beside their segments."
)
@overrides
def plan(config_file: str, picture: Path | None, overrides: tuple[str, ...]) -> None:
    """Shows what a training would do, without doing it.

    Three tables are printed: the data sets and weights of the config and whether they are there, the schedule with the number
    of passes over the images, and the model with its parameters, the memory of a step and an estimate of GPU hours. Nothing is
    written.

    Examples:

        dearli plan --config-file configs/miniworld/dearli.yaml
        dearli plan --config-file configs/ade20k/dearli_convnext_b.yaml DATASETS.PARTITION 1_128
    """
    from ..config import get_config
    from ..data.custom import register_custom
    from ..data.inspection import inspect_custom, write_contact_sheet
    from ..errors import ConfigError
    from ..plan import plan as tables

    cfg = get_config(config_file, overrides)
    if cfg.DATASETS.CUSTOM.ROOT:
        print("looking at the data ...", file=sys.stderr)
        register_custom(cfg.DATASETS.CUSTOM)
        print(inspect_custom(cfg.DATASETS.CUSTOM), end="\n\n")
        if picture:
            write_contact_sheet(picture)
    elif picture:
        raise ConfigError("--picture shows own data, so it needs DATASETS.CUSTOM.ROOT")
    print("going through a training step without its numbers, up to half a minute on a CPU ...", file=sys.stderr)
    for table in tables(cfg):
        print(table, end="\n\n", flush=True)
