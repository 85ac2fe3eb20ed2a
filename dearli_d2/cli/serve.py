"""`dearli serve`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from .base import FILE_OR_FOLDER, command, overrides


@command()
@click.argument("run", type=FILE_OR_FOLDER)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Of the page; 0 = a free one."
)
@click.option("--weights", metavar="FILE", help="Checkpoint; default: model_final.pth of the run.")
@click.option("--device", metavar="NAME", help="cuda or cpu; default: that of the run's config.")
@overrides
def serve(run: Path, port: int, weights: str | None, device: str | None, overrides: tuple[str, ...]) -> int:
    """Opens a page on this machine that segments the pictures that are dropped on it.

    RUN is the folder of a training run. The page shows the segments with class and confidence, and the confidence of each pixel,
    and lets you download the labels. Models with a text classifier take other classes, typed as words.

    The page answers 127.0.0.1 alone and asks no other machine for anything. Pictures are kept in memory, the last one only.
    Ctrl-C ends it.

    Examples:

        dearli serve output/miniworld/m2f_lang
        dearli serve output/miniworld/m2f_lang --port 8000 --device cpu
    """
    from ..run_model import RunModel
    from ..serve.desk import Desk
    from ..serve.server import Server

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    chosen = [*(("MODEL.DEVICE", device) if device else ()), *overrides]
    with Server(port) as server:
        desk = Desk(RunModel(run, weights, overrides=chosen).predictor(), str(run))
        print(f"{run}: open {server.url} in a browser of this machine; Ctrl-C ends it", flush=True)
        server.run(desk)
    return 0
