"""`dearli regions`."""

from __future__ import annotations

from pathlib import Path

import click

from ...cli.base import FILE_OR_FOLDER, POSITIVE, command, config_file, overrides, shared_out


@command()
@config_file
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", required=True, help="A later call continues there.")
@click.option("--batch-size", type=POSITIVE, default=16, metavar="N", show_default=True, help="Images at a time.")
@click.option(
    "--view", type=click.IntRange(min=0), default=8, metavar="N", show_default=True, help="Pictures to write."
)
@shared_out
@overrides
def regions(
    config_file: str,
    out: Path,
    batch_size: int,
    view: int,
    shard: str | None,
    device: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Finds the regions of un-annotated pixels that Split Matching learns from, and stores them.

    Training with MODEL.SPLIT.REGIONS.CACHE FOLDER then reads them there, and makes itself what is missing. The same command
    continues after an interruption. Several processes share the images: torchrun, or --shard 0/2 and --shard 1/2.

    Example:

        dearli regions --config-file configs/miniworld/split_matching.yaml --out regions --view 8
    """
    from ...config import get_config
    from ...masks.generate import default_device
    from ...pipeline import parse_shard
    from .make_regions import fill

    cfg = get_config(config_file, [*overrides, "MODEL.DEVICE", device or default_device()])
    print(fill(cfg, out, parse_shard(shard), batch_size, view))
